"""The emoji as a text-to-image stage trains on them: their pictures' latents, and captions."""

from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from training.captions import Captions
from training.config import RunConfig
from training.emoji import Scene, load_emoji, random_scene


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
    def caption_dropout(self) -> float: ...


class CaptionedLatents(torch.utils.data.Dataset):
    """Endless (latents, caption): a cached picture of a covered emoji, its caption in some language."""

    items = None

    def __init__(self, config: EmojiFields, latents: Tensor, scenes: list[Scene]) -> None:
        self.config, self.latents, self.scenes = config, latents, scenes
        self.captions = Captions(load_emoji())

    def __getitem__(self, index: int) -> tuple[Tensor, str]:
        random = np.random.default_rng((self.config.run.seed, index, 3))
        number = int(random.integers(len(self.scenes)))
        scene = self.scenes[number]
        tag = self.captions.random_language(random, scene.characters, self.config.languages)
        dropped = random.random() < self.config.caption_dropout
        return self.latents[number], "" if dropped else self.captions.caption(scene, tag, random)

    def collate(self, items: list[tuple[Tensor, str]]) -> tuple[Tensor, list[str]]:
        latents, texts = zip(*items, strict=True)
        return torch.stack(latents), list(texts)


def chosen_scenes(config: EmojiFields) -> list[Scene]:
    """`variants` scenes of each emoji that is drawn: one emoji, near the middle, on white."""
    emoji = load_emoji()
    drawn = emoji.covered
    if config.characters:
        drawn = tuple(config.characters)
        if strange := [c for c in drawn if c not in emoji.characters]:
            raise ValueError(f"characters: {strange[0]!r} is none; allowed: the emoji of the font")
    elif config.emoji:
        drawn = tuple(
            drawn[round(i * (len(drawn) - 1) / max(1, config.emoji - 1))] for i in range(config.emoji)
        )
    spread = 0.3 if config.variants > 1 else 0.0
    return [
        random_scene(config.run.seed, 1000 * ord(c) + n, (c,), spread=spread)
        for c in drawn
        for n in range(config.variants)
    ]


def swap_captions(languages: tuple[str, ...]) -> list[str]:
    """What the two towers of a swap are compared on: the names of all emoji, and no text."""
    emoji = load_emoji()
    return ["", *(emoji.names[tag][c] for tag in languages or ("en",) for c in emoji.characters)]
