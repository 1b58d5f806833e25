"""Many texts and pictures to vectors, batch by batch, and the files that hold them."""

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from altdiffusion.images import open_image
from altdiffusion.requests import clean_text

if TYPE_CHECKING:
    from altdiffusion.model import AltCLIP

Kind = Literal["text", "image"]


@dataclass(frozen=True)
class Item:
    """To be encoded: as `given` by the user, and its `content`, the cleaned text or the opened picture."""

    kind: Kind
    given: str
    content: Any


@dataclass(frozen=True)
class Encoded:
    """A text or the path of a picture, and its unit vector."""

    kind: Kind
    given: str
    embedding: list[float]


def batches(texts: Iterable[str], images: Sequence[str], size: int = 64) -> Iterator[list[Item]]:
    """Checked and opened as they are asked for, so that any number fits; each batch is of one kind."""
    of_texts = (Item("text", text, clean_text(text, "text")) for text in texts)
    of_images = (Item("image", path, open_image(path, "images")) for path in images)
    for items in (of_texts, of_images):
        while batch := list(itertools.islice(items, size)):
            yield batch


def encode(clip: "AltCLIP", batches: Iterable[list[Item]]) -> Iterator[Encoded]:
    for batch in batches:
        encoder = clip.encode_text if batch[0].kind == "text" else clip.encode_image
        vectors = encoder([item.content for item in batch]).float().cpu().tolist()
        for item, vector in zip(batch, vectors, strict=True):
            yield Encoded(item.kind, item.given, vector)


def write(rows: Iterable[Encoded], form: str, stream: Any) -> None:
    """`jsonl` as the rows come; `npy` (vectors alone) and `parquet` when all are there."""
    if form == "jsonl":
        for row in rows:
            line = json.dumps({row.kind: row.given, "embedding": row.embedding}, ensure_ascii=False)
            stream.write(line.encode("utf-8", "backslashreplace") + b"\n")
        return
    rows = list(rows)
    if form == "npy":
        import numpy as np

        np.save(stream, np.array([row.embedding for row in rows], dtype=np.float32))
        return
    import pyarrow
    import pyarrow.parquet

    columns = {kind: [row.given if row.kind == kind else None for row in rows] for kind in ("text", "image")}
    vectors = pyarrow.array([row.embedding for row in rows], pyarrow.list_(pyarrow.float32()))
    texts = {kind: pyarrow.array(column, pyarrow.string()) for kind, column in columns.items()}
    pyarrow.parquet.write_table(pyarrow.table({**texts, "embedding": vectors}), stream)
