"""What several processes of one run have to do together."""

from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator


def agreed(accelerator: Accelerator, number: int) -> int:
    """The largest number that a process has brought.

    A signal reaches them at different steps, and who stopped alone would leave the others waiting for ever.
    """
    if accelerator.num_processes == 1:
        return number
    every: Any = accelerator.gather(torch.tensor([number], device=accelerator.device))
    return int(every.max())


def averaged(accelerator: Accelerator, means: Mapping[str, float]) -> dict[str, float]:
    """Each figure's mean over the processes, whose shares of a batch are of one size."""
    if accelerator.num_processes == 1:
        return dict(means)
    own = torch.tensor(list(means.values()), dtype=torch.float64, device=accelerator.device)
    every: Any = accelerator.gather(own[None])
    return dict(zip(means, every.mean(dim=0).tolist(), strict=True))
