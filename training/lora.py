"""A LoRA beside a frozen UNet (Hu et al. 2022): a new one, or an exported one that training goes on from."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft
from peft.utils import get_peft_model_state_dict
from safetensors import SafetensorError

from altdiffusion.reading import one_line
from altdiffusion.requests import shorten
from altdiffusion.trainable import add_lora, select_parameters

RANK = 4


@dataclass(frozen=True)
class LoraConfig:
    """The low-rank pairs beside the queries, keys, values and outputs of every attention."""

    rank: int = RANK
    alpha: int | None = None
    """The pairs count alpha / rank times. None: as the rank, once."""
    start: Path | None = None
    """LoRA of the UNet to go on from: a file that diffusers loads, or its folder. Its rank and alpha hold."""

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"lora.rank: {self.rank}; allowed: 1 and up")
        if self.start is None:
            return
        if not self.start.exists():
            raise ValueError(f"lora.start: no file or folder {shorten(str(self.start))}")
        if (self.rank, self.alpha) != (RANK, None):
            raise ValueError(
                f"lora.rank: {self.rank} and alpha {self.alpha} with lora.start; allowed: those of its file"
            )


def prepare(unet: Any, config: LoraConfig) -> None:
    """Puts the pairs beside the UNet."""
    if config.start is None:
        add_lora(unet, config.rank, config.alpha)
    else:
        load(unet, config.start)


def load(unet: Any, path: Path) -> None:
    """Every tensor of the file must find its place: what diffusers leaves out would be lost at the export."""
    what = f"lora.start: {shorten(str(path))}"
    try:
        state, alphas, settings = StableDiffusionPipeline.lora_state_dict(
            path, unet_config=unet.config, return_lora_metadata=True
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(
            f"{what} holds no LoRA ({one_line(error)}); allowed: a file that diffusers loads"
        ) from None
    if strange := [name for name in state if not name.startswith("unet.")]:
        raise ValueError(f"{what} has {shorten(strange[0])}; allowed: a LoRA of the UNet alone")
    pairs = {name.removeprefix("unet."): tensor for name, tensor in state.items()}
    if not any(".lora_A." in name for name in pairs):
        pairs = convert_unet_state_dict_to_peft(pairs)
    named = {f"unet.{name}": tensor for name, tensor in pairs.items()}
    try:
        unet.load_lora_adapter(
            named, prefix="unet", network_alphas=alphas, adapter_name="default", metadata=settings
        )
    except (RuntimeError, ValueError, IndexError) as error:  # the last where it finds no pair at all
        raise ValueError(
            f"{what} does not fit the UNet ({one_line(error)}); allowed: one of its own"
        ) from None
    if lost := sorted(pairs.keys() ^ get_peft_model_state_dict(unet).keys()):
        raise ValueError(f"{what} does not fit the UNet: {shorten(lost[0])}; allowed: one of its own")
    for parameter in select_parameters(unet, "lora"):
        parameter.data = parameter.data.to(torch.float32)  # as it is trained, however it was saved
