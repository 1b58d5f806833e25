"""The engine inside this process: Qdrant Edge, in a folder that one process may use at a time."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from altdiffusion import aside
from altdiffusion.requests import BadRequest, shorten
from altdiffusion.retrieval import engines, seal
from altdiffusion.retrieval.engines import Found
from altdiffusion.retrieval.pictures import Picture
from altdiffusion.retrieval.where import Where

_PAGE = 1000


class EmbeddedEngine:
    """Vectors lie in files that are mapped, not read into memory; the signs beyond 100,000 stay in memory."""

    def __init__(self, folder: Path, dim: int, *, signs: bool = False, threads: int | None = None) -> None:
        """`signs` is what the attribute of that name said when the engine was last closed."""
        self.signs = signs
        self._folder, self._dim, self._threads = folder, dim, threads
        self._edge = _edge()
        self._changed = False
        if not folder.exists():
            seal.remove(folder)
            self._create()
        seal.check(folder)
        self._shard = self._load(signs)

    def store(self, pictures: Sequence[Picture], vectors: np.ndarray) -> None:
        points = [
            self._edge.Point(id=picture.id, vector=vector, payload=picture.to_payload())
            for picture, vector in zip(pictures, vectors.astype(np.float32).tolist(), strict=True)
        ]
        self._write(lambda: self._shard.update(self._edge.UpdateOperation.upsert_points(points)))

    def delete(self, ids: Sequence[str]) -> None:
        for first in range(0, len(ids), _PAGE):
            points = list(ids[first : first + _PAGE])
            delete = self._edge.UpdateOperation.delete_points(points)
            self._write(lambda delete=delete: self._shard.update(delete))

    def pictures(self) -> Iterator[Picture]:
        offset = None
        while True:
            request = self._edge.ScrollRequest(offset=offset, limit=_PAGE, with_payload=True)
            with self._told("read"):
                records, offset = self._shard.scroll(request)
            yield from (Picture.from_payload(record.payload) for record in records)
            if offset is None:
                return

    def vectors(self, ids: Sequence[str]) -> dict[str, np.ndarray]:
        with self._told("read"):
            records = self._shard.retrieve(list(ids), with_payload=False, with_vector=True)
        return {str(record.id): np.asarray(record.vector, np.float32) for record in records}

    def search(self, query: np.ndarray, limit: int, where: Where) -> list[Found]:
        request = self._edge.QueryRequest(
            limit=limit,
            query=self._edge.Query.Nearest(query.astype(np.float32).tolist()),
            filter=engines.conditions(self._edge, self._edge.RangeFloat, where),
            params=engines.how(self._edge, limit, self.signs),
            with_payload=True,
            with_vector=True,
        )
        with self._told("read"):
            points = self._shard.query(request)
        return [
            Found(Picture.from_payload(point.payload), point.score, np.asarray(point.vector, np.float32))
            for point in points
        ]

    def settle(self) -> None:
        if len(self) > engines.EXACT_UP_TO and not self.signs:
            self._unseal()
            self._shard.close()
            self._shard = self._load(signs=True)
            self.signs = True
        self._write(self._shard.optimize)
        self._write(self._shard.flush)

    def check(self) -> None:
        """Reads all files, to find any that is damaged."""
        if not self._changed:
            seal.check(self._folder, whole=True)

    def close(self) -> None:
        self._shard.close()
        if self._changed:
            self._load(self.signs).close()  # which puts in order what its last changes left
            seal.write(self._folder)
            self._changed = False

    def __len__(self) -> int:
        return self._shard.count(self._edge.CountRequest(exact=True))

    def _write(self, change: Callable[[], Any]) -> None:
        self._unseal()
        with self._told("written"):
            change()

    def _unseal(self) -> None:
        if not self._changed:
            self._changed = True
            seal.remove(self._folder)

    @contextlib.contextmanager
    def _told(self, done: str) -> Iterator[None]:
        """The engine raises nothing more particular, and a panic of its is not even an Exception."""
        try:
            yield
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit):
                raise
            name, why = shorten(str(self._folder.parent)), shorten(str(error))
            if "WouldBlock" in str(error):
                raise BadRequest(
                    f"index: {name} is in use by another process; allowed one at a time, or a server (--url)"
                ) from None
            raise BadRequest(f"index: {name} cannot be {done} ({why})") from None

    def _config(self, signs: bool) -> Any:
        edge = self._edge
        vectors = edge.EdgeVectorParams(size=self._dim, distance=edge.Distance.Dot, memory=edge.Memory.Cold)
        graph = edge.HnswIndexConfig(
            m=engines.links(self._dim) if signs else 0,
            ef_construct=engines.CANDIDATES,
            full_scan_threshold=engines.SCANNED_KB,
        )
        return edge.EdgeConfig(
            vectors=vectors,
            hnsw_config=graph,
            quantization_config=self._quantization() if signs else None,
            optimizers=edge.EdgeOptimizersConfig(indexing_threshold=engines.SCANNED_KB),
            max_search_threads=self._threads,
        )

    def _quantization(self) -> Any:
        bits = self._edge.BinaryQuantizationEncoding
        encoding = bits.TwoBits if self._dim < engines.SHORT_BELOW else bits.OneBit
        return self._edge.BinaryQuantizationConfig(encoding=encoding, memory=self._edge.Memory.Pinned)

    def _create(self) -> None:
        """Made aside and renamed: a process killed here leaves nothing that looks like an index."""
        with aside.folder(self._folder) as place:
            self._edge.EdgeShard.create(str(place), self._config(signs=False)).close()

    def _load(self, signs: bool) -> Any:
        with self._told("opened"):
            return self._edge.EdgeShard.load(str(self._folder), self._config(signs))


def _edge() -> Any:
    try:
        import qdrant_edge
    except ImportError:
        raise BadRequest(
            "index: an index needs qdrant-edge-py (pip install 'qdrant-edge-py>=0.9,<0.10')"
        ) from None
    return qdrant_edge
