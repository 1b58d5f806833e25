"""Many texts and pictures to vectors, batch by batch, and the files that hold them."""

import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from altdiffusion.images import open_image
from altdiffusion.requests import clean_text
from altdiffusion.shards import Row

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


@dataclass(frozen=True)
class Block:
    """A shard's rows in their order: unit vectors, None where a row has no such part or it cannot be used."""

    keys: list[str]
    texts: list[str | None]
    image_vectors: list[list[float] | None]
    text_vectors: list[list[float] | None]
    errors: dict[str, str]


def encode_rows(clip: "AltCLIP", rows: Iterable[Row], stretch: int = 1024) -> Block:
    """Pictures are opened and shaped by threads and normalised on the device; texts are packed
    (`AltCLIP.encode_text`). A row that cannot be used is told in `errors` and stops nothing."""
    block = Block([], [], [], [], {})
    rows = iter(rows)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        while part := list(itertools.islice(rows, stretch)):
            pixels = _usable(block, part, pool.map(partial(_pixels, clip), part))
            texts = _usable(block, part, map(_text, part))
            block.keys.extend(row.key for row in part)
            block.texts.extend(row.text for row in part)
            block.image_vectors.extend(_spread(pixels, partial(_encode_pixels, clip)))
            block.text_vectors.extend(_spread(texts, lambda texts: clip.encode_text(texts).float().cpu()))
    return block


def _usable(block: Block, part: Sequence[Row], made: Iterable[Any]) -> list[Any]:
    kept = []
    for row, value in zip(part, made, strict=True):
        if isinstance(value, ValueError):
            block.errors[row.key] = str(value)
        kept.append(None if isinstance(value, ValueError) else value)
    return kept


def _pixels(clip: "AltCLIP", row: Row) -> Any:
    if row.picture is None:
        return None
    try:
        return clip.preprocess(open_image(row.picture, "images"), normalize=False)
    except ValueError as error:
        return error


def _text(row: Row) -> Any:
    try:
        return None if row.text is None else clean_text(row.text, "text")
    except ValueError as error:
        return error


def _encode_pixels(clip: "AltCLIP", pixels: list[Any], size: int = 64) -> Any:
    import torch

    parts = (torch.cat(pixels[at : at + size]) for at in range(0, len(pixels), size))
    return torch.cat([clip.encode_image(clip.normalize_pixels(part)).float().cpu() for part in parts])


def _spread(values: Sequence[Any], encode: Callable[[list[Any]], Any]) -> list[list[float] | None]:
    """The vectors of the values that are there, each in its place."""
    places = [n for n, value in enumerate(values) if value is not None]
    vectors: list[list[float] | None] = [None] * len(values)
    if places:
        for place, vector in zip(places, encode([values[n] for n in places]).tolist(), strict=True):
            vectors[place] = vector
    return vectors


def process() -> tuple[int, int, Any]:
    """This process's number, how many there are, and its device, as accelerate (or torchrun) started them."""
    import torch
    from accelerate import PartialState

    state = PartialState(
        cpu=not torch.accelerator.is_available()
    )  # without it, CPU processes are all the first
    return state.process_index, state.num_processes, state.device if state.num_processes > 1 else None
