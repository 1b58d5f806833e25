"""Room on the disk, asked for before a run starts and before each checkpoint."""

from collections.abc import Iterable
from pathlib import Path

from torch import Tensor, nn

from altdiffusion import room


def size_of(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def checkpoint_size(model: nn.Module, averaged: bool) -> int:
    """Bytes of a checkpoint: all weights, and of the trained ones AdamW's two states and the average."""
    trained = size_of(parameter for parameter in model.parameters() if parameter.requires_grad)
    return size_of(model.state_dict().values()) + trained * (3 if averaged else 2)


def check(folder: Path, size: int, keep: int, model: int) -> None:
    """Refuses to start where the checkpoints that are kept, one being written and the model do not fit."""
    there = len(list(folder.glob("checkpoint-*")))
    missing = max(1, keep + 1 - there)
    what = f"a run ({missing} checkpoints of {room.readable(size)}, and the model)"
    room.check(folder, missing * size + model, what, "output_dir")


def shortage(folder: Path, size: int) -> str | None:
    """What is missing for one more checkpoint, or None."""
    return needed_and_free(folder, size) if size > room.free(folder) else None


def needed_and_free(folder: Path, size: int) -> str:
    return f"needed {room.readable(size)}, free {room.readable(room.free(folder))}"
