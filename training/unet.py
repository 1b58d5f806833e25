"""The UNet of a text-to-image stage: a new one or one to go on from, its noise schedule."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers import UNet2DConditionModel
from jaxtyping import Int
from torch import Tensor

from training.loop import Run

#: Stable Diffusion's noise schedule (Rombach et al. 2022, table 15; every checkpoint of this family has it).
SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "clip_sample": False,
}


@dataclass(frozen=True)
class UNetConfig:
    """Shape of a new UNet: Stable Diffusion's, narrower; its lowest block has no attention, as there."""

    block_out_channels: tuple[int, ...] = (64, 128, 192)
    layers_per_block: int = 1
    head_width: int = 32
    norm_num_groups: int = 16


def build_unet(
    folder: Path | None, shape: UNetConfig, width: int, latents: tuple[int, int]
) -> UNet2DConditionModel:
    """The UNet of `folder`, or a new one of this `shape` for `latents` of so many channels and so wide."""
    if folder is not None:
        unet = UNet2DConditionModel.from_pretrained(folder)
        if unet.config.cross_attention_dim != width:
            raise ValueError(
                f"text: its states are {width} wide; {folder} takes {unet.config.cross_attention_dim}"
            )
        return unet
    (channels, side), blocks = latents, len(shape.block_out_channels)
    return UNet2DConditionModel(
        sample_size=side,
        in_channels=channels,
        out_channels=channels,
        down_block_types=("CrossAttnDownBlock2D",) * (blocks - 1) + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * (blocks - 1),
        block_out_channels=shape.block_out_channels,
        layers_per_block=shape.layers_per_block,
        attention_head_dim=tuple(width // shape.head_width for width in shape.block_out_channels),
        norm_num_groups=shape.norm_num_groups,
        cross_attention_dim=width,
    )


def drawn_timesteps(run: Run, schedule: Any, items: int, bias: float = 0.0) -> Int[Tensor, " batch"]:
    """A timestep for each of this pass's samples, with a density like t to the power `bias`."""
    uniform = run.uniform(items) ** (1 / (1 + bias))
    return (uniform * schedule.config.num_train_timesteps).long()


def schedule_fields(prediction_type: str, zero_terminal_snr: bool) -> dict[str, Any]:
    """Configuration of the noise schedule, for training and for every sampler."""
    zero = {"rescale_betas_zero_snr": True} if zero_terminal_snr else {}
    return {**SCHEDULE, "prediction_type": prediction_type, **zero}
