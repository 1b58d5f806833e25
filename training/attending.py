"""How towers and UNets attend while they are trained: by what is fastest on the device and in the format."""

import logging
from typing import Any, Literal

from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from torch import Tensor
from transformers import PreTrainedModel

from altdiffusion.runtime import choose_attention, choose_device

logger = logging.getLogger(__name__)


def fused_is_slow(mixed_precision: str) -> bool:
    """Whether the way back through PyTorch's fused attention is slow where sequences are short.

    On a CPU in bf16: two to eight times the time of plain products (`bench.attending`); both say the same to
    rounding.
    """
    return mixed_precision == "bf16" and choose_device().type == "cpu"


class PlainWhereShort:
    """Attention by two products where queries x keys are at most `FEW`, by PyTorch's fused kernel beyond."""

    FEW = 512 * 1024

    def __init__(self) -> None:
        self.plain, self.fused = AttnProcessor(), AttnProcessor2_0()

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        **others: Any,
    ) -> Tensor:
        keys = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        few = hidden_states.shape[1] * keys.shape[1] <= self.FEW
        return (self.plain if few else self.fused)(attn, hidden_states, encoder_hidden_states, **others)


def attend_in_text(tower: PreTrainedModel, mixed_precision: str) -> None:
    """Of a text tower, whose sequences are all short."""
    if fused_is_slow(mixed_precision):
        tower.set_attn_implementation("eager")


def attend_in_clip(clip: PreTrainedModel, mixed_precision: str) -> None:
    """Of both towers of a CLIP or AltCLIP, whose image tower may have many patches."""
    if fused_is_slow(mixed_precision):
        vision = clip.config.vision_config
        patches = (vision.image_size // vision.patch_size) ** 2 + 1
        few = patches**2 <= PlainWhereShort.FEW
        clip.set_attn_implementation("eager" if few else {"text_config": "eager"})


def set_attention(
    unet: UNet2DConditionModel, name: Literal["auto", "sdpa", "xformers"], mixed_precision: str = "no"
) -> None:
    """diffusers' default is PyTorch's attention; what `auto` chose is said once, with the reason."""
    backend, reason = choose_attention(name)
    if name == "auto" and fused_is_slow(mixed_precision):
        backend, reason = "plain where short", "in bf16 on a CPU the fused kernel's way back is slow"
        unet.set_attn_processor(PlainWhereShort())
    if name == "auto":
        logger.info("attention: %s (%s)", backend, reason)
    if backend == "xformers":
        unet.enable_xformers_memory_efficient_attention()
