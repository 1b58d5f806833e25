"""What an index asks of a vector store, in as few words as do; Qdrant answers embedded and as a server.

Scores are dot products. A search says how it is to be done, always: Qdrant's own default for quantised
vectors loses most of the neighbours without a word. `coarse` is the query for the signs alone, which tell
more when its kind's mean is taken off; the best by signs are then weighed with the whole vectors, first
against `coarse`, then against `query` itself.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from altdiffusion.retrieval.pictures import Picture
from altdiffusion.retrieval.where import Where

#: Up to here every vector is compared with the query; beyond, signs of one bit choose whom to compare.
EXACT_UP_TO = 100_000
_SIGNS = 2000
_MIDDLE = 400


@dataclass(frozen=True)
class Found:
    """A stored picture; `score` is of the search that found it."""

    picture: Picture
    score: float
    vector: np.ndarray


@dataclass(frozen=True)
class Stages:
    """How many go on from each stage of a search by signs: from the signs, and then from `coarse`."""

    signs: int
    middle: int

    @classmethod
    def of(cls, limit: int) -> "Stages":
        return cls(signs=max(_SIGNS, 10 * limit), middle=max(_MIDDLE, 4 * limit))

    @property
    def oversampling(self) -> float:
        return self.signs / self.middle


@runtime_checkable  # for the tests, which check types
class Engine(Protocol):
    """Pictures by their `id`, each with one vector. What `store` and `delete` were given is safe then."""

    signs: bool
    """Whether searches begin with signs."""

    def store(self, pictures: Sequence[Picture], vectors: np.ndarray) -> None: ...

    def delete(self, ids: Sequence[str]) -> None: ...

    def pictures(self) -> Iterator[Picture]: ...

    def vectors(self, ids: Sequence[str]) -> dict[str, np.ndarray]: ...

    def search(self, query: np.ndarray, coarse: np.ndarray, limit: int, where: Where) -> list[Found]: ...

    def settle(self) -> None:
        """After many changes: makes searches fast, and beyond `EXACT_UP_TO` begins to use signs."""
        ...

    def close(self) -> None: ...

    def __len__(self) -> int: ...


def conditions(models: Any, range_: Any, where: Where) -> Any | None:
    """`where` as a filter; the classes of both engines have the same names but for the range's."""
    must = []
    if where.path is not None:
        must.append(models.FieldCondition(key="folders", match=models.MatchValue(value=where.path)))
    if where.since is not None or where.until is not None:
        since, until = (None if t is None else round(t * 1e9) for t in (where.since, where.until))
        must.append(models.FieldCondition(key="mtime_ns", range=range_(gte=since, lt=until)))
    if where.smallest is not None or where.largest is not None:
        must.append(models.FieldCondition(key="bytes", range=range_(gte=where.smallest, lte=where.largest)))
    return models.Filter(must=must) if must else None
