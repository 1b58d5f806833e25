"""`bench.generate` at a tiny shape: both pipelines draw the same, and sums are of the calls that are made."""

import numpy as np
import pytest
import torch
from tqdm import tqdm

from altdiffusion.presets import PRESETS, Preset
from bench import generate_ways as ways
from bench.generate import PEER, TARGETS, WAYS, measure, summed, table, whole_seconds

TINY = ways.SHAPES["tiny"]
# The pipelines are cast after they are built, as no other way shares the weights of both.
pytestmark = pytest.mark.filterwarnings("ignore:preset. .* is chosen by the bundled model")


@pytest.fixture(scope="module")
def pair():
    torch.manual_seed(0)
    tower, painters = ways.peer_tower(TINY, torch.float32), ways.painters(TINY, torch.float32)
    return ways.peer(tower, painters), ways.ours(ways.our_tower(tower), painters)


def test_both_pipelines_draw_the_same_picture_from_the_same_weights(pair):
    def draw(runner):
        arguments = {"num_inference_steps": 3, "guidance_scale": 2.0, "output_type": "np"}
        generator = torch.Generator().manual_seed(1)
        return runner(next(ways.words()), height=64, width=64, generator=generator, **arguments).images

    theirs, ours = map(draw, pair)
    assert theirs.std() > 0.01
    assert np.abs(theirs - ours).max() < 1e-4


def test_a_picture_makes_as_many_calls_as_are_counted(pair):
    _, ours = pair
    for name, preset in PRESETS.items():
        with ways.timed(ours.unet) as calls:
            ours("w1", height=64, width=64, preset=name, output_type="latent")
        assert len(calls) == sum(ways.counts(preset, ways.calls_of(preset)).values())


def test_calls_are_counted_by_kind():
    assert list(ways.counts(Preset(), 51).values()) == [51, 0, 0, 0]
    assert list(ways.counts(Preset(guided=0.7, reuse=3), 15).values()) == [4, 7, 1, 3]
    assert list(ways.counts(Preset(guided=0.5, reuse=2), 4).values()) == [1, 1, 1, 1]


def test_prompts_are_new_each_time_and_of_thirteen_tokens():
    prompts = ways.words()
    some = [next(prompts) for _ in range(20)]
    assert len(set(some)) == 20
    assert {len(row) for row in ways.tokenizer()(some)["input_ids"]} == {13}


def test_sums_are_of_all_parts_and_ratios_to_the_peer():
    kinds = dict(zip(ways.KINDS, (2.0, 0.25, 1.0, 0.125), strict=True))
    bf16 = kinds | {ways.DECODE: 3.0}
    parts = {PEER: {"guided": 4.0, ways.DECODE: 6.0}, "fp32": bf16, "bf16": bf16}
    rows = {row["way"]: row for row in summed({PEER: 1.0, "fp32": 0.5, "bf16": 0.5}, parts)}
    assert rows[PEER]["sum"] == 1 + 51 * 4 + 6
    assert rows["exact, bf16"]["sum"] == 0.5 + 51 * 2 + 3
    preset = PRESETS["fast"]
    calls = ways.counts(preset, ways.calls_of(preset))
    assert rows["fast, bf16"]["unet"] == sum(kinds[kind] * calls[kind] for kind in kinds)


def test_everything_is_measured_and_told():
    report = measure("tiny", 1, whole=False) | {"command": "python"}
    assert {row["way"] for row in report["rows"]} == set(WAYS) > set(TARGETS)
    assert all(seconds > 0 for part in report["parts"].values() for seconds in part.values())
    assert "wanted" not in table(report)
    assert "| fast, bf16 |" in table(report | {"shape": "published"})
    with tqdm(disable=True) as bar:
        assert whole_seconds(TINY, bar).keys() == WAYS.keys()
