"""What bench.quality asks for, and how the judge's word is counted."""

import numpy as np
import pytest
import torch
from PIL import Image

from bench.judge import Judge
from bench.quality import Prompts, held_out_grounds, measure_generation, pictures, ranks_of
from training.captions import TEMPLATES
from training.emoji import centred, draw, in_rows_of_two, load_emoji
from training.grounds import held_out_ground, on_ground


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge()


@pytest.fixture(scope="module")
def prompts() -> Prompts:
    return Prompts()


def test_prompts_name_the_emoji_their_list_and_their_ground(prompts):
    lobster, three = centred("🦞"), in_rows_of_two(("🦞", "🍎", "🐧"))
    assert prompts.name("en", lobster) == "lobster"
    assert prompts.template("en", lobster) == "a drawing of a lobster"
    assert prompts.name("en", three) == "lobster, red apple, and penguin"
    assert prompts.name("de", on_ground(lobster, "red")) == "Hummer auf rotem Hintergrund"
    assert prompts.template("zh", lobster) == TEMPLATES["zh"][-1].replace("{}", "龙虾")


def test_a_scene_counts_as_seen_if_all_its_names_are(prompts):
    unseen = next(c for c in load_emoji().characters if prompts.captions.unseen_name("th", c))
    known = next(c for c in load_emoji().characters if not prompts.captions.unseen_name("th", c))
    assert prompts.seen("th", centred(known)) and prompts.seen("en", centred(unseen))
    assert not prompts.seen("th", in_rows_of_two((known, unseen)))


def test_the_right_emoji_on_another_ground_is_wrong(judge):
    scenes = [on_ground(centred("🦞"), ground) for ground in ("red", "blue")]
    drawn = [draw(scene, 64) for scene in scenes]
    assert ranks_of(judge, drawn, scenes).tolist() == [0, 0]
    assert (ranks_of(judge, drawn[::-1], scenes) >= 5).all()
    assert ranks_of(judge, drawn, [centred("🦞")] * 2).tolist() == [0, 0]  # of which no ground was asked


def test_grounds_are_those_that_training_never_showed(judge):
    scenes = held_out_grounds(judge.characters)
    assert all(held_out_ground(scene.characters, scene.ground) for scene in scenes)
    assert 0.6 < len(scenes) / len(judge.characters) < 0.7  # 1 - 0.9 ** 10
    assert len({scene.ground for scene in scenes}) == 10


def test_prompts_that_a_language_lacks_are_left_out_and_unseen_names_counted_apart(judge, monkeypatch):
    scenes = [centred(c) for c in "🦞🍎🐧"]
    asked: list[list[str]] = []

    def drawn(pipeline: None, texts: list[str]) -> list[Image.Image]:
        asked.append(texts)
        return [draw(centred(text), 64) for text in texts]

    monkeypatch.setattr("bench.quality.pictures", drawn)
    found = measure_generation(
        None,
        judge,
        scenes,
        ["en", "th"],
        lambda tag, scene: None if tag == "th" and scene.characters == ("🍎",) else scene.characters[0],
        lambda tag, scene: tag == "en" or scene.characters == ("🦞",),
    )
    assert asked == [["🦞", "🍎", "🐧"], ["🦞", "🐧"]]
    assert found["languages"]["en"] == {"top1": 1.0, "top5": 1.0, "pictures": 3}
    assert found["languages"]["th"]["pictures"] == 1 and found["unseen"]["pictures"] == 1
    assert np.isclose(found["mean"], 1.0)


@pytest.mark.filterwarnings("ignore:preset. .* is chosen by the bundled model")
def test_prompt_n_is_drawn_with_seed_n_in_the_models_own_way(shared_pipeline):
    texts, defaults = ["a cat", "猫", "a cat"], shared_pipeline.generation_defaults
    first, _, third = pictures(shared_pipeline, texts)
    assert first.tobytes() != third.tobytes()
    said = {"num_inference_steps": defaults.steps, "guidance_scale": defaults.guidance_scale}
    seed = torch.Generator().manual_seed(0)
    for alone in (
        pictures(shared_pipeline, texts[:1]),
        shared_pipeline("a cat", generator=seed, **said).images,
    ):
        assert np.abs(np.asarray(alone[0], int) - first).max() <= 1
