"""Frozen weights in the format that autocast would round them to anyway: half the memory, the same bits.

Autocast rounds the weight of a linear layer or a convolution each time it multiplies with it, and keeps the
rounded copy of a frozen one for the backward pass: a UNet of which little is trained lies in memory one and a
half times. Rounded once and for all it lies there half a time. Norms and embeddings are not rounded by
autocast, so they stay as they are.
"""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

Module = TypeVar("Module", bound=nn.Module)
FORMATS = {"bf16": torch.bfloat16, "fp16": torch.float16}


def store_rounded(module: nn.Module, mixed_precision: str) -> None:
    """Rounds what is frozen of `module`, which from here on has to be called under autocast.

    The rest is copied: as parts of the file that the weights were read from they would hold all of it in
    memory.
    """
    rounded = {
        id(parameter)
        for layer in module.modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
        for parameter in layer.parameters(recurse=False)
        if not parameter.requires_grad
    }
    if mixed_precision not in FORMATS or not rounded:
        return
    for parameter in module.parameters():
        if id(parameter) in rounded:
            parameter.data = parameter.data.to(FORMATS[mixed_precision])
        else:
            parameter.data = parameter.data.clone()


@torch.no_grad()
def unrounded(trained: Module, mixed_precision: str, read: Callable[[], Module]) -> Module:
    """`trained` as it would be had nothing been rounded: what is frozen is `read` anew."""
    if mixed_precision not in FORMATS or all(p.requires_grad for p in trained.parameters()):
        return trained
    fresh = read()
    for name, parameter in trained.named_parameters():
        if parameter.requires_grad:
            fresh.get_parameter(name).copy_(parameter)
    return fresh.eval()
