"""The small world: which emoji, which captions, what is held out."""

from pathlib import Path

import numpy as np
import pytest

from altdiffusion.languages import LANGUAGES
from training.captions import TEMPLATES, Captions, fill, held_out_pair
from training.contrast import ContrastConfig
from training.distill import DistillConfig
from training.emoji import centred, draw, held_out, load_emoji, pixels, random_scene, some_emoji
from training.parallel_captions import Named, ParallelCaptions, owners_of
from training.scenes import CaptionedScenes
from training.tokenizers import train_clip_tokenizer, train_xlmr_tokenizer


@pytest.fixture(scope="module")
def captions() -> Captions:
    return Captions(load_emoji())


def test_the_packages_hold_1364_emoji_with_a_name_in_all_languages(captions):
    emoji = captions.emoji
    assert len(emoji.characters) == 1364
    assert all(len(set(names.values())) == 1364 for names in emoji.names.values())
    assert [emoji.names[tag]["🦞"] for tag in ("en", "zh", "th", "tr")] == [
        "lobster",
        "龙虾",
        "กุ้งมังกร",
        "ıstakoz",
    ]


def test_a_scene_is_a_function_of_seed_and_index():
    choices = load_emoji().characters
    first = random_scene(3, 5, choices, counts=(1, 2, 3, 4), pastel=0.5)
    assert first == random_scene(3, 5, choices, counts=(1, 2, 3, 4), pastel=0.5)
    assert first != random_scene(3, 6, choices, counts=(1, 2, 3, 4), pastel=0.5)
    assert np.array_equal(np.asarray(draw(first, 64)), np.asarray(draw(first, 64)))


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_the_emoji_of_a_scene_differ_and_lie_inside_it(count):
    for index in range(50):
        scene = random_scene(0, index, load_emoji().characters, counts=(count,))
        assert len(set(scene.characters)) == count
        for placed in scene.placed:
            for centre in (placed.x, placed.y):
                assert placed.width / 2 - 1e-9 <= centre <= 1 - placed.width / 2 + 1e-9


def test_pixels_run_from_minus_one_to_one_and_white_is_one():
    images = pixels([centred("🦞"), centred("🌕")], 32)
    assert images.shape == (2, 3, 32, 32) and images.min() >= -1 and images.max() <= 1
    assert (images[:, :, 0, 0] == 1).all()


@pytest.mark.parametrize(
    "tag, expected",
    [
        ("en", "lobster, cat, and red apple"),
        ("zh", "龙虾、猫和红苹果"),
        ("de", "Hummer, Katze und roter Apfel"),
        ("ja", "ザリガニ、ネコ、赤リンゴ"),
    ],
)
def test_lists_follow_the_languages_own_grammar(captions, tag, expected):
    names = [captions.emoji.names[tag][c] for c in "🦞🐈🍎"]
    assert captions.listing(tag, names) == expected


def test_the_english_article_fits_the_name():
    assert fill("a picture of {a}", "apple") == "a picture of an apple"
    assert fill("{a}", "lobster") == "a lobster"
    assert fill("{} emoji", "lobster") == "lobster emoji"


def test_every_language_has_templates_that_take_a_name():
    assert set(TEMPLATES) == set(LANGUAGES)
    assert all("{}" in t or "{a}" in t for templates in TEMPLATES.values() for t in templates)


def test_training_captions_never_hold_what_is_held_out(captions):
    emoji = captions.emoji
    for index in range(3000):
        random = np.random.default_rng((0, index))
        scene = random_scene(0, index, emoji.characters)
        (character,) = scene.characters
        tag = captions.random_language(random, scene.characters)
        text = captions.caption(scene, tag, random)
        assert not captions.unseen_name(tag, character)
        assert text != fill(TEMPLATES[tag][-1], emoji.names[tag][character])
        hidden = set(emoji.keywords[tag][character]) - set(captions.seen_keywords(tag, character))
        assert text not in hidden


def test_the_towers_alone_learn_the_keywords_that_are_held_out(captions):
    settings = DistillConfig(Path(), Path(), counts=(1,), languages=("de",), keyword_share=1.0)
    emoji, pairs = captions.emoji, ParallelCaptions(settings)
    names = {name: c for c, name in emoji.names["en"].items()}
    seen = held = 0
    for caption, english, _ in (pairs[n] for n in range(3000)):
        character = names[english]
        seen += caption in captions.seen_keywords("de", character)
        held += caption in set(emoji.keywords["de"][character]) - set(captions.seen_keywords("de", character))
    assert 0.05 < held / (seen + held) < 0.15 and seen + held > 1000


def test_evenly_drawn_keywords_come_up_alike_whatever_their_emoji_has(captions):
    settings = DistillConfig(Path(), Path(), counts=(1, 2), languages=("pl", "en"), even_keywords=1.0)
    emoji, pairs = captions.emoji, ParallelCaptions(settings)
    names = {name: c for c, name in emoji.names["en"].items()}
    of_many = []
    for caption, english, named in (pairs[n] for n in range(3000)):
        words = next(w for tag in ("pl", "en") if caption in (w := emoji.keywords[tag][names[english]]))
        of_many.append(len(words) > 2)
        assert not named
    lengths = [len(words) for tag in ("pl", "en") for words in emoji.keywords[tag].values()]
    share = sum(length for length in lengths if length > 2) / sum(lengths)
    assert abs(sum(of_many) / len(of_many) - share) < 0.05


def test_a_name_among_strange_words_is_still_the_whole_of_what_is_asked(captions):
    settings = DistillConfig(Path(), Path(), counts=(1,), languages=("en", "zh"), strange_share=1.0)
    pairs, names = ParallelCaptions(settings), captions.emoji.names
    english = {name: c for c, name in names["en"].items()}
    for caption, whole, named in (pairs[n] for n in range(100)):
        found = [tag for tag in ("en", "zh") if names[tag][english[whole]] in caption]
        assert found and caption not in (names[tag][english[whole]] for tag in found) and not named
        spaces = caption.replace(names[found[0]][english[whole]], "").count(" ")
        assert spaces >= 1 if found == ["en"] else spaces == 0 or found != ["zh"]


def test_the_names_in_a_list_are_known_by_their_letters(captions):
    settings = DistillConfig(Path(), Path(), counts=(1, 2, 4), ordered=True, own_words=True)
    pairs, names, lists = ParallelCaptions(settings), captions.emoji.names, 0
    for caption, whole, named in (pairs[n] for n in range(300)):
        if not named:
            assert whole in names["en"].values()
            continue
        lists += 1
        assert captions.listing("en", [one.english for one in named]) == whole
        written = [caption[one.start : one.end] for one in named]
        assert any(captions.listing(tag, written) == caption for tag in names)
    assert lists > 150


def test_a_stage_that_learns_some_emoji_names_no_others(captions):
    chosen = some_emoji(5)
    everything = captions.emoji
    assert [chosen.characters[n] for n in (0, -1)] == [everything.characters[n] for n in (0, -1)]
    assert len(set(chosen.characters)) == 5 and some_emoji(0) is everything
    known = {everything.names["en"][c] for c in chosen.characters}
    settings = DistillConfig(
        Path(), Path(), emoji=5, counts=(1,), even_keywords=0.3, strange_share=0.3, keyword_share=0.3
    )
    pairs = ParallelCaptions(settings)
    assert {pairs[n][1] for n in range(200)} == known
    scenes = CaptionedScenes(ContrastConfig(Path(), emoji=5))
    shown = {c for n in range(60) for c in scenes[n][0].characters}
    assert shown == set(chosen.characters)
    for number in (-1, 1365):
        with pytest.raises(ValueError, match=rf"^emoji: {number}; allowed: 0 \(all\) to 1364$"):
            some_emoji(number)


def test_the_tokens_of_a_name_are_those_that_hold_its_letters(captions):
    tokenizer = train_xlmr_tokenizer(captions.corpus("en", "th"), 2000)
    names, patterns = captions.emoji.names, captions.emoji.list_patterns
    for tag in ("en", "th"):
        first, second = names[tag]["🦞"], names[tag]["🌈"]
        text = patterns[tag]["2"].format(first, second)
        named = [Named(text.index(name), text.index(name) + len(name), name) for name in (first, second)]
        ids = tokenizer(text)["input_ids"]
        found = owners_of(tokenizer, ["nothing", text, text], [[], named, named])
        own = [[n for (row, n), number in found.items() if (row, number) == (1, name)] for name in (0, 1)]
        assert [tokenizer.decode([ids[n] for n in tokens]).strip() for tokens in own] == [first, second]
        assert own[0][-1] < own[1][0] and 0 not in own[0] and len(ids) - 1 not in own[1]
        again = [(n, number - 2) for (row, n), number in found.items() if row == 2]
        assert again == [(n, number) for (row, n), number in found.items() if row == 1]


def test_a_language_that_is_named_three_times_is_drawn_three_times_as_often(captions):
    random = np.random.default_rng(0)
    drawn = [captions.random_language(random, ("🦞",), ("ar", "en", "ar", "ar")) for _ in range(2000)]
    assert set(drawn) == {"ar", "en"} and 0.72 < drawn.count("ar") / len(drawn) < 0.78


def test_held_out_shares_are_near_what_they_say(captions):
    emoji = captions.emoji
    names = [captions.unseen_name(tag, c) for tag in LANGUAGES if tag != "en" for c in emoji.characters]
    assert 0.015 < np.mean(names) < 0.025
    assert not any(captions.unseen_name("en", c) for c in emoji.characters)
    pairs = [held_out_pair((a, b)) for a, b in zip(emoji.characters, emoji.characters[7:], strict=False)]
    assert 0.06 < np.mean(pairs) < 0.14
    assert held_out_pair(("🦞", "🐈")) == held_out_pair(("🐈", "🦞"))
    assert not held_out(0.0, "anything") and held_out(1.0, "anything")


def test_the_student_tokenizer_has_xlmrs_ids_and_survives_saving(captions, tmp_path):
    tokenizer = train_xlmr_tokenizer(captions.corpus(), 12000)
    special = tokenizer.convert_tokens_to_ids(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    assert special == [0, 1, 2, 3, len(tokenizer) - 1]
    tokenizer.save_pretrained(tmp_path)
    again = type(tokenizer).from_pretrained(tmp_path)
    for text in ("a Lobster", "กุ้งมังกร", "كركند", "झींगा मछली", "ＬＯＢＳＴＥＲ", "ıstakoz"):
        ids = tokenizer(text).input_ids
        assert again(text).input_ids == ids and ids[0] == 0 and ids[-1] == 2 and 3 not in ids
    assert tokenizer("LOBSTER").input_ids == tokenizer("lobster").input_ids


def test_in_the_teachers_tokenizer_only_the_last_token_is_the_end_of_text(captions):
    tokenizer = train_clip_tokenizer(captions.corpus("en"), 2000)
    for text in ("a lobster", "a cat, a dog, and an apple", "rock 'n' roll (live)!", "50% & more"):
        ids = tokenizer(text).input_ids
        assert ids[0] == 0 and ids[-1] == 1 and 1 not in ids[:-1]
