"""Files into an index: read and decoded by threads, encoded and stored batch by batch.

What a batch stored is safe before the next one begins, so a process that is killed loses at most one batch;
the same command goes on with what is missing. A picture whose content is known already, under whatever name,
is not encoded again, unless another one has taken that name, and the vector's place, in an earlier batch.
"""

import collections
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from altdiffusion.retrieval.engines import Engine
from altdiffusion.retrieval.pictures import Entry, LeftOut, Picture, printed, read
from altdiffusion.retrieval.queries import Frame
from altdiffusion.retrieval.report import Tally

if TYPE_CHECKING:
    from torch import Tensor

    from altdiffusion.model import AltCLIP

BATCH = 128
Progress = Callable[[int, int], None]


@dataclass
class Known:
    """What an index holds: by path, and by content."""

    by_path: dict[str, Picture] = field(default_factory=dict)
    by_digest: dict[str, Picture] = field(default_factory=dict)

    @classmethod
    def of(cls, pictures: Iterable[Picture]) -> "Known":
        known = cls()
        for picture in pictures:
            known.add(picture)
        return known

    def add(self, picture: Picture) -> None:
        """What lay at its path before is known no longer: its vector was overwritten."""
        before = self.by_path.get(picture.path)
        holder = before and self.by_digest.get(before.sha256)
        if holder and holder.path == picture.path:
            del self.by_digest[holder.sha256]
        self.by_path[picture.path] = picture
        self.by_digest[picture.sha256] = picture


@dataclass(frozen=True)
class Read:
    """A picture that was read; without `pixel_values` its vector is known by its content."""

    picture: Picture
    pixel_values: "Tensor | None"


def spread(entries: Sequence[Entry]) -> list[Entry]:
    """The same entries, first a batch from all over the folder: the mean of the pictures is taken of it."""
    step = max(1, len(entries) // BATCH)
    first = entries[::step][:BATCH]
    chosen = {entry.path for entry in first}
    return [*first, *(entry for entry in entries if entry.path not in chosen)]


@dataclass(frozen=True)
class Batch:
    """How many entries were dealt with so far; the latest pictures of them, and what is none (any more)."""

    done: int
    pictures: list[Read]
    none: list[str]


def batches(
    clip: "AltCLIP", root: Path, entries: Sequence[Entry], known: Mapping[str, Picture], tally: Tally
) -> Iterator[Batch]:
    pictures: list[Read] = []
    none: list[str] = []
    for done, (entry, future) in enumerate(_reading(clip, root, entries, known), 1):
        try:
            one = future.result()
            if one.pixel_values is None and one.picture.sha256 not in known:  # forgotten since it was read
                one = _prepare(clip, root, entry, known)
            pictures.append(one)
        except LeftOut as left:
            name = printed(entry.path)
            tally.leave_out(left.reason, f"{name} ({left.detail})" if left.detail else name)
            none += [entry.path] if left.reason != "unreadable" else []  # that may pass
        if len(pictures) == BATCH or done == len(entries):
            yield Batch(done, pictures, none)
            pictures, none = [], []


def _reading(
    clip: "AltCLIP", root: Path, entries: Sequence[Entry], known: Mapping[str, Picture]
) -> Iterator[tuple[Entry, Future[Read]]]:
    """In the entries' order, with as many read ahead as keep the threads busy."""
    workers = min(8, os.cpu_count() or 1)
    waiting: collections.deque[tuple[Entry, Future[Read]]] = collections.deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for entry in entries:
                waiting.append((entry, pool.submit(_prepare, clip, root, entry, known)))
                if len(waiting) > 4 * workers:
                    yield waiting.popleft()
            while waiting:
                yield waiting.popleft()
        finally:
            pool.shutdown(cancel_futures=True)


def _prepare(clip: "AltCLIP", root: Path, entry: Entry, known: Mapping[str, Picture]) -> Read:
    picture, image = read(root, entry.path, known)
    return Read(picture, None if image is None else clip.preprocess(image)[0])


def encode(clip: "AltCLIP", batch: Sequence[Read]) -> dict[str, np.ndarray]:
    """Unit vectors by content, each content once."""
    import torch

    fresh = {one.picture.sha256: one.pixel_values for one in batch if one.pixel_values is not None}
    if not fresh:
        return {}
    vectors = clip.encode_image(torch.stack(list(fresh.values()))).float().cpu().numpy()
    return dict(zip(fresh, vectors, strict=True))


def store(
    engine: Engine, batch: Sequence[Read], fresh: Mapping[str, np.ndarray], frame: Frame, known: Known
) -> None:
    """Vectors of known content are copied as they lie."""
    vectors = {digest: frame.picture(vector) for digest, vector in fresh.items()}
    twins = {
        one.picture.sha256: known.by_digest[one.picture.sha256].id
        for one in batch
        if one.picture.sha256 not in vectors
    }
    if twins:
        found = engine.vectors(list(set(twins.values())))
        vectors |= {digest: found[twin] for digest, twin in twins.items()}
    pictures = [one.picture for one in batch]
    if pictures:
        engine.store(pictures, np.stack([vectors[picture.sha256] for picture in pictures]))
    for picture in pictures:
        known.add(picture)


def count(batch: Sequence[Read], known: Known, gone: set[str], tally: Tally) -> None:
    """Before the batch is stored: which of its pictures are new, changed, moved or there twice.

    `gone` holds the contents of files that are no longer where they were.
    """
    seen = set()
    for picture in (one.picture for one in batch):
        if picture.path in known.by_path:
            tally.counts["changed"] += 1
            continue
        tally.counts["added"] += 1
        if picture.sha256 in gone:
            gone.remove(picture.sha256)
            tally.counts["renamed"] += 1
        elif picture.sha256 in known.by_digest or picture.sha256 in seen:
            tally.counts["duplicates"] += 1
        seen.add(picture.sha256)
