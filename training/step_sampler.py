"""Which samples each pass of each process takes."""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from training.config import RunConfig


class StepSampler(Sampler[list[int]]):
    """Index lists of this process, one per pass, from `start` on.

    Data without an end (`items` is None) is read straight on; finite data in an order that (seed, epoch)
    fixes.
    """

    def __init__(self, config: RunConfig, start: int, rank: int, processes: int, items: int | None) -> None:
        self.config, self.start, self.items = config, start, items
        self.shuffled: tuple[int, np.ndarray] = (-1, np.empty(0))
        self.passes = config.gradient_accumulation_steps
        if config.batch_size % (self.passes * processes):
            raise ValueError(
                f"batch_size: {config.batch_size} cannot be shared by {processes} processes "
                f"x {self.passes} accumulated passes"
            )
        self.size = config.batch_size // (self.passes * processes)
        self.rank, self.processes = rank, processes

    def __len__(self) -> int:
        return (self.config.max_train_steps - self.start) * self.passes

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.start, self.config.max_train_steps):
            for part in range(self.passes):
                first = step * self.config.batch_size + (part * self.processes + self.rank) * self.size
                yield [self.item(n) for n in range(first, first + self.size)]

    def item(self, number: int) -> int:
        if self.items is None:
            return number
        epoch, place = divmod(number, self.items)
        if self.shuffled[0] != epoch:
            self.shuffled = epoch, np.random.default_rng((self.config.seed, epoch)).permutation(self.items)
        return int(self.shuffled[1][place])
