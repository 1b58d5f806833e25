"""Endless streams whose every sample is a function of its number, although nothing can be read by place.

Each process reads files (or records) of its own, so two of them do not see what one would see. To go on from
a number, the stream is read from its beginning without decoding: exact, and as slow as disk or network.
"""

import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from training.samples import STREAM_LENGTH, Bad, BadSample, Row
from training.sources import record_name


def check_workers(streaming: bool, workers: int) -> None:
    """`datasets` gives each worker other files of a stream, and the order would be another one."""
    if streaming and workers:
        raise ValueError(
            f"run.workers: {workers} with reading.streaming True, which is read in order; allowed: 0"
        )


@dataclass
class Share:
    """This process's part of the samples of a run."""

    seed: int = 0
    process: int = 0
    processes: int = 1
    size: int = 1
    """Samples of one pass of one process."""

    def position(self, index: int) -> int:
        """How-manieth of this process's samples the run's sample `index` is."""
        return index // (self.size * self.processes) * self.size + index % self.size


@dataclass
class Stream:
    """Records in the order in which they are trained: `size` after each other are of one kind.

    `kind` sorts a record (into its aspect-ratio bucket, say) or raises `BadSample`; None sets it aside.
    """

    dataset: Any
    kind: Callable[[Row], int | None]
    share: Share
    shuffle_buffer: int
    bad: Bad
    at: int = -1
    """Position of the record that was read last."""
    last: tuple[Row, int] = field(default_factory=lambda: ({}, -1))
    records: Iterator[tuple[Row, int]] | None = None

    def __getitem__(self, index: int) -> tuple[Row, int]:
        """The record and its kind."""
        wanted = self.share.position(index)
        if self.records is None or wanted < self.at:
            self.records, self.at = self.ordered(), -1
        while self.at < wanted:
            self.last = next(self.records)
            self.at += 1
        return self.last

    def ordered(self) -> Iterator[tuple[Row, int]]:
        from datasets.distributed import split_dataset_by_node

        shuffled = self.dataset.shuffle(seed=self.share.seed, buffer_size=self.shuffle_buffer)
        own = split_dataset_by_node(shuffled, self.share.process, self.share.processes)
        waiting: dict[int, list[Row]] = {}
        for epoch in itertools.count():
            own.set_epoch(epoch)
            some = False
            for row, kind in self.sorted_rows(own):
                some = True
                rows = waiting.setdefault(kind, [])
                rows.append(row)
                if len(rows) == self.share.size:
                    yield from ((row, kind) for row in waiting.pop(kind))
            if not some:
                raise ValueError("data: the stream holds no sample that can be used")

    def sorted_rows(self, dataset: Any) -> Iterator[tuple[Row, int]]:
        try:
            for row in dataset:
                self.bad.seen += 1
                try:
                    kind = self.kind(row)
                except BadSample as error:
                    self.bad.add(record_name(row, f"record {self.bad.seen}"), error)
                    continue
                if kind is not None:
                    yield row, kind
        except json.JSONDecodeError as error:
            raise ValueError(f"data: broken JSON in the stream ({error})") from error


def new_bad(share: float) -> Bad:
    return Bad(share, STREAM_LENGTH)


def replaced(items: list[Any]) -> list[Any]:
    """The items with a good neighbour in the place of each None: a batch keeps its size, whatever was bad."""
    good = [item for item in items if item is not None]
    if not good:
        raise ValueError(f"data: none of the {len(items)} samples of a batch can be used")
    return [item if item is not None else good[n % len(good)] for n, item in enumerate(items)]
