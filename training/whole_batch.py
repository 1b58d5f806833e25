"""The embeddings of a whole step, which several processes and accumulated passes share.

A contrastive loss tells each sample from all others of the step. Every pass computes that loss over the whole
step's embeddings, of which only its own carry gradients, as open_clip's `accum_freq` does; the sum over the
passes is the gradient of the one big batch.
"""

from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor


@dataclass(frozen=True)
class WholeBatch:
    """Image and text embeddings of a step without their gradients, and which rows show the same thing."""

    image: Tensor
    text: Tensor
    groups: Tensor
    first: int
    """The row at which this pass's own samples start."""
    shares: int
    """Processes x passes: by so much the gradient is divided when those of all are averaged."""

    def around(self, rows: Tensor, own: Tensor) -> Tensor:
        """`rows` with this pass's `own` in their place, whose gradient is as large as the whole step's."""
        own = own.detach() + self.shares * (own - own.detach())
        return torch.cat([rows[: self.first], own, rows[self.first + len(own) :]])


@torch.no_grad()
def whole_batches(
    accelerator: Accelerator, images: list[Tensor], texts: list[Tensor], groups: list[Tensor]
) -> list[WholeBatch]:
    """What each of this process's passes is told from, given the embeddings of each."""

    def joined(parts: list[Tensor]) -> Any:
        return accelerator.gather(torch.cat([part.detach() for part in parts]))

    image, text, group = joined(images), joined(texts), joined(groups)
    size, passes = len(images[0]), len(images)
    firsts = (size * (accelerator.process_index * passes + number) for number in range(passes))
    return [WholeBatch(image, text, group, first, accelerator.num_processes * passes) for first in firsts]
