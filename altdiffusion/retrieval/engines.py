"""What an index asks of a vector store, in as few words as do; Qdrant answers embedded and as a server.

Scores are dot products. A search says how it is to be done, always: Qdrant's own default for quantised
vectors loses most of the neighbours without a word.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from altdiffusion.retrieval.pictures import Picture
from altdiffusion.retrieval.where import Where

#: Up to here every vector is compared with the query; beyond, signs choose whom to compare.
EXACT_UP_TO = 100_000
#: Signs have one bit a number; those of shorter vectors two, which tells as much as a vector twice as long.
#: To look through all signs is then most of the work, which a graph saves; to longer ones it brings nothing.
SHORT_BELOW = 512
#: How many of the best by signs have their whole vectors compared; as many the search of the graph holds.
COMPARED = 4000
#: Of the graph that leads to them (HNSW): links of a vector, and candidates for them as it is built. Texts
#: lie apart from all pictures, so a search needs many candidates, and better links gain little.
LINKS, CANDIDATES = 24, 100
#: So many kilobytes of vectors, all or what a filter leaves of them, are compared by signs without a graph.
SCANNED_KB = 20_000


@dataclass(frozen=True)
class Found:
    """A stored picture; `score` is of the search that found it."""

    picture: Picture
    score: float
    vector: np.ndarray


@runtime_checkable  # for the tests, which check types
class Engine(Protocol):
    """Pictures by their `id`, each with one vector. What `store` and `delete` were given is safe then."""

    signs: bool
    """Whether searches begin with signs."""

    def store(self, pictures: Sequence[Picture], vectors: np.ndarray) -> None: ...

    def delete(self, ids: Sequence[str]) -> None: ...

    def pictures(self) -> Iterator[Picture]: ...

    def vectors(self, ids: Sequence[str]) -> dict[str, np.ndarray]: ...

    def search(self, query: np.ndarray, limit: int, where: Where) -> list[Found]: ...

    def settle(self) -> None:
        """After many changes: makes searches fast, and beyond `EXACT_UP_TO` begins to use signs."""
        ...

    def check(self) -> None:
        """Refuses files that are not as this engine wrote them, however long it takes to read all."""
        ...

    def close(self) -> None: ...

    def __len__(self) -> int: ...


def links(dim: int) -> int:
    """Of each vector in the graph; 0 is no graph."""
    return LINKS if dim < SHORT_BELOW else 0


def how(models: Any, limit: int, signs: bool) -> Any:
    """The parameters of a search for `limit` results; the classes of both engines have the same names."""
    if not signs:
        quantization = models.QuantizationSearchParams(ignore=True)
        return models.SearchParams(exact=True, quantization=quantization)
    oversampling = max(COMPARED / limit, 10.0)
    quantization = models.QuantizationSearchParams(rescore=True, oversampling=oversampling)
    return models.SearchParams(hnsw_ef=max(COMPARED, 10 * limit), exact=False, quantization=quantization)


def conditions(models: Any, range_: Any, where: Where) -> Any | None:
    """`where` as a filter; only the range's class has a name of its own in each engine."""
    must = []
    if where.path is not None:
        must.append(models.FieldCondition(key="folders", match=models.MatchValue(value=where.path)))
    if where.since is not None or where.until is not None:
        since, until = (None if t is None else round(t * 1e9) for t in (where.since, where.until))
        must.append(models.FieldCondition(key="mtime_ns", range=range_(gte=since, lt=until)))
    if where.smallest is not None or where.largest is not None:
        must.append(models.FieldCondition(key="bytes", range=range_(gte=where.smallest, lte=where.largest)))
    return models.Filter(must=must) if must else None
