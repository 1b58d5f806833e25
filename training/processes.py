"""What several processes of one run have to do together."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator, PartialState


def state_of_processes() -> PartialState:
    """accelerate's view of the processes; the run's own accelerator takes it over."""
    return PartialState(cpu=not torch.accelerator.is_available())


def agreed(accelerator: Accelerator, number: int) -> int:
    """The largest number that a process has brought.

    A signal reaches them at different steps, and who stopped alone would leave the others waiting for ever.
    """
    if accelerator.num_processes == 1:
        return number
    every: Any = accelerator.gather(torch.tensor([int(number)], device=accelerator.device))
    return int(every.max())


def averaged(accelerator: Accelerator, records: Mapping[str, list[float]]) -> dict[str, float | None]:
    """Each figure's mean over the passes that were finite and over the processes, whose shares of a batch are
    of one size; None where no pass was: JSON has no NaN.
    """
    means = torch.tensor([mean_of_finite(values) for values in records.values()], dtype=torch.float64)
    if accelerator.num_processes > 1:
        every: Any = accelerator.gather(means[None].to(accelerator.device))
        means = every.nanmean(dim=0)
    found = dict(zip(records, means.tolist(), strict=True))
    return {name: None if math.isnan(mean) else mean for name, mean in found.items()}


def mean_of_finite(values: list[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return math.fsum(finite) / len(finite) if finite else math.nan
