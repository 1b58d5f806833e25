"""The bundled model on emoji data, by the evaluation command and by the bench: one result."""

import pytest

from altdiffusion.evaluation import captioned, generated
from altdiffusion.evaluation.datasets import find
from altdiffusion.evaluation.labelled import plain_tree
from altdiffusion.evaluation.tasks import Features, run
from altdiffusion.languages import LANGUAGES
from altdiffusion.model import AltCLIP
from bench import emoji_data, quality

pytestmark = pytest.mark.weights


@pytest.fixture(scope="module")
def clip() -> AltCLIP:
    """In float32: bfloat16 features depend a little on what they are encoded with."""
    return AltCLIP.from_pretrained(device="cpu", dtype="float32")


def test_retrieval_of_held_out_scenes_is_what_the_bench_measures(clip, tmp_path):
    emoji_data.write_scenes(tmp_path, 60)
    (found,) = find(tmp_path, captioned.READERS)
    assert set(found.languages) == set(LANGUAGES)
    table, features = quality.measure_retrieval(clip, 60)["languages"], Features(clip)
    for tag in ("en", "zh", "ar"):
        scores = {name: score.value for name, score in run(found, tag, features).scores.items()}
        assert scores == pytest.approx(table[tag], abs=1e-6), tag
    assert table["en"]["MR"] > 0.7


def test_names_are_captions_that_the_model_tells_apart(clip, tmp_path):
    emoji_data.write_names(tmp_path, 12)
    (found,) = find(tmp_path, captioned.READERS)
    assert set(found.languages) == set(LANGUAGES)
    data = generated.parallel(dict.fromkeys(found.languages, found), ["en", "zh"], None)
    assert len(data.pictures) == 12
    for tag in ("en", "zh"):
        assert run(found, tag, Features(clip)).scores["t2i@1"].value > 0.9, tag


@pytest.mark.slow
def test_zero_shot_over_all_names_is_what_the_bench_measures(clip, tmp_path):
    emoji_data.write_classes(tmp_path / "classes")
    (found,) = plain_tree(tmp_path / "classes")
    table, features = quality.measure_zero_shot(clip)["languages"], Features(clip)
    for tag in ("en", "th"):
        outcome = run(found, tag, features)
        assert (outcome.pictures, outcome.texts, outcome.templates) == (1364, 1364, "the data's")
        assert outcome.scores["top1"].value == pytest.approx(table[tag]["top1"], abs=1e-3)
        assert outcome.scores["top5"].value == pytest.approx(table[tag]["top5"], abs=1e-3)
