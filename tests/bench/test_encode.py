"""`bench.encode` at a tiny shape: every way encodes the same, and the table says what was measured."""

import pytest
import torch
from tqdm import tqdm

from bench import encode
from bench.encode import TARGETS, apart, measure_job, steps_apart, table
from bench.encode_ways import LONGEST, ONE, SHAPES, SHORTEST, captions, jobs, tokenizer

TINY = SHAPES["tiny"]


def report(shape: str = "published") -> dict:
    made = {"commit": "abc", "machine": "m", "torch": "2", "transformers": "5", "minutes": 1}
    peer = {
        "job": "texts",
        "way": "padded to 77, fp32",
        "count": 32,
        "seconds": 16.0,
        "cosine": 1.0,
        "error": 0.0,
    }
    ours = peer | {"way": "ours, bf16", "seconds": 1.6, "cosine": 0.9998, "error": 0.055, "share": 0.7}
    return {"shape": shape, "rounds": 3, "rows": [peer, ours], "made with": made, "command": "python"}


def test_captions_have_the_published_lengths_and_no_unknown_word():
    ids = tokenizer()(captions([SHORTEST, ONE, LONGEST]))["input_ids"]
    assert [len(row) for row in ids] == [SHORTEST, ONE, LONGEST]
    assert not any(3 in row for row in ids)


@pytest.mark.parametrize("job", jobs(TINY))
def test_every_way_of_a_job_gives_the_same(job):
    with tqdm(disable=True) as bar:
        rows = measure_job(TINY, job, 1, bar)
    assert [row["way"] for row in rows][-1].startswith("ours") and len(rows) > 2
    for row in rows:
        assert row["seconds"] > 0 and row["count"] > 0
        if job.startswith("preprocessing"):
            assert row["steps"] < 1.01
        else:
            assert row["cosine"] > (0.9999 if "fp32" in row["way"] else 0.999)
            assert ("share" in row) == row["way"].startswith("ours") and 0 <= row.get("share", 0) < 1


def test_what_is_wanted_names_ways_that_are_measured():
    for job, way in TARGETS:
        ways = jobs(TINY)[job][1]()
        assert way in ways, (job, way)


def test_the_centred_error_sees_what_the_cosine_hides():
    expected = torch.tensor([[100.0, 1.0], [100.0, -1.0]])
    found = torch.tensor([[100.0, 1.5], [100.0, -1.5]])
    figures = apart(found, expected)
    assert figures["cosine"] > 0.9999 and figures["error"] == pytest.approx(0.5)
    assert apart(expected[:1], expected[:1]) == {"cosine": pytest.approx(1)}


def test_whole_numbers_are_compared_as_the_values_that_they_become():
    whole = torch.randint(0, 250, (1, 3, 4, 4), dtype=torch.uint8)
    values = encode.normalized(encode.CLIPImageProcessorPil(), whole)
    assert steps_apart(whole, values)["steps"] == 0
    assert steps_apart(whole + 2, values)["steps"] == pytest.approx(2, abs=1e-3)


def test_ratios_are_to_the_last_way_and_stand_beside_what_is_wanted():
    assert "| 16.000 | 2.00 | 10.00 (wanted: 9) | 1.000000 | 0.0000 |  |  |" in table(report())
    assert "| ours, bf16 | 1.600 | 20.00 | 1.00 | 0.999800 | 0.0550 |  | 0.70 (wanted: 0.67) |" in table(
        report()
    )
    assert "wanted" not in table(report("tiny"))
