"""R@1 of names among the English ones, and which of them training showed."""

import torch
from torch import Tensor

from training.captions import Captions
from training.emoji import some_emoji
from training.names import directions, found_and_seen, name_retrieval, shares

EMOJI = some_emoji(136)


def by_words(texts: list[str]) -> Tensor:
    """A direction of its own for each name's emoji: a tower that knows every language."""
    numbers = {name: n for of in EMOJI.names.values() for n, name in enumerate(of.values())}
    return torch.eye(len(EMOJI.characters))[[numbers[text] for text in texts]]


def by_english(texts: list[str]) -> Tensor:
    """Of a tower that takes every word that is not English for the first emoji."""
    numbers = {name: n for n, name in enumerate(EMOJI.names["en"].values())}
    return torch.eye(len(EMOJI.characters))[[numbers.get(text, 0) for text in texts]]


def test_a_tower_that_knows_all_names_finds_all_and_one_that_knows_english_finds_those():
    english = directions(by_english, EMOJI, "en")
    found, seen = found_and_seen(by_english, EMOJI, "en", english)
    assert all(found) and all(seen)
    found, _ = found_and_seen(by_english, EMOJI, "th", english)
    assert sum(found) == 1
    captions = Captions(EMOJI)
    _, seen = found_and_seen(by_words, EMOJI, "th", english)
    assert seen == [not captions.unseen_name("th", c) for c in EMOJI.characters] and not all(seen)


def test_figures_are_of_the_emoji_that_are_asked_for():
    figures = name_retrieval(by_words, 136)
    assert figures["th"] > 0.9 and figures["unseen"] > 0.8
    held = sum(Captions(EMOJI).unseen_name(tag, c) for tag in EMOJI.names for c in EMOJI.characters)
    assert figures["unseen_names"] == held > 0


def test_names_that_training_never_showed_are_counted_apart():
    assert shares([True, False, True], [True, True, False]) == {"seen": 0.5, "unseen": 1.0, "unseen_names": 1}
    assert shares([True], [True])["unseen"] == 0.0
