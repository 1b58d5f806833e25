"""Another text tower for a trained UNet: keys and values start where linear algebra can put them."""

import re

import torch
from torch import Tensor, nn

from altdiffusion.trainable import GROUPS


@torch.no_grad()
def map_cross_attention(unet: nn.Module, old: Tensor, new: Tensor, ridge: float = 1e-3) -> float:
    """Folds the linear map from the new tower's states to the old one's into every key and value projection.

    `old` and `new` are (texts, tokens, dim): the same texts in both towers. The towers cut words differently,
    so the texts' mean states are compared, by least squares with a `ridge` in units of the mean power.
    Returns the share of the old states' variance that the map explains.
    """
    assert len(old) == len(new)
    if (known := old.shape[2]) != (width := new.shape[2]):
        raise ValueError(f"swapped_from: a tower of width {known}; allowed: one of the new tower's, {width}")
    source, target = new.double().mean(1), old.double().mean(1)
    power = source.T @ source
    damping = ridge * power.diagonal().mean() * torch.eye(len(power), dtype=power.dtype)
    change = torch.linalg.solve(power + damping, source.T @ target)
    for name, parameter in unet.named_parameters():
        if re.search(GROUPS["kv"], name):
            parameter.copy_((parameter.double() @ change.T).to(parameter.dtype))
    left = (source @ change - target).square().sum()
    return 1 - (left / (target - target.mean(0)).square().sum()).item()
