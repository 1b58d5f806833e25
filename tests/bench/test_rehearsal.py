"""`bench.rehearsal`: what is measured, when it is measured again, and what the tables say of it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bench import rehearsal
from bench.judge import interval
from bench.rehearsal import Asked, measure, missing, report_of, training_of
from bench.rehearsal_table import tables, verdict
from training.checkpoints import MANIFEST

ASKED = Asked(emoji=2, steps=1, scenes=10, languages=("en", "th"))
MADE = {"commit": "c", "machine": "m", "torch": "t", "diffusers": "d", "transformers": "u", "minutes": 1.4}
TRAINED = {
    "steps": 9,
    "samples": 1234,
    "seconds": 240.2,
    "memory_gb": 1.5,
    "parameters": 77,
    "bytes": 4_000_000,
}


def row(name: str, ranks: dict[str, list[int]], seen: dict[str, list[bool]] | None = None) -> dict[str, Any]:
    known = seen or {tag: [True] * len(values) for tag, values in ranks.items()}
    return {"asked": ASKED.of(name), "trained": TRAINED, "ranks": ranks, "seen": known, "made with": MADE}


def tower(name: str, **figures: float) -> dict[str, Any]:
    found = {tag: {"MR": value, "top1": value / 2} for tag, value in figures.items()}
    return {"asked": ASKED.of(name), "trained": TRAINED, "towers": found, "made with": MADE}


def text_of(**rows: dict[str, Any]) -> str:
    return tables({"rows": rows, "made with": MADE, "command": "python -m bench.rehearsal"})


def stage(runs: Path, name: str, manifest: str = "{}") -> Path:
    folder = runs / name / "model"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").write_text(manifest)
    return folder


def test_an_interval_holds_what_resampled_emoji_come_to():
    assert interval(np.ones((2, 5))) == {"mean": 1.0, "low": 1.0, "high": 1.0}
    one_of_two = np.array([[1.0, 0.0]])  # a quarter of the resamplings has the hit twice, a quarter never
    assert interval(one_of_two) == {"mean": 0.5, "low": 0.0, "high": 1.0}
    hits = (np.arange(20.0) < 16)[None].astype(float)  # sqrt(0.8 * 0.2 / 20) = 0.089
    found = interval(hits)
    assert (found["low"], found["high"]) == pytest.approx((0.8 - 1.96 * 0.089, 0.8 + 1.96 * 0.089), abs=0.03)


def test_languages_that_go_together_make_an_interval_no_narrower():
    hits = (np.arange(20.0) % 4 > 0)[None].astype(float)
    assert interval(np.tile(hits, (18, 1))) == pytest.approx(interval(hits))


def test_a_picture_that_does_not_count_is_in_no_mean():
    assert interval(np.array([[1.0, np.nan], [1.0, 1.0]])) == {"mean": 1.0, "low": 1.0, "high": 1.0}
    assert interval(np.array([[0.0, np.nan, 1.0], [1.0, 1.0, 1.0]]))["mean"] == 0.75


def test_a_difference_is_borne_out_where_its_interval_is_on_one_side():
    above, below, both = ({"low": low, "high": high} for low, high in ((0.1, 0.2), (-0.2, -0.1), (-0.1, 0.2)))
    assert [verdict(found, True) for found in (above, below, both)] == [
        "borne out",
        "the opposite here",
        "not shown here",
    ]
    assert [verdict(found, False) for found in (above, below, both)] == [
        "borne out, and better",
        "the opposite here",
        "no difference shown",
    ]


def test_the_tables_say_what_the_ranks_come_to():
    text = text_of(
        english_unet=row("english_unet", {"en": [0, 0], "th": [900, 700]}),
        swap=row("swap", {"en": [50, 60], "th": [70, 80]}),
        kv=row("kv", {"en": [0, 0], "th": [0, 3]}, {"en": [True, True], "th": [True, False]}),
        lora=row("lora", {"en": [4, 4], "th": [4, 4]}),
        kv_second=row("kv_second", {"en": [0, 0], "th": [0, 8]}),
        student_english=tower("student_english", en=0.9, th=0.1, ar=0.2),
        student_parallel=tower("student_parallel", en=0.5, th=0.7, ar=0.6),
        student_both=tower("student_both", en=0.8, th=0.7, ar=0.8),
    )
    assert "| English UNet, English tower | 1,234 | 1.000 / 1.000 | 0.500 (0.500 to 0.500) |" in text
    assert "| keys and values | 240 | 1,234 | 77 | 1.50 | 4.0 | 1.000 (1.000 to 1.000) |" in text
    assert "| th | 0.00 / 0.00 | 0.00 / 0.00 | 1.00 / 1.00 |" in text  # its unseen name does not count
    assert "| LoRA of rank 16 | 240 |" in text
    assert "| -1.000 (-1.000 to -1.000) |" in text
    assert "concept alignment (Ye et al. 2023): borne out; `kv` above `swap` by +1.000" in text
    assert "top-1 1.000 and 0.750, top-5 1.000 and 0.750, not within 0.03" in text
    assert "| English alone | 0.900 | 0.150 | th 0.100 | 0.450 | 0.075 | th 0.050 |" in text
    assert "in English: English alone 0.900, both 0.800, 17 other languages alone 0.500. Both above" in text
    assert text.count("(Chen et al. 2022): borne out") == 2


def test_what_two_seeds_may_differ_by_bears_out_nothing():
    students = {
        "student_english": tower("student_english", en=0.9, th=0.75),
        "student_parallel": tower("student_parallel", en=0.78, th=0.7),
        "student_both": tower("student_both", en=0.8, th=0.7),
    }
    text = text_of(**students)
    assert "Both above 17 other languages alone (Chen et al. 2022): not shown here" in text
    assert "Both above English alone (Chen et al. 2022): the opposite here" in text


def test_two_seeds_are_compared_after_each_stage_that_has_both():
    found = {"en": [0] * 50, "th": [0] * 50}
    text = text_of(
        kv=row("kv", found),
        kv_second=row("kv_second", found | {"th": [0] * 25 + [8] * 25}),
        quality=row("quality", found),
        quality_second=row("quality_second", found | {"th": [0] * 49 + [9]}),
    )
    assert "`kv` from two seeds: top-1 1.000 and 0.750, top-5 1.000 and 0.750, not within 0.03" in text
    assert "`quality` from two seeds: top-1 1.000 and 0.990, top-5 1.000 and 0.990, within 0.03" in text


def test_two_seeds_of_the_towers_are_compared_in_english_and_in_the_others():
    text = text_of(
        student_english=tower("student_english", en=0.9, th=0.1),
        student_parallel=tower("student_parallel", en=0.5, th=0.7),
        student_both=tower("student_both", en=0.8, th=0.7, ar=0.6),
        student_both_second=tower("student_both_second", en=0.82, th=0.6, ar=0.6),
        contrast=tower("contrast", en=0.9, th=0.8, ar=0.8),
    )
    retrieval = "MR in English 0.800 and 0.820, MR of the others 0.650 and 0.600"
    classes = "top-1 in English 0.400 and 0.410, top-1 of the others 0.325 and 0.300"
    assert f"`student_both` from two seeds: {retrieval}, {classes}, not within 0.03" in text
    assert "| both, another seed | 0.820 |" in text
    assert "`contrast` from" not in text


def test_a_table_without_rows_is_left_out():
    text = text_of(swap=row("swap", {"en": [50, 0]}))
    assert "From stage to stage" in text
    assert not any(
        title in text for title in ("Ways to follow", "What teacher learning", "What these figures")
    )


def test_a_row_is_measured_again_only_where_something_is_another(tmp_path, monkeypatch, capsys):
    measured = []

    def draw(name: str, *_rest: Any) -> dict[str, Any]:
        measured.append(name)
        return {"ranks": {"en": [0, 1], "th": [0, 1]}, "seen": {"en": [True, True], "th": [True, True]}}

    monkeypatch.setattr(rehearsal, "draw", draw)
    monkeypatch.setattr(rehearsal, "Judge", object)
    for name in ("english_unet", "kv"):
        stage(tmp_path, name)
    rows = ["english_unet", "kv", "lora"]
    measure(rows, tmp_path, ASKED)
    assert capsys.readouterr().err == "lora: not measured, as lora and swap is not there\n"
    measure(rows, tmp_path, ASKED)
    assert measured == ["english_unet", "kv"]
    stage(tmp_path, "kv", '{"trained": "anew"}')
    measure(rows, tmp_path, ASKED)
    assert measured == ["english_unet", "kv", "kv"]
    wider = Asked(emoji=3, steps=1, scenes=10, languages=("en", "th"))
    measure(["kv"], tmp_path, wider)
    assert [list(report_of(tmp_path, asked)["rows"]) for asked in (ASKED, wider)] == [
        ["english_unet"],
        ["kv"],
    ]


def test_a_row_waits_for_what_it_is_told_by(tmp_path):
    assert missing("teacher", tmp_path) == ["teacher"]
    assert missing("guidance_guided", tmp_path) == ["guidance", "english_unet"]
    stage(tmp_path, "english_unet")
    assert missing("quality", tmp_path) == ["quality"]


@pytest.mark.parametrize("part", ["unet", "adapter", ""], ids=["UNet", "adapter", "LoRA"])
def test_what_a_stage_took_is_read_from_what_it_left(tmp_path, part):
    folder = tmp_path / "model" / part
    folder.mkdir(parents=True)
    (folder / "part.safetensors").write_bytes(b"0123")
    if part == "adapter":
        (tmp_path / "model/unet").mkdir()
        (tmp_path / "model/unet/frozen.safetensors").write_bytes(b"0123456789")
    lines = [
        {"step": n, "samples": 64 * n, "seconds": 2.0 * n, "memory_gb": memory}
        for n, memory in ((1, 1.0), (2, 3.0))
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "checkpoint-00000002").mkdir()
    (tmp_path / "checkpoint-00000002" / MANIFEST).write_text('{"about": {"trained numbers": 55}}')
    assert training_of(tmp_path) == {
        "steps": 2,
        "samples": 128,
        "seconds": 4.0,
        "memory_gb": 3.0,
        "parameters": 55,
        "bytes": 4,
    }


def test_a_swap_without_a_step_trained_nothing(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "checkpoint-00000000").mkdir()
    (tmp_path / "checkpoint-00000000" / MANIFEST).write_text('{"about": {"trained numbers": 55}}')
    found = training_of(tmp_path)
    assert (found["samples"], found["parameters"]) == (0, 0)


def test_without_a_row_nothing_is_written(tmp_path, monkeypatch, capsys):
    results = tmp_path / "results.md"
    results.write_text("<!-- rehearsal -->\n<!-- /rehearsal -->\n")
    monkeypatch.setattr("bench.report.RESULTS", results)
    monkeypatch.setattr("sys.argv", ["bench", "--runs", str(tmp_path), "--write"])
    assert rehearsal.main() == 2
    assert results.read_text() == "<!-- rehearsal -->\n<!-- /rehearsal -->\n"
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"runs: {tmp_path} holds no measured stage")


class FirstIsRight:
    """A judge that takes no second."""

    def ranks(self, pictures: list[Image.Image], wanted: list[str]) -> np.ndarray:
        assert len({picture.tobytes() for picture in pictures}) == len(wanted)
        return np.arange(len(wanted)) * 7


def test_a_stage_is_drawn_with_judged_and_told(model_folder, tmp_path, monkeypatch, capsys):
    runs, results = tmp_path / "runs", tmp_path / "results.md"
    (runs / "english_unet").mkdir(parents=True)
    model_folder.rename(runs / "english_unet/model")
    stage(runs, "english_unet")
    results.write_text("<!-- rehearsal -->\n<!-- /rehearsal -->\n")
    monkeypatch.setattr("bench.report.RESULTS", results)
    monkeypatch.setattr(rehearsal, "Judge", FirstIsRight)
    words = ["--emoji", "2", "--steps", "1", "--languages", "th"]
    monkeypatch.setattr("sys.argv", ["bench", "--runs", str(runs), "english_unet", *words, "--write"])
    assert rehearsal.main() == 0
    kept = json.loads((runs / "measured/english_unet.json").read_text())
    assert kept["ranks"] == {"en": [0, 7], "th": [0, 7]}
    assert len(kept["characters"]) == 2
    told = capsys.readouterr().out
    assert "| English UNet, English tower | 0 | 0.500 / 0.500 | 0.500 (0.000 to 1.000) |" in told
    assert told.strip() in results.read_text()
