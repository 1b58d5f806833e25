"""The emoji's captions beside the plain English ones, as teacher learning on them reads them."""

import itertools
from collections.abc import Collection
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from training.captions import TEMPLATES, Captions, training_scene
from training.config import RunConfig
from training.emoji import centred, load_emoji, some_emoji
from training.grounds import GROUNDS, on_ground


class Named(NamedTuple):
    """A name in a caption: from which letter to which, and what it is in English."""

    start: int
    end: int
    english: str


class CaptionFields(Protocol):
    """What a stage's configuration says of its captions."""

    @property
    def run(self) -> RunConfig: ...
    @property
    def emoji(self) -> int: ...
    @property
    def counts(self) -> tuple[int, ...]: ...
    @property
    def keyword_share(self) -> float: ...
    @property
    def even_keywords(self) -> float: ...
    @property
    def strange_share(self) -> float: ...
    @property
    def ordered(self) -> bool: ...
    @property
    def own_words(self) -> bool: ...
    @property
    def apart_share(self) -> float: ...
    @property
    def ground_share(self) -> float: ...
    @property
    def languages(self) -> tuple[str, ...]: ...


class ParallelCaptions(torch.utils.data.Dataset):
    """Endless (caption in some language, plain English caption, names in the caption of several emoji).

    `near` are English names of emoji of which `apart_share` of the captions are.
    """

    items = None

    def __init__(self, config: CaptionFields, near: Collection[str] = ()) -> None:
        self.config, self.emoji = config, some_emoji(config.emoji)
        self.near = tuple(c for c in self.emoji.characters if self.emoji.names["en"][c] in near)
        self.captions = Captions(self.emoji, config.keyword_share, True, config.ordered)

    def __getitem__(self, index: int) -> tuple[str, str, list[Named]]:
        seed, characters = self.config.run.seed, self.emoji.characters
        if self.config.even_keywords:
            random = np.random.default_rng((seed, index, 8))
            if random.random() < self.config.even_keywords:
                return self.any_keyword(random)
        counts, share = self.config.counts, self.config.ground_share
        if self.near and np.random.default_rng((seed, index, 9)).random() < self.config.apart_share:
            characters, counts = self.near, (1,)
        scene = training_scene(seed, index, characters, counts, ground_share=share)
        random = np.random.default_rng((seed, index, 2))
        tag = self.captions.random_language(random, scene.characters, self.config.languages)
        caption = self.captions.caption(scene, tag, random)
        if self.config.strange_share and len(scene.placed) == 1 and not scene.ground:
            random = np.random.default_rng((seed, index, 7))  # 6 decides on the ground
            if random.random() < self.config.strange_share:
                caption = self.among_strangers(scene.characters[0], tag, random)
        return caption, self.captions.name(scene), self.named(caption, scene.characters, tag)

    def any_keyword(self, random: np.random.Generator) -> tuple[str, str, list[Named]]:
        """A keyword in the place of a scene, each of its language as likely as another.

        An emoji's keywords come up the less often the more it has, and half of the emoji have none.
        """
        tag = self.captions.random_language(random, (), self.config.languages)
        character, word = self.keywords[tag][int(random.integers(len(self.keywords[tag])))]
        return word, self.emoji.names["en"][character], []

    def named(self, caption: str, characters: tuple[str, ...], tag: str) -> list[Named]:
        """Where the names stand; nothing of a single one, whose caption is all its own."""
        found, place = list[Named](), 0
        for character in characters if self.config.own_words and len(characters) > 1 else ():
            name = self.emoji.names[tag][character]
            start = caption.index(name, place)
            place = start + len(name)
            found.append(Named(start, place, self.emoji.names["en"][character]))
        return found

    def among_strangers(self, character: str, tag: str, random: np.random.Generator) -> str:
        """The name among one to three words that say nothing of it: letters at random, or another's keyword.

        So a tower learns what is asked for, however it is asked.
        """
        letters, keywords = self.words[tag]
        words = [
            str(random.choice(keywords))
            if random.random() < 0.5
            else "".join(random.choice(letters, int(random.integers(2, 8))))
            for _ in range(int(random.integers(1, 4)))
        ]
        words.insert(int(random.integers(len(words) + 1)), self.emoji.names[tag][character])
        return (" " if any(" " in template for template in TEMPLATES[tag]) else "").join(words)

    @cached_property
    def words(self) -> dict[str, tuple[list[str], list[str]]]:
        """Letters and keywords of each language."""
        letters = {
            tag: {c for name in of.values() for c in name if c.isalpha()}
            for tag, of in self.emoji.names.items()
        }
        return {tag: (sorted(letters[tag]), [word for _, word in self.keywords[tag]]) for tag in letters}

    @cached_property
    def keywords(self) -> dict[str, list[tuple[str, str]]]:
        """(emoji, keyword) of each language."""
        return {
            tag: [(character, word) for character, words in of.items() for word in words]
            for tag, of in self.emoji.keywords.items()
        }

    def collate(self, samples: list[tuple[str, str, list[Named]]]) -> tuple[Any, ...]:
        """Sorted by length, so that the chunks in which they are encoded hold little padding."""
        texts, english, named = zip(*sorted(samples, key=lambda one: len(one[0].encode())), strict=True)
        both = list(texts), list(english)
        return (*both, list(named)) if self.config.own_words else both


def english_texts(config: CaptionFields) -> list[str]:
    """The English names, and where captions name grounds each on one of them."""
    names = load_emoji().names["en"]
    if not config.ground_share:
        return list(names.values())
    captions, grounds = Captions(load_emoji()), itertools.cycle(GROUNDS)
    return [*names.values(), *(captions.name(on_ground(centred(c), next(grounds))) for c in names)]


def places_of(targets: Tensor, several: int = 4, share: float = 0.5) -> Tensor:
    """(several, dim): what is added to the first name's target, the second's, and so on.

    The same directions in every run, of `share` of the root mean square of `targets` (texts, dim).
    """
    directions = torch.randn(several, targets.shape[1], generator=torch.Generator().manual_seed(0))
    return share * targets.square().mean().sqrt() * directions


def owners_of(tokenizer: Any, texts: list[str], named: list[list[Named]]) -> dict[tuple[int, int], int]:
    """(text, token) of each token that holds a letter of a name, and which one, counted through all texts."""
    with_names = [text for text, names in zip(texts, named, strict=True) if names]
    if not with_names:
        return {}
    offsets = iter(tokenizer(with_names, return_offsets_mapping=True, verbose=False)["offset_mapping"])
    found, number = dict[tuple[int, int], int](), 0
    for row, names in enumerate(named):
        of_text: Any = next(offsets) if names else ()
        for name in names:
            for token, (first, last) in enumerate(of_text):
                if first < name.end and last > name.start:
                    found[row, token] = number
            number += 1
    return found
