"""Which parameters a stage trains, by the names of the papers."""

import re

from torch import nn

#: Parameter names of diffusers' UNet2DConditionModel, by group. `attn2` is its cross-attention.
GROUPS = {
    "kv": r"\.attn2\.to_[kv]\.",
    "cross_attention": r"\.attn2\.",
    "unet": r"",
}


def select_parameters(unet: nn.Module, group: str) -> list[nn.Parameter]:
    """Leaves exactly the parameters of `group` trainable and returns them, in the model's own order.

    `kv` is the AltDiffusion paper's concept alignment: keys and values of cross-attention. Its published code
    trained all of cross-attention by mistake (`if 'to_k' or 'to_v' in name` is always true); that set is
    `cross_attention`.
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
