"""Grounds that captions name by their colour, and scenes of several emoji in reading order."""

from pathlib import Path

import numpy as np
import pytest

from altdiffusion.languages import LANGUAGES
from bench.judge import FOREGROUND
from training.captions import TEMPLATES, Captions, fill, held_out_pair, training_scene
from training.contrast import ContrastConfig
from training.emoji import centred, draw, in_a_row, in_reading_order, in_rows_of_two, load_emoji, random_scene
from training.grounds import GROUNDS, PATTERNS, WORDS, grounded, held_out_ground, on_ground
from training.scenes import CaptionedScenes, group_of


@pytest.fixture(scope="module")
def captions() -> Captions:
    return Captions(load_emoji())


PLAIN = {
    "en": "lobster on an orange background",
    "zh": "橙色背景上的龙虾",
    "ja": "オレンジの背景のザリガニ",
    "hi": "नारंगी पृष्ठभूमि पर झींगा मछली",
    "ar": "كركند على خلفية برتقالية",
    "nl": "kreeft op een oranje achtergrond",
    "de": "Hummer auf orangefarbenem Hintergrund",
    "fr": "homard sur fond orange",
    "ru": "омар на оранжевом фоне",
}


@pytest.mark.parametrize("tag, expected", PLAIN.items())
def test_the_plain_caption_names_the_ground_in_the_languages_own_grammar(captions, tag, expected):
    assert captions.name(on_ground(centred("🦞"), "orange"), tag) == expected


def test_every_language_has_its_own_word_for_every_ground():
    assert PATTERNS.keys() == WORDS.keys() == LANGUAGES.keys()
    for tag, patterns in PATTERNS.items():
        words = [word for ground in GROUNDS for word in WORDS[tag][ground]]
        assert len(set(words)) == len(words) >= len(GROUNDS)
        for pattern in patterns:
            assert pattern.count("{colour}") == pattern.count("{}") + pattern.count("{a}") == 1


def test_a_training_caption_keeps_name_and_colour_whole_and_no_held_out_template(captions):
    random, scene = np.random.default_rng(0), on_ground(centred("🦞"), "blue")
    for tag in LANGUAGES:
        name = captions.emoji.names[tag]["🦞"]
        texts = {captions.caption(scene, tag, random) for _ in range(60)}
        assert len(texts) > len(PATTERNS[tag])
        assert all(name in text and any(word in text for word in WORDS[tag]["blue"]) for text in texts)
        held = fill(TEMPLATES[tag][-1], name)
        assert not any(held in text for text in texts if held not in name)
    texts = {captions.caption(scene, "en", random) for _ in range(60)}
    expected = ("a lobster", "a picture of a lobster", "lobster emoji")
    assert texts >= {f"{phrase} on a blue background" for phrase in expected}
    chinese = {captions.caption(scene, "zh", random) for _ in range(60)}
    assert "一张蓝色背景上的龙虾的图片" in chinese


def test_the_ground_is_drawn_in_its_colour_and_no_two_of_them_look_alike():
    for ground, colour in GROUNDS.items():
        assert draw(on_ground(centred("🦞"), ground), 32).getpixel((0, 0)) == colour
        for other in GROUNDS.keys() - {ground}:
            assert max(abs(a - b) for a, b in zip(colour, GROUNDS[other], strict=True)) > FOREGROUND


def test_a_share_of_the_scenes_gets_a_ground_and_what_is_held_out_is_not_among_them():
    characters, counts = load_emoji().characters, (1, 2, 4)
    plain = [training_scene(3, n, characters, counts, 0.5) for n in range(300)]
    some = [training_scene(3, n, characters, counts, 0.5, ground_share=0.4) for n in range(300)]
    named = [scene for scene in some if scene.ground]
    assert 0.3 < len(named) / len(some) < 0.5
    assert not any(held_out_ground(scene.characters, scene.ground) for scene in named)
    assert all(one.placed == other.placed for one, other in zip(plain, some, strict=True))
    assert all(one == other for one, other in zip(plain, some, strict=True) if not other.ground)
    held = [held_out_ground((c,), ground) for c in characters for ground in GROUNDS]
    assert 0.08 < np.mean(held) < 0.12
    assert grounded(0, 1, centred("🦞"), 0.0) == centred("🦞")


def test_rows_of_two_are_in_reading_order_and_of_one_size():
    three, four = in_rows_of_two(("a", "b", "c")), in_rows_of_two(("a", "b", "c", "d"))
    assert [(p.character, p.x, p.y) for p in three.placed] == [
        ("a", 0.25, 0.25),
        ("b", 0.75, 0.25),
        ("c", 0.5, 0.75),
    ]
    assert [(p.x, p.y) for p in four.placed] == [(0.25, 0.25), (0.75, 0.25), (0.25, 0.75), (0.75, 0.75)]
    assert in_rows_of_two(("a", "b")) == in_a_row(("a", "b"))
    assert {p.width for p in (*three.placed, *four.placed)} == {in_a_row(("a", "b")).placed[0].width}


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_reading_order_is_row_by_row_and_turned_round_the_places_stay(size):
    for index in range(40):
        scene = random_scene(0, index, load_emoji().characters, counts=(size,))
        read, turned = in_reading_order(scene), in_reading_order(scene, turned=True)
        assert sorted(read.placed, key=str) == sorted(scene.placed, key=str)
        for before, after in zip(read.placed, read.placed[1:], strict=False):
            same_row = abs(before.y - after.y) < 0.25
            assert before.x < after.x if same_row else before.y < after.y
        assert turned.characters == read.characters[::-1]
        assert [(p.x, p.y) for p in turned.placed] == [(p.x, p.y) for p in read.placed]


def test_an_ordered_batch_holds_both_orders_of_the_same_emoji_as_two_things():
    data = CaptionedScenes(ContrastConfig(Path(), languages=("en",), counts=(1, 2, 3), ordered=True))
    scenes, texts = zip(*(data[n] for n in range(60)), strict=True)
    several = [n for n in range(0, 60, 2) if len(scenes[n].placed) > 1]
    assert several and all(scenes[n + 1].characters == scenes[n].characters[::-1] for n in several)
    assert all(group_of(scenes[n], True) != group_of(scenes[n + 1], True) for n in several)
    assert all(group_of(scenes[n]) == group_of(scenes[n + 1]) for n in several)
    names = load_emoji().names["en"]
    places = [
        [text.find(names[c]) for c in scene.characters] for scene, text in zip(scenes, texts, strict=True)
    ]
    assert all(places[n][0] < places[n][1] for n in several if len(places[n]) == 2)
    assert not any(held_out_pair(scene.characters) for scene in scenes)


def test_a_scene_on_a_ground_is_another_thing_than_the_same_emoji_on_any():
    lobster = centred("🦞")
    assert group_of(on_ground(lobster, "red")) not in (
        group_of(lobster),
        group_of(on_ground(lobster, "blue")),
    )
