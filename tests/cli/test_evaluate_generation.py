"""`altdiffusion evaluate generation`: a tiny model's pictures per language, measured and kept."""

import importlib.util
import json
from pathlib import Path

import pytest

from altdiffusion.images import open_image, read_provenance
from tests import mini_data
from tests.cli.conftest import Run

pytest.importorskip("torchmetrics")


@pytest.fixture
def arguments(shared_folder: Path, tmp_path: Path) -> tuple[str, ...]:
    mini_data.crossmodal3600(tmp_path)
    base = ("evaluate", "generation", "--data", "xm3600", "--model", str(shared_folder), "--steps", "1")
    return (*base, "--pictures", "3", "--languages", "en", "zh", "ja")


def test_each_language_is_drawn_with_the_same_seeds_and_measured(run: Run, arguments, tmp_path: Path):
    code, out, err = run(*arguments, "-o", "r.json", "--json")
    assert code == 0
    report = json.loads(out)
    assert report == json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    assert [row["language"] for row in report["results"]] == ["en", "zh", "ja"]
    for row in report["results"]:
        assert row["pictures"] == 3 and len(row["data"]) == 64
        assert set(row["distances"]) == {"FD", "KID"} and row["distances"]["FD"] > 0
        assert set(row["scores"]) == {
            "CLIP-sim",
            "CLIP-sim with English",
            "CLIP-sim of the data",
            "consistency",
        }
        score = row["scores"]["CLIP-sim"]
        assert -1 <= score["low"] <= score["value"] <= score["high"] <= 1
        folder = tmp_path / "r.pictures/crossmodal-3600" / row["language"]
        made = [read_provenance(folder / f"{n:05}.png") for n in range(3)]
        assert [one.seed for one in made] == [0, 1, 2]
        assert [one.prompt for one in made] == mini_data.COLOURS[row["language"]][:3]
    english = report["results"][0]["scores"]
    assert english["CLIP-sim"] == english["CLIP-sim with English"]
    assert {row["figure"] for row in report["summary"]} >= {"FD", "CLIP-sim", "consistency"}
    made = report["made"]
    assert (made["steps"], made["encoder"]) == ("1", "the model's own")
    assert made["command"].endswith("--pictures 3 --steps 1") and len(made["fingerprint"]) == 64
    assert "torchmetrics" in made["versions"]
    grid = open_image(tmp_path / "r.pictures/crossmodal-3600/grid.png")
    one = open_image(tmp_path / "r.pictures/crossmodal-3600/en/00000.png")
    assert grid.width > 3 * one.width and grid.height > 3 * one.height
    assert err.endswith("pictures in r.pictures\n")
    assert not (tmp_path / "r.json.parts").exists()


def test_pictures_that_are_there_are_not_drawn_again_and_damaged_or_other_ones_are(
    run: Run, arguments, tmp_path: Path
):
    assert run(*arguments, "-o", "r.md")[0] == 0
    first = (tmp_path / "r.md").read_text(encoding="utf-8")
    folder = tmp_path / "r.pictures/crossmodal-3600"
    before = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in folder.glob("*/*.png")}
    assert len(before) == 9
    cut, strange = folder / "zh/00001.png", folder / "ja/00002.png"
    cut.write_bytes(before[cut][0][:60])
    strange.write_bytes(before[folder / "en/00000.png"][0])
    (tmp_path / "r.md").unlink()
    assert run(*arguments, "-o", "r.md")[0] == 0
    assert (tmp_path / "r.md").read_text(encoding="utf-8") == first
    after = {file: file.stat().st_mtime_ns for file in folder.glob("*/*.png")}
    assert {file for file in after if after[file] != before[file][1]} == {cut, strange}
    assert all(file.read_bytes() == content for file, (content, _) in before.items())
    for figure in ("FD-AltCLIP over 3 languages", "CLIP-sim over 3 languages: mean", "of English)"):
        assert figure in first


def test_another_encoder_can_measure(run: Run, arguments, shared_folder: Path):
    code, out, _ = run(*arguments, "--encoder", str(shared_folder), "--json")
    assert code == 0
    made = json.loads(out)["made"]
    assert made["encoder"] == shared_folder.name and "--encoder" in made["command"]


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("pictures", ["--pictures", "1"]),
        ("pictures", ["--pictures", "²"]),
        ("steps", ["--steps", "0"]),
        ("guidance_scale", ["--guidance-scale", "nan"]),
        ("languages", ["--languages", "cn"]),
        ("languages", ["--languages", "en", "th"]),
        ("output", ["-o", "r.txt"]),
    ],
)
def test_mistakes_are_refused_before_the_model(run: Run, tmp_path: Path, name: str, more: list[str]):
    mini_data.crossmodal3600(tmp_path)
    code, out, err = run("evaluate", "generation", "--data", "xm3600", *more)
    assert (code, out) == (2, "")
    assert err.startswith(f"{name}: ") and err.count("\n") == 1


@pytest.mark.usefixtures("no_model")
def test_flags_of_generation_are_refused_beside_other_tasks(run: Run, tmp_path: Path):
    mini_data.crossmodal3600(tmp_path)
    code, out, err = run("evaluate", "retrieval", "--data", "xm3600", "--steps", "3")
    assert (code, out) == (2, "")
    assert err == "steps: '3' beside retrieval; allowed with generation\n"


@pytest.mark.usefixtures("no_model")
def test_a_missing_torchmetrics_is_named_before_anything_is_drawn(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec",
        lambda name, *rest: None if name == "torchmetrics" else find_spec(name, *rest),
    )
    mini_data.crossmodal3600(tmp_path)
    code, _, err = run("evaluate", "generation", "--data", "xm3600")
    assert (code, err) == (2, "task: generation needs torchmetrics (pip install torchmetrics)\n")
