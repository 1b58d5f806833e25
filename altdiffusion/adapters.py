"""LoRA on the text tower: diffusers reads the text part of a LoRA under the names of CLIP's layers alone."""

import re
import warnings
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from altdiffusion.towers import in_memory

_PART = re.compile(r"\.lora_[AB]\.weight$")
_CLIP = re.compile(r"(text_model\.)?encoder\.layers\.\d+\.(self_attn|mlp)\.")


def load_lora(
    text_encoder: Any,
    state_dict: Mapping[str, Tensor],
    *,
    adapter_name: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    scale: float = 1.0,
) -> None:
    """Adds an adapter to the tower, from tensors named as peft names them (`roberta.….lora_A.weight`).

    A part that was trained on CLIP's tower has nothing to adapt here and is left out, with a warning.
    """
    from diffusers.utils.peft_utils import _create_lora_config, get_adapter_name, scale_lora_layers

    from altdiffusion.checkpoints import quiet

    if any(_CLIP.match(name) for name in state_dict):
        message = "lora: its text part was made for CLIP's tower and is left out; the UNet's part is loaded"
        warnings.warn(message, stacklevel=3)
        return
    tensors = {in_memory(name): tensor for name, tensor in state_dict.items()}
    _check(text_encoder, tensors)
    ranks = {name: tensor.shape[1] for name, tensor in tensors.items() if ".lora_B." in name}
    config = _create_lora_config(tensors, None, metadata, ranks, is_unet=False)
    with quiet():
        text_encoder.load_adapter(
            adapter_name=adapter_name or get_adapter_name(text_encoder),
            adapter_state_dict=tensors,
            peft_config=config,
        )
    scale_lora_layers(text_encoder, scale)


def _check(text_encoder: Any, tensors: Mapping[str, Tensor]) -> None:
    """Loading would skip what fits nowhere, and leave the other half of a pair at random values."""
    modules: dict[str, Any] = dict(text_encoder.named_modules())
    for name, tensor in tensors.items():
        place = _PART.sub("", name)
        layer = modules.get(place)
        layer = getattr(layer, "base_layer", layer)
        down, up = (tensors.get(f"{place}.lora_{side}.weight") for side in "AB")
        if layer is None or not hasattr(layer, "weight") or down is None or up is None:
            raise ValueError(
                f"lora: {name!r:.80}; allowed: pairs of lora_A and lora_B for this tower's layers"
            )
        size, rank = tuple(layer.weight.shape), up.shape[-1]
        if (tuple(up.shape), tuple(down.shape)) != ((size[0], rank), (rank, size[1])):
            shape = tuple(tensor.shape)
            raise ValueError(f"lora: {name!r:.80} has shape {shape}; allowed: one that fits {size}")
