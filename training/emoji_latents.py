"""The emoji as a text-to-image stage trains on them: their pictures' latents, and captions."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations, count, islice
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from training.captions import Captions, held_out_pair
from training.config import RunConfig
from training.emoji import Scene, in_a_row, in_rows_of_two, load_emoji, random_scene, some_emoji
from training.grounds import GROUNDS, grounded, held_out_ground, on_ground
from training.samples import shorten


@dataclass(frozen=True)
class ScenesConfig:
    """Scenes beside those of one emoji, or two, on white; and which of the emoji come up more often."""

    groups: int = 0
    """Pictures of two to four emoji in rows of two, which their caption names in reading order."""
    group_share: float = 0.3
    """Share of the samples that are such groups, where there are any."""
    ground_share: float = 0.0
    """Share of the samples that are one emoji on a ground whose colour the caption names, each on all grounds
    that it is not held out on; and share of the groups on such a ground."""
    often: str = ""
    """Emoji that come up more often by themselves, such as those that are hard to tell from each other."""
    often_share: float = 0.3
    """Share of the samples that are one of them, where there are any."""

    def __post_init__(self) -> None:
        if self.groups < 0:
            raise ValueError(f"groups: {self.groups}; allowed: 0 and more")
        for name in ("group_share", "ground_share", "often_share"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)}; allowed: 0 to below 1")

    def check_shares(self, others: float) -> None:
        """Refuses shares that leave nothing to the pictures of one emoji on white."""
        total = others + self.ground_share + (self.group_share if self.groups else 0)
        total += self.often_share if self.often else 0
        if total >= 1:
            raise ValueError(f"scenes: all shares together are {total:g}; allowed: below 1")


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
    def scenes(self) -> ScenesConfig: ...
    @property
    def caption_dropout(self) -> float: ...


class CaptionedLatents(torch.utils.data.Dataset):
    """Endless (latents, caption): a cached picture of the emoji, its caption in some language.

    A caption of several names them in reading order, in the language's own list pattern.
    """

    items = None

    def __init__(self, config: EmojiFields, latents: Tensor, scenes: list[Scene]) -> None:
        self.config, self.latents, self.scenes = config, latents, scenes
        self.captions = Captions(load_emoji(), ordered=True)
        more = config.scenes
        grounds = sum(1 for scene in scenes if scene.ground and len(scene.placed) == 1)
        kinds = (
            (config.pairs, config.pair_share),
            (more.groups, more.group_share),
            (grounds, more.ground_share),
            (config.variants * len(more.often), more.often_share),
        )
        self.kinds = [(number, share) for number, share in kinds if number]
        self.singles = len(scenes) - sum(number for number, _ in self.kinds)

    def __getitem__(self, index: int) -> tuple[Tensor, str]:
        random = np.random.default_rng((self.config.run.seed, index, 3))
        first, of_kind = self.kind(random.random()) if self.kinds else (0, self.singles)
        number = first + int(random.integers(of_kind))
        scene = self.scenes[number]
        tag = self.captions.random_language(random, scene.characters, self.config.languages)
        dropped = random.random() < self.config.caption_dropout
        return self.latents[number], "" if dropped else self.captions.caption(scene, tag, random)

    def kind(self, drawn: float) -> tuple[int, int]:
        """The first scene of a kind and how many there are: `drawn`, from 0 to 1, falls into its share."""
        first = self.singles
        for number, share in self.kinds:
            if drawn < share:
                return first, number
            first, drawn = first + number, drawn - share
        return 0, self.singles

    def collate(self, items: list[tuple[Tensor, str]]) -> tuple[Tensor, list[str]]:
        latents, texts = zip(*items, strict=True)
        return torch.stack(latents), list(texts)


def chosen_scenes(config: EmojiFields) -> list[Scene]:
    """`variants` scenes of each emoji that is drawn, near the middle, on white; `pairs` scenes of two of them
    side by side; `scenes.groups` of two to four; each by itself on every ground, if these have a share; and
    those of `scenes.often` once more. Nothing that is held out is among them."""
    drawn = chosen_emoji(config)
    seed, more = config.run.seed, config.scenes
    spread = 0.3 if config.variants > 1 else 0.0

    def alone_near_the_middle(characters: Iterable[str]) -> list[Scene]:
        return [
            random_scene(seed, 1000 * ord(c) + n, (c,), spread=spread)
            for c in characters
            for n in range(config.variants)
        ]

    different = tuple(dict.fromkeys(drawn))
    pairs = islice(random_pairs(seed, different), config.pairs)
    groups = islice(random_groups(seed, different, more.ground_share), more.groups)
    alone = [in_a_row((c,)) for c in (different if more.ground_share else ())]
    grounds = [
        on_ground(scene, ground)
        for scene in alone
        for ground in GROUNDS
        if not held_out_ground(scene.characters, ground)
    ]
    return [
        *alone_near_the_middle(drawn),
        *pairs,
        *groups,
        *grounds,
        *alone_near_the_middle(more.often),
    ]


def chosen_emoji(config: EmojiFields) -> tuple[str, ...]:
    """Those that are drawn."""
    known = load_emoji().characters
    for name, characters in (("characters", config.characters), ("scenes.often", config.scenes.often)):
        if strange := [c for c in characters if c not in known]:
            raise ValueError(f"{name}: {strange[0]!r} is none; allowed: the emoji of the font")
    return tuple(config.characters) or some_emoji(config.emoji).characters


def random_pairs(seed: int, characters: tuple[str, ...]) -> Iterator[Scene]:
    """Two of the emoji side by side, on and on; a pair that is held out is passed over."""
    check_pairs("pairs", characters)
    random = np.random.default_rng((seed, 4))
    while True:
        pair = tuple(characters[n] for n in random.choice(len(characters), 2, replace=False))
        if not held_out_pair(pair):
            yield in_a_row(pair)


def random_groups(seed: int, characters: tuple[str, ...], ground_share: float) -> Iterator[Scene]:
    """Two to four of the emoji, a share of them on a ground with a name, on and on."""
    check_pairs("scenes.groups", characters)
    random = np.random.default_rng((seed, 5))
    for index in count():
        size = min(2 + int(random.integers(3)), len(characters))
        group = tuple(characters[n] for n in random.choice(len(characters), size, replace=False))
        if not held_out_pair(group):
            yield grounded(seed, index, in_rows_of_two(group), ground_share)


def check_pairs(name: str, characters: tuple[str, ...]) -> None:
    if all(held_out_pair(pair) for pair in combinations(characters, 2)):
        raise ValueError(f"{name}: of {shorten(''.join(characters))!r} there is none; allowed: 0")


def swap_captions(languages: tuple[str, ...]) -> list[str]:
    """What the two towers of a swap are compared on: the names of all emoji, and no text."""
    emoji = load_emoji()
    return ["", *(emoji.names[tag][c] for tag in languages or ("en",) for c in emoji.characters)]
