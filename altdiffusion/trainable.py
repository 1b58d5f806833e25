"""Which parameters a stage trains, by the names of the papers."""

import re
from typing import Any

from torch import Tensor, nn

#: Parameter names of diffusers' UNet2DConditionModel, by group. `attn2` is its cross-attention.
GROUPS = {
    "kv": r"\.attn2\.to_[kv]\.",
    "cross_attention": r"\.attn2\.",
    "unet": r"",
    "lora": r"\.lora_[AB]\.",
}
#: What diffusers' own LoRA script adapts (examples/text_to_image/train_text_to_image_lora.py).
LORA_TARGETS = ("to_k", "to_q", "to_v", "to_out.0")


def select_parameters(unet: nn.Module, group: str) -> list[nn.Parameter]:
    """Leaves exactly the parameters of `group` trainable and returns them, in the model's own order.

    `kv` is the AltDiffusion paper's concept alignment: keys and values of cross-attention. Its published code
    trained all of cross-attention by mistake (`if 'to_k' or 'to_v' in name` is always true); that set is
    `cross_attention`. `lora` is what `add_lora` has added.
    """
    if group not in GROUPS:
        raise ValueError(f"trainable: no group {group!r}; allowed: {', '.join(GROUPS)}")
    chosen = []
    for name, parameter in unet.named_parameters():
        parameter.requires_grad_(re.search(GROUPS[group], name) is not None)
        if parameter.requires_grad:
            chosen.append(parameter)
    if not chosen:
        raise ValueError(f"trainable: {type(unet).__name__} has no parameters of the group {group!r}")
    return chosen


def add_lora(unet: Any, rank: int, alpha: int | None = None) -> None:
    """Adds low-rank pairs to a UNet's attention, which at first change nothing (Hu et al. 2022, section 4.1).

    They count `alpha / rank` times; without `alpha` once.
    """
    from peft import LoraConfig

    settings = LoraConfig(
        r=rank, lora_alpha=alpha or rank, init_lora_weights="gaussian", target_modules=list(LORA_TARGETS)
    )
    unet.add_adapter(settings)


def lora_state(unet: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The pairs and their settings, as diffusers' `save_lora_weights` takes them."""
    from peft.utils import get_peft_model_state_dict

    settings = unet.peft_config["default"].to_dict()
    settings["target_modules"] = sorted(settings["target_modules"])  # a set: JSON has none
    state = {name: tensor.detach().clone() for name, tensor in get_peft_model_state_dict(unet).items()}
    return state, settings
