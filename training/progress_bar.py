"""The bar that shows how far a run is: samples per second, the time that is left, memory."""

import resource
import sys

import torch
from tqdm import tqdm

from training.config import RunConfig


def progress_bar(config: RunConfig, step: int, first_process: bool) -> tqdm:
    """Counts samples; drawn by the first process alone, and only where somebody looks."""
    return tqdm(
        total=config.max_train_steps * config.batch_size,
        initial=step * config.batch_size,
        unit="sample",
        unit_scale=True,
        disable=None if first_process else True,
        dynamic_ncols=True,
    )


def advance(bar: tqdm, config: RunConfig, step: int) -> None:
    if not bar.disable:
        bar.set_postfix_str(f"step {step}, {memory():.1f} GB", refresh=False)
    bar.update(step * config.batch_size - bar.n)


def memory() -> float:
    """GB that this process took at most: of its CUDA device, else of the machine."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most * (1 if sys.platform == "darwin" else 1024) / 1e9
