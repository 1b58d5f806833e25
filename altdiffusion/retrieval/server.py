"""The engine on a Qdrant server or cluster, through its client; `:memory:` is the client's own imitation."""

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from altdiffusion.requests import BadRequest, shorten
from altdiffusion.retrieval import engines
from altdiffusion.retrieval.engines import Found
from altdiffusion.retrieval.pictures import Picture
from altdiffusion.retrieval.where import Where

_PAGE = 1000
_KEY = "QDRANT_API_KEY"


class ServerEngine:
    """One collection. A key, where the server wants one, comes from the environment: QDRANT_API_KEY."""

    def __init__(self, url: str, collection: str, dim: int) -> None:
        self._url, self._collection, self._dim = url, collection, dim
        client, self._models = _client()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Api key is used with an insecure connection")
            self._client = self._ask(lambda: _connected(client, url))
        if not self._ask(lambda: self._client.collection_exists(collection)):
            self._ask(lambda: self._create(dim))
        config = self._ask(lambda: self._client.get_collection(collection)).config
        self.signs = config.quantization_config is not None
        if config.params.vectors.size != dim:
            raise BadRequest(
                f"url: collection {collection} has vectors of {config.params.vectors.size}; allowed {dim}"
            )

    def store(self, pictures: Sequence[Picture], vectors: np.ndarray) -> None:
        points = [
            self._models.PointStruct(id=picture.id, vector=vector, payload=picture.to_payload())
            for picture, vector in zip(pictures, vectors.astype(np.float32).tolist(), strict=True)
        ]
        self._ask(lambda: self._client.upsert(self._collection, points, wait=True))

    def delete(self, ids: Sequence[str]) -> None:
        for first in range(0, len(ids), _PAGE):
            points = self._models.PointIdsList(points=list(ids[first : first + _PAGE]))
            self._ask(lambda points=points: self._client.delete(self._collection, points, wait=True))

    def pictures(self) -> Iterator[Picture]:
        offset = None
        while True:
            records, offset = self._ask(
                lambda offset=offset: self._client.scroll(self._collection, limit=_PAGE, offset=offset)
            )
            yield from (Picture.from_payload(record.payload or {}) for record in records)
            if offset is None:
                return

    def vectors(self, ids: Sequence[str]) -> dict[str, np.ndarray]:
        records = self._ask(lambda: self._client.retrieve(self._collection, list(ids), with_vectors=True))
        return {str(record.id): np.asarray(record.vector, np.float32) for record in records}

    def search(self, query: np.ndarray, limit: int, where: Where) -> list[Found]:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Local mode performs exact")
            response = self._ask(
                lambda: self._client.query_points(
                    self._collection,
                    query=query.astype(np.float32).tolist(),
                    query_filter=engines.conditions(self._models, self._models.Range, where),
                    limit=limit,
                    search_params=engines.how(self._models, limit, self.signs),
                    with_payload=True,
                    with_vectors=True,
                )
            )
        return [
            Found(
                Picture.from_payload(point.payload or {}), point.score, np.asarray(point.vector, np.float32)
            )
            for point in response.points
        ]

    def settle(self) -> None:
        if len(self) > engines.EXACT_UP_TO and not self.signs:
            bits = self._models.BinaryQuantizationEncoding
            encoding = bits.TWO_BITS if self._dim < engines.SHORT_BELOW else bits.ONE_BIT
            signs = self._models.BinaryQuantization(
                binary=self._models.BinaryQuantizationConfig(encoding=encoding, always_ram=True)
            )
            graph = self._models.HnswConfigDiff(
                m=engines.links(self._dim),
                ef_construct=engines.CANDIDATES,
                full_scan_threshold=engines.SCANNED_KB,
            )
            self._ask(
                lambda: self._client.update_collection(
                    self._collection, quantization_config=signs, hnsw_config=graph
                )
            )
            self.signs = True

    def check(self) -> None:
        """A server's files are its own."""

    def close(self) -> None:
        self._client.close()

    def __len__(self) -> int:
        return self._ask(lambda: self._client.count(self._collection, exact=True)).count

    def _create(self, dim: int) -> None:
        """`m=0`: no graph before `settle` asks for one, as embedded. Filters get their indexes."""
        models = self._models
        self._client.create_collection(
            self._collection,
            vectors_config=models.VectorParams(size=dim, distance=models.Distance.DOT, on_disk=True),
            hnsw_config=models.HnswConfigDiff(m=0),
            on_disk_payload=True,
        )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Payload indexes have no effect in the local Qdrant")
            for field, kind in (("folders", "keyword"), ("mtime_ns", "integer"), ("bytes", "integer")):
                self._client.create_payload_index(
                    self._collection, field, field_schema=models.PayloadSchemaType(kind)
                )

    def _ask(self, question: Callable[[], Any]) -> Any:
        from qdrant_client.http.exceptions import ApiException

        try:
            return question()
        except (ApiException, OSError, ValueError) as error:
            raise BadRequest(
                f"url: {shorten(self._url)} does not answer as Qdrant ({shorten(str(error))})"
            ) from None


def _connected(client: Any, url: str) -> Any:
    if url == ":memory:":
        return client(":memory:")
    return client(url=url, api_key=os.environ.get(_KEY), timeout=60, check_compatibility=False)


def _client() -> tuple[Any, Any]:
    try:
        from qdrant_client import QdrantClient, models
    except ImportError:
        raise BadRequest("url: a server needs qdrant-client (pip install 'qdrant-client>=1.20')") from None
    return QdrantClient, models
