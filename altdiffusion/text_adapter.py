"""A small net between a text tower and a UNet that stays as it is (PEA-Diffusion, Ma et al. 2024, section 3).

So one AltCLIP draws with any Stable Diffusion 1 or 2, and with the LoRAs and ControlNets made for it. The
tower carries the net behind its `transformation`: whatever encodes with the tower goes through it. A saved
pipeline holds it in `adapter/`, which plain diffusers does not read; one that is a linear map alone is better
folded into the tower, which stays a stock one.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AltCLIPTextModel

from altdiffusion import bundled, checkpoints
from altdiffusion.checkpoints import ADAPTER, adapter_config
from altdiffusion.reading import refusal


class TextAdapter(ModelMixin, ConfigMixin):
    """linear(x) + net(x), for each token by itself; with `hidden_layers` 0 the linear map alone.

    It starts as the linear map, which is the identity where both widths are the same: the net's last layer
    is zero.
    """

    @register_to_config
    def __init__(self, in_dim: int, out_dim: int, hidden_dim: int = 1024, hidden_layers: int = 3) -> None:
        super().__init__()
        self.linear = nn.Linear(in_dim, out_dim)
        nn.init.zeros_(self.linear.bias)
        if in_dim == out_dim:
            nn.init.eye_(self.linear.weight)
        self.net = None
        if hidden_layers:
            layers: list[nn.Module] = [nn.LayerNorm(in_dim)]
            for width in (in_dim, *[hidden_dim] * (hidden_layers - 1)):
                layers += [nn.Linear(width, hidden_dim), nn.GELU()]
            last = nn.Linear(hidden_dim, out_dim)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
            self.net = nn.Sequential(*layers, last)

    def forward(self, states: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens out"]:
        mapped = self.linear(states)
        return mapped if self.net is None else mapped + self.net(states)

    @torch.no_grad()
    def fit(
        self,
        states: Float[Tensor, "texts dim"],
        targets: Float[Tensor, "texts out"],
        ridge: float = 1e-3,
    ) -> float:
        """Sets the linear map by least squares, with a `ridge` in units of the states' mean variance.

        Returns the share of the targets' variance that it explains.
        """
        states, targets = states.double(), targets.double()
        source, target = states - states.mean(0), targets - targets.mean(0)
        spread = source.T @ source
        damping = ridge * spread.diagonal().mean() * torch.eye(len(spread), dtype=spread.dtype)
        change = torch.linalg.solve(spread + damping.to(spread.device), source.T @ target)
        self.linear.weight.copy_(change.T)
        self.linear.bias.copy_(targets.mean(0) - states.mean(0) @ change)
        return 1 - ((source @ change - target).square().sum() / target.square().sum()).item()


class _Through:
    """What the tower calls behind its `transformation`; a class, so that it is copied with the tower."""

    def __init__(self, adapter: TextAdapter) -> None:
        self.adapter = adapter

    def __call__(self, _module: nn.Module, _arguments: Any, states: Tensor) -> Tensor:
        return self.adapter(states)


def adapter_of(text_encoder: Any) -> TextAdapter | None:
    """The adapter that the tower carries."""
    return getattr(text_encoder, "text_adapter", None)


def attach(text_encoder: AltCLIPTextModel, adapter: TextAdapter) -> None:
    """Puts the adapter behind the tower, in the place of one that it carries."""
    width = text_encoder.config.project_dim
    if adapter.config.in_dim != width:
        found = f"takes {adapter.config.in_dim} values a token"
        raise ValueError(f"adapter: it {found}; allowed with this text encoder: {width}")
    detach(text_encoder)
    weight = text_encoder.transformation.weight
    tower: Any = text_encoder
    tower.text_adapter = nn.Module.to(adapter, weight.device, weight.dtype)  # diffusers' own warns of dtypes
    tower._text_adapter_hook = text_encoder.transformation.register_forward_hook(_Through(adapter))


def detach(text_encoder: AltCLIPTextModel) -> TextAdapter | None:
    """Takes the adapter off, and returns it."""
    tower: Any = text_encoder
    adapter = adapter_of(tower)
    if adapter is not None:
        tower._text_adapter_hook.remove()
        del tower._text_adapter_hook, tower.text_adapter
    return adapter


@contextmanager
def aside(text_encoder: Any) -> Iterator[TextAdapter | None]:
    """The tower without its adapter, for what must be stock."""
    adapter = None if text_encoder is None else detach(text_encoder)
    try:
        yield adapter
    finally:
        if adapter is not None:
            attach(text_encoder, adapter)


@torch.no_grad()
def fold(text_encoder: AltCLIPTextModel) -> None:
    """Multiplies a linear adapter into the tower's `transformation`, which gives the same states without it.

    The tower gets a `transformation` of its own: an AltCLIP on the same parameters keeps its features.
    """
    adapter = adapter_of(text_encoder)
    if adapter is None or adapter.net is not None:
        found = "no adapter" if adapter is None else f"an adapter of {adapter.config.hidden_layers} layers"
        raise ValueError(f"adapter: the text encoder has {found}; allowed: one with hidden_layers 0")
    detach(text_encoder)
    old, linear = text_encoder.transformation, adapter.linear
    new = nn.Linear(old.in_features, linear.out_features).to(old.weight.device, old.weight.dtype)
    matrix = linear.weight.double()
    new.weight.copy_(matrix @ old.weight.double())
    new.bias.copy_(matrix @ old.bias.double() + linear.bias.double())
    text_encoder.transformation = new.requires_grad_(old.weight.requires_grad).train(old.training)
    text_encoder.config.project_dim = linear.out_features


def load(folder: str | os.PathLike, *, dtype: torch.dtype | None = None) -> TextAdapter:
    """The adapter in `folder`, or in the `adapter/` of a model's folder; every tensor must fit."""
    folder = Path(folder).expanduser()
    place = next((place for place in (folder / ADAPTER, folder) if adapter_config(place)), None)
    if place is None:
        raise refusal(folder, "holds no adapter; allowed: its folder, or that of a model that has one")
    return checkpoints.load_strict(TextAdapter, place, dtype=dtype)


def remove(model_folder: Path) -> None:
    """An adapter that lies in the folder of a model that is saved without one."""
    if adapter_config(model_folder / ADAPTER):
        shutil.rmtree(model_folder / ADAPTER)
        bundled.write_manifest(model_folder)
