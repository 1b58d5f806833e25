"""Processes that make batches ahead of training.

Every sample is a function of its number, so how many workers there are changes no bit. What a worker finds
out about a sample it tells the main process, which counts, names and stops for all.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch.utils.data import DataLoader, Sampler

from training.samples import Bad


@runtime_checkable
class Reporting(Protocol):
    """A data set that may meet samples which cannot be used."""

    bad: Bad


@dataclass(frozen=True)
class Fetched:
    """A batch, and what its worker has to say."""

    batch: Any = None
    skipped: tuple[tuple[str, str], ...] = ()
    mistake: str = ""


class Ahead(torch.utils.data.Dataset):
    """A data set as a worker sees it: the batches of another one."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __getitems__(self, numbers: list[int]) -> Fetched:
        try:
            batch = self.dataset.collate([self.dataset[number] for number in numbers])
        except ValueError as error:  # a DataLoader would make a traceback of it
            return Fetched(mistake=str(error))
        found = self.dataset.bad.taken() if isinstance(self.dataset, Reporting) else ()
        return Fetched(batch, tuple(found))


def batches_of(dataset: Any, sampler: Sampler[list[int]], workers: int) -> Iterator[Any]:
    """The batches in the sampler's order, made here or ahead of time by `workers` processes."""
    if workers == 0:
        yield from DataLoader(dataset, batch_sampler=sampler, collate_fn=dataset.collate)
        return
    loader = DataLoader(
        Ahead(dataset),
        batch_sampler=sampler,
        collate_fn=as_it_is,
        num_workers=workers,
        worker_init_fn=leave_signals_to_the_main_process,
    )
    with one_tokenizer_thread():
        fetched = iter(loader)
    told: set[str] = set()
    try:
        for part in fetched:
            if part.mistake:
                raise ValueError(part.mistake)
            for name, reason in part.skipped:
                if name not in told:  # two workers may meet it, and both know only of themselves
                    told.add(name)
                    dataset.bad.add(name, reason)
            yield part.batch
    finally:
        del fetched  # ends the workers, which a traceback would keep alive and Python then wait for


def as_it_is(fetched: Any) -> Any:
    return fetched


def leave_signals_to_the_main_process(_worker: int) -> None:
    """A signal to a whole job reaches them too; the main process goes on to the end of its step."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def one_tokenizer_thread() -> Iterator[None]:
    """What is forked meanwhile uses no threads of the tokenizers: they warn of forks and could hang."""
    name = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(name)
    os.environ[name] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
