"""The training bench at toy size: every way runs, what it adds up, and where its table goes."""

import json
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from tqdm import tqdm

from altdiffusion.conditioning import MAX_LENGTH
from bench import training, training_ways
from bench.training import STAGES, Stage, figures, peak_elsewhere, table, time_parts
from bench.training_models import SHAPES, Models, captions, padded, started, tokenizer


@pytest.fixture(autouse=True)
def accelerator_of_its_own():
    """accelerate keeps the precision of a process's first run."""
    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()


def report(shape: str = "published") -> dict:
    ways = list(STAGES["concept alignment"].ways)
    rows = [
        {"stage": "concept alignment", "batch": 8, "way": way, "seconds": seconds, "bytes": memory}
        for way, seconds, memory in (
            (
                ways[0],
                {"inputs fp32": 4.0, "full fp32": 30.0, "AdamW": 6.0},
                {"measured": 9e9, "states": 7e9},
            ),
            (ways[-1], {"ours": 8.0}, {"measured": 2e9, "states": 0}),
        )
    ]
    made = {"commit": "abc", "machine": "x", "torch": "2", "diffusers": "0", "minutes": 1}
    return {"shape": shape, "rounds": 3, "command": "run", "rows": rows, "made with": made}


@pytest.mark.parametrize("name", STAGES)
def test_every_way_of_a_stage_is_timed(name):
    stage = STAGES[name]
    with tqdm(disable=True) as bar:
        seconds = time_parts(stage, "tiny", 2, 1, bar)
    assert seconds.keys() == {part for parts in stage.ways.values() for part in parts}
    assert all(value > 0 for value in seconds.values())


def test_the_published_shapes_are_the_published_ones():
    with torch.device("meta"):
        models = Models(SHAPES["published"], Path())
        assert sum(p.numel() for p in models.new_unet().parameters()) == 859_520_964
        words = models.new_tower().get_input_embeddings().weight
    assert words.shape == (250002, 1024)


def test_captions_have_seven_to_twenty_tokens_and_peers_pad_them_to_77():
    lengths = [len(ids) for ids in tokenizer()(captions(8))["input_ids"]]
    assert lengths == sorted(lengths) and min(lengths) >= 7 and max(lengths) <= 20
    assert len(set(lengths)) == 8 and not any(3 in ids for ids in tokenizer()(captions(8))["input_ids"])
    assert padded(8)["input_ids"].shape == (8, MAX_LENGTH)


def test_our_steps_train_and_the_parts_of_the_peers_leave_no_gradient(tmp_path):
    models = Models(SHAPES["tiny"], tmp_path)
    ours = training_ways.our_distillation(models, 2)
    before = [p.clone() for p in models.student.parameters()]
    training_ways.peer_student(models, 2, "fp32")()
    assert all(p.grad is None for p in models.student.parameters())
    assert all(a.equal(b) for a, b in zip(before, models.student.parameters(), strict=True))
    ours()
    moved = [not a.equal(b) for a, b in zip(before, models.student.parameters(), strict=True)]
    assert any(moved) and not moved[0]  # the word embeddings are frozen


def test_two_runs_have_folders_of_their_own(tmp_path):
    models = Models(SHAPES["tiny"], tmp_path)
    for _ in range(2):
        started(models, torch.nn.Linear(2, 2), 1)
    assert len(list(tmp_path.iterdir())) == 2


def test_memory_is_measured_in_a_process_of_its_own_and_adamws_states_are_counted():
    name = "teacher learning"
    found = peak_elsewhere(name, "padded, fp32", "tiny", 2)
    with torch.device("meta"):
        parameters = sum(p.numel() for p in Models(SHAPES["tiny"], Path()).student.parameters())
    assert found["states"] == 8 * parameters and found["measured"] > 4 * parameters


def test_what_adamw_keeps_is_eight_bytes_a_parameter():
    layer = torch.nn.Linear(30, 20)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 30)).sum().backward()
    optimizer.step()
    kept = sum(value.nbytes for state in optimizer.state.values() for value in state.values() if value.ndim)
    assert kept == 8 * sum(p.numel() for p in layer.parameters())


def test_ratios_are_of_the_sum_of_the_parts_to_ours():
    peer, ours = figures(report())
    assert (peer["per sample"], peer["slower"], peer["larger"]) == (5.0, 5.0, 8.0)
    assert (ours["per sample"], ours["slower"], ours["larger"]) == (1.0, 1.0, 1.0)
    assert "| 5.00 | 5.0 (wanted: 3.8) | 16.00 | 8.0 |" in table(report())
    assert "wanted" not in table(report("tiny"))


def test_our_way_is_the_last_of_every_stage():
    assert all(
        isinstance(stage, Stage) and list(stage.ways)[-1].startswith("ours") for stage in STAGES.values()
    )


def test_what_a_report_holds_already_is_kept(tmp_path):
    file = tmp_path / "report.json"
    assert training.rows_of(file, "published", 3) == []
    file.write_text(json.dumps(report()))
    rows = training.rows_of(file, "published", 3)
    assert rows == report()["rows"] and training.rows_of(file, "published", 2) == []
    again = training.measure("published", ["concept alignment"], [8], 3, rows)
    assert again["rows"] == report()["rows"]
