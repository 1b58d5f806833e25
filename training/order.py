"""Endless orders of samples as functions of (seed, number): nothing is remembered, so a cut run goes on
exactly.
"""

import numpy as np


class Shuffled:
    """The numbers below `size`, shuffled anew in each round."""

    def __init__(self, size: int, *key: int) -> None:
        self.size, self.key = size, key
        self.round: tuple[int, np.ndarray] = (-1, np.empty(0))

    def __getitem__(self, position: int) -> int:
        number, place = divmod(position, self.size)
        if self.round[0] != number:
            self.round = number, np.random.default_rng((*self.key, number)).permutation(self.size)
        return int(self.round[1][place])


class Mixed:
    """Which of several kinds comes at a place, and the how-manieth of its kind it is.

    Kind `k` comes `quotas[k] / group` times in an epoch. What does not come out even is carried over, so each
    kind keeps its share in the long run, however small it is.
    """

    def __init__(self, quotas: list[float], group: int, *key: int) -> None:
        self.quotas, self.group, self.key = np.asarray(quotas, dtype=np.float64), group, key
        self.epoch: tuple[int, int, np.ndarray, np.ndarray] = (-1, 0, np.empty(0), np.empty(0))

    def before(self, epoch: int) -> np.ndarray:
        """How often each kind has come when `epoch` begins."""
        # A whole number that rounding left just below itself still counts.
        return np.floor(epoch * self.quotas / self.group + 1e-9).astype(np.int64)

    def __getitem__(self, number: int) -> tuple[int, int]:
        epoch = int(number * self.group / self.quotas.sum())
        while self.before(epoch).sum() > number:
            epoch -= 1
        while self.before(epoch + 1).sum() <= number:
            epoch += 1
        if self.epoch[0] != epoch:
            self.epoch = self.planned(epoch)
        _, first, kinds, places = self.epoch
        return int(kinds[number - first]), int(places[number - first])

    def planned(self, epoch: int) -> tuple[int, int, np.ndarray, np.ndarray]:
        starts, ends = self.before(epoch), self.before(epoch + 1)
        kinds = np.repeat(np.arange(len(starts)), ends - starts)
        places = np.concatenate([np.arange(s, e) for s, e in zip(starts, ends, strict=True)])
        order = np.random.default_rng((*self.key, epoch)).permutation(len(kinds))
        return epoch, int(starts.sum()), kinds[order], places[order]
