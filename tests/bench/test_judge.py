"""The judge of pictures: what it must not be fooled by."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from bench.judge import Judge, descriptor, ground_of, held_out_groups, plain
from training.captions import held_out_pair
from training.emoji import Placed, Scene, centred, draw, in_a_row, in_rows_of_two, random_scene
from training.grounds import GROUNDS, on_ground


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge()


@pytest.mark.parametrize("width", [0.55, 0.7, 0.9])
@pytest.mark.parametrize("ground", [(255, 255, 255), (230, 245, 210)])
def test_place_size_and_ground_do_not_matter(judge, width, ground):
    shift = (1 - width) / 2
    scenes = [
        Scene((Placed(c, 0.5 + shift * side, 0.5, width),), ground, ground)
        for c in "🦞🍎🐧🚲"
        for side in (-1, 1)
    ]
    ranks = judge.ranks([draw(scene, 64) for scene in scenes], [s.characters[0] for s in scenes])
    assert (ranks == 0).all()


def test_it_is_right_on_at_least_98_in_100_real_pictures(judge):
    chosen = judge.characters[::7]
    scenes = [plain(random_scene(7, n, (c,), pastel=0.5)) for n, c in enumerate(chosen)]
    ranks = judge.ranks([draw(scene, 64) for scene in scenes], list(chosen))
    assert (ranks == 0).mean() >= 0.98


def test_noise_and_blank_pictures_are_not_the_wanted_emoji(judge):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    blank = Image.new("RGB", (64, 64), (200, 200, 200))
    assert (judge.ranks([noise, blank], ["🦞", "🦞"]) > 0).all()
    assert (descriptor(blank) == 1).all()


def test_emoji_that_differ_in_size_alone_count_as_one(judge):
    scene = Scene((Placed("◻", 0.5, 0.5, 0.85),))
    assert judge.ranks([draw(scene, 64)], ["⬜"])[0] == 0


@pytest.mark.parametrize("ground", [(255, 255, 255), (230, 245, 210)])
@pytest.mark.parametrize("size", [2, 3, 4])
def test_all_of_several_are_found_wherever_they_stand(judge, ground, size):
    groups = held_out_groups(60, size)
    side = 64 if size == 2 else 128
    scenes = [random_scene(3, n, tuple(group), counts=(size,)) for n, group in enumerate(groups)]
    drawn = [draw(replace(scene, top=ground, bottom=ground), side) for scene in scenes]
    assert (judge.group_ranks(drawn, groups) < 5).mean() >= 0.95


def test_a_third_emoji_is_found_in_the_middle_below(judge):
    groups = held_out_groups(60, 3)
    drawn = [draw(in_rows_of_two(tuple(group)), 128) for group in groups]
    assert (judge.group_ranks(drawn, groups) < 5).mean() >= 0.95


def test_one_of_two_is_not_both(judge):
    drawn = [draw(in_a_row(("🦞", "🦞")), 64), draw(centred("🦞"), 64), draw(in_a_row(("🦞", "🍎")), 64)]
    assert (judge.group_ranks(drawn, ["🦞🍎"] * 3) < 5).tolist() == [False, False, True]


def test_three_of_four_are_not_all(judge):
    drawn = [draw(in_rows_of_two(tuple(group)), 128) for group in ("🦞🍎🐧🚲", "🦞🍎🐧🐧", "🦞🍎🐧")]
    assert (judge.group_ranks(drawn, ["🚲🐧🍎🦞"] * 3) < 5).tolist() == [True, False, False]


@pytest.mark.parametrize("size", [2, 3, 4])
def test_held_out_groups_are_always_the_same_and_never_trained_on(size):
    groups = held_out_groups(20, size)
    assert groups == held_out_groups(30, size)[:20]
    assert all(held_out_pair(tuple(group)) and len(group) == size for group in groups)


def test_a_ground_is_told_by_its_border():
    for ground in GROUNDS:
        noise = np.random.default_rng(0).integers(-12, 13, (64, 64, 3))
        drawn = np.asarray(draw(on_ground(centred("🦞"), ground), 64)) + noise
        assert ground_of(Image.fromarray(drawn.clip(0, 255).astype(np.uint8))) == ground
