"""The text tower of a text-to-image stage, whose states are kept: as many rows as a text has tokens, and a
pad.
"""

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer

from altdiffusion.conditioning import MAX_LENGTH, expand
from training.config import RunConfig
from training.kept import Kept
from training.tower import TextTower


class KeptTower:
    """Stands for a `TextTower`. `kept.keep` fills the cache; texts that are not in it are encoded as ever."""

    def __init__(self, folder: Path, cache: Path) -> None:
        self.folder = folder
        config: Any = AutoConfig.from_pretrained(folder)
        self.multilingual = config.model_type == "altclip"
        text = config.text_config
        self.width: int = text.project_dim if self.multilingual else text.hidden_size
        self.kept = Kept(
            "text states",
            folder,
            cache,
            lambda: TextTower(folder).to(self.kept.device),
            TextTower.trimmed,
            self.lengths,
            self.width,
            repr(MAX_LENGTH),
        )

    @cached_property
    def tokenizer(self) -> Any:
        return AutoTokenizer.from_pretrained(self.folder)

    @property
    def model(self) -> Any:
        return self.kept.model.model

    def to(self, _device: torch.device) -> "KeptTower":
        return self  # it is where accelerate's state is

    def lengths(self, texts: list[str]) -> list[int]:
        """Rows of each text's states."""
        if not self.multilingual:
            return [MAX_LENGTH] * len(texts)
        return [min(len(ids) + 1, MAX_LENGTH) for ids in self.tokenizer(texts, verbose=False).input_ids]

    def encode(self, texts: list[str]) -> Float[Tensor, "batch tokens dim"]:
        """As the tower's: 77 rows each."""
        return torch.cat([expand(states[None]) for states in self.kept(texts)])


def open_tower(folder: Path, cache: Path | None) -> TextTower | KeptTower:
    return TextTower(folder) if cache is None else KeptTower(folder, cache)


def full_states(tower: TextTower | KeptTower, texts: list[str]) -> Float[Tensor, "batch tokens dim"]:
    """The states in full precision, whatever a run computes in; with a cache they are kept."""
    if isinstance(tower, KeptTower):
        tower.kept.keep(texts, RunConfig())
    return tower.encode(texts)
