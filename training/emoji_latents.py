"""The emoji as a text-to-image stage trains on them: their pictures' latents, and captions."""

from collections.abc import Iterator
from functools import partial
from itertools import combinations, islice
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from training.captions import Captions, held_out_pair
from training.config import RunConfig
from training.emoji import Scene, in_a_row, load_emoji, random_scene
from training.samples import shorten


class EmojiFields(Protocol):
    """What a stage's configuration says of its emoji."""

    @property
    def run(self) -> RunConfig: ...
    @property
    def languages(self) -> tuple[str, ...]: ...
    @property
    def emoji(self) -> int: ...
    @property
    def characters(self) -> str: ...
    @property
    def variants(self) -> int: ...
    @property
    def pairs(self) -> int: ...
    @property
    def pair_share(self) -> float: ...
    @property
    def caption_dropout(self) -> float: ...


class CaptionedLatents(torch.utils.data.Dataset):
    """Endless (latents, caption): a cached picture of one emoji or two, its caption in some language.

    A caption of two names them from left to right, in the language's own list pattern.
    """

    items = None

    def __init__(self, config: EmojiFields, latents: Tensor, scenes: list[Scene]) -> None:
        self.config, self.latents, self.scenes = config, latents, scenes
        self.captions = Captions(load_emoji())
        self.singles = len(scenes) - config.pairs

    def __getitem__(self, index: int) -> tuple[Tensor, str]:
        random = np.random.default_rng((self.config.run.seed, index, 3))
        if self.config.pairs and random.random() < self.config.pair_share:
            number, write = self.singles + int(random.integers(self.config.pairs)), self.captions.name
        else:
            number, write = int(random.integers(self.singles)), partial(self.captions.caption, random=random)
        scene = self.scenes[number]
        tag = self.captions.random_language(random, scene.characters, self.config.languages)
        dropped = random.random() < self.config.caption_dropout
        return self.latents[number], "" if dropped else write(scene, tag)

    def collate(self, items: list[tuple[Tensor, str]]) -> tuple[Tensor, list[str]]:
        latents, texts = zip(*items, strict=True)
        return torch.stack(latents), list(texts)


def chosen_scenes(config: EmojiFields) -> list[Scene]:
    """`variants` scenes of each emoji that is drawn, near the middle, on white; then `pairs` scenes of two of
    them side by side, none of a pair that is held out."""
    emoji = load_emoji()
    drawn = emoji.characters
    if config.characters:
        drawn = tuple(config.characters)
        if strange := [c for c in drawn if c not in emoji.characters]:
            raise ValueError(f"characters: {strange[0]!r} is none; allowed: the emoji of the font")
    elif config.emoji:
        drawn = tuple(
            drawn[round(i * (len(drawn) - 1) / max(1, config.emoji - 1))] for i in range(config.emoji)
        )
    spread = 0.3 if config.variants > 1 else 0.0
    singles = [
        random_scene(config.run.seed, 1000 * ord(c) + n, (c,), spread=spread)
        for c in drawn
        for n in range(config.variants)
    ]
    return [*singles, *islice(random_pairs(config.run.seed, tuple(dict.fromkeys(drawn))), config.pairs)]


def random_pairs(seed: int, characters: tuple[str, ...]) -> Iterator[Scene]:
    """Two of the emoji side by side, on and on; a pair that is held out is passed over."""
    random = np.random.default_rng((seed, 4))
    if all(held_out_pair(pair) for pair in combinations(characters, 2)):
        raise ValueError(f"pairs: of {shorten(''.join(characters))!r} there is none; allowed: 0")
    while True:
        pair = tuple(characters[n] for n in random.choice(len(characters), 2, replace=False))
        if not held_out_pair(pair):
            yield in_a_row(pair)


def swap_captions(languages: tuple[str, ...]) -> list[str]:
    """What the two towers of a swap are compared on: the names of all emoji, and no text."""
    emoji = load_emoji()
    return ["", *(emoji.names[tag][c] for tag in languages or ("en",) for c in emoji.characters)]
