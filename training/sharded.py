"""Weights that are shared out among the processes: FSDP2 and DeepSpeed, as accelerate drives them.

Each process holds a slice of every weight, of its gradient, its moments and its moving average. What a stage
exports, and what it measures on the way, needs them whole: they are put together once, at the end.
"""

import copy
from typing import Any

from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.tensor import DTensor, distribute_tensor

from training.config import OptimConfig, RunConfig


class Twin:
    """A plain copy of a model whose weights are about to be shared out, to take them back at the end."""

    def __init__(self, accelerator: Accelerator, model: nn.Module) -> None:
        """To be made before the model is prepared."""
        if not accelerator.is_fsdp2:
            raise ValueError("fsdp_version: 1; allowed: 2")
        if single := [name for name, parameter in model.named_parameters() if parameter.ndim == 0]:
            raise ValueError(
                f"fsdp_config: {single[0]} is one number, which has no slices; allowed: ddp.yaml"
            )
        self.module: nn.Module | None = None
        if accelerator.is_main_process:
            # What hangs beside the module tree (a frozen teacher, a tokenizer) is not copied.
            beside = {id(value): value for value in vars(model).values() if not isinstance(value, dict)}
            self.module = copy.deepcopy(model, beside)
        parts: Any = model
        parts._no_split_modules = layers_of(model)

    def take(self, model: nn.Module) -> None:
        """Fills the main process's copy with the model's weights. All processes have to come here."""
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        state = get_model_state_dict(model, options=options)
        if self.module is not None:
            self.module.load_state_dict(state)


def twin_of(accelerator: Accelerator, model: nn.Module) -> Twin | None:
    """None where every process holds all of the weights."""
    return Twin(accelerator, model) if accelerator.distributed_type == "FSDP" else None


def layers_of(model: nn.Module) -> list[str]:
    """The classes of a model's blocks, as its libraries name them: accelerate gathers one block at a time."""
    named = {name for module in model.modules() for name in getattr(module, "_no_split_modules", None) or ()}
    return sorted(named & {type(module).__name__ for module in model.modules()})


class ShardedEMA(EMAModel):
    """A moving average of slices. Its state holds whole tensors, so that one process can write it for all."""

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"shadow_params": [whole(shadow) for shadow in self.shadow_params]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        own = self.shadow_params
        super().load_state_dict(state_dict)
        self.shadow_params = [sliced(mine, read) for mine, read in zip(own, self.shadow_params, strict=True)]


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def sliced(like: Tensor, tensor: Tensor) -> Tensor:
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)


def fill_deepspeed(plugin: Any, run: RunConfig, optim: OptimConfig, processes: int) -> None:
    """Writes into DeepSpeed's configuration what the stage's own flags say."""
    if run.gradient_accumulation_steps > 1:
        raise ValueError(
            f"run.gradient_accumulation_steps: {run.gradient_accumulation_steps} with DeepSpeed, which "
            "updates after each pass; allowed: 1"
        )
    plugin.deepspeed_config["train_micro_batch_size_per_gpu"] = run.batch_size // processes
    plugin.deepspeed_config["gradient_clipping"] = optim.max_grad_norm
