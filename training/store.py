"""Tensors that frozen models made, on disk, each under the name of what it is of.

Several processes, and several runs at once, may write into one store: each writes parts aside and renames
them, whole or not at all. What is there stays, so only what is missing has to be made.
"""

import logging
import uuid
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from altdiffusion import aside, room
from training.samples import shorten

logger = logging.getLogger(__name__)
#: A part is closed when it holds so many bytes: what a run that is cut has lost at most.
PART_BYTES = 2**28


class Store:
    """A folder of parts, read as one table of name to tensor. All tensors have as many axes."""

    def __init__(self, folder: Path, dtype: torch.dtype) -> None:
        self.folder, self.dtype = folder, dtype
        self.read()

    def read(self) -> None:
        """Takes in the parts that are there now."""
        self.values: list[np.ndarray] = []
        found = [part for path in sorted(self.folder.glob("part-*")) if (part := self.part(path))]
        keys = [keys for keys, _, _ in found]
        places = [
            np.stack([np.full(len(keys), number), starts], 1)
            for number, (keys, starts, _) in enumerate(found)
        ]
        self.keys = np.concatenate(keys) if keys else np.empty(0, "S32")
        order = np.argsort(self.keys, kind="stable")
        self.keys = self.keys[order]
        self.places = np.concatenate(places)[order] if places else np.empty((0, 2), np.int64)
        self.shapes = np.concatenate([shapes for _, _, shapes in found])[order] if found else np.empty((0, 1))

    def part(self, path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """Keys, first bytes and shapes; None, with a warning, where a power cut left it damaged."""
        try:
            keys, shapes = np.load(path / "keys.npy"), np.load(path / "shapes.npy")
            values = np.memmap(path / "values.bin", np.uint8, "r")
        except (OSError, ValueError, EOFError) as error:
            logger.warning("cache: %s is passed over (%s)", path, shorten(str(error)))
            return None
        ends = np.cumsum(shapes.prod(1) * self.dtype.itemsize)
        if len(values) != ends[-1] or len(keys) != len(shapes):
            logger.warning("cache: %s is passed over (%d bytes, not %d)", path, len(values), ends[-1])
            return None
        self.values.append(values)
        return keys, np.concatenate([[0], ends[:-1]]), shapes

    def find(self, name: str) -> int | None:
        key = np.bytes_(digest(name))
        place = int(np.searchsorted(self.keys, key))
        return place if place < len(self.keys) and self.keys[place] == key else None

    def __contains__(self, name: str) -> bool:
        return self.find(name) is not None

    def __getitem__(self, name: str) -> Tensor:
        place = self.find(name)
        if place is None:
            raise KeyError(name)
        part, start = self.places[place]
        shape = tuple(self.shapes[place].tolist())
        raw = self.values[part][start : start + int(np.prod(shape)) * self.dtype.itemsize]
        return torch.from_numpy(np.array(raw)).view(self.dtype).reshape(shape)

    def write(self, items: Iterable[tuple[str, Tensor]]) -> None:
        """Adds tensors. `read` shows them."""
        waiting: list[tuple[str, Tensor]] = []
        size = 0
        for name, tensor in items:
            waiting.append((name, tensor.detach().to("cpu", self.dtype).contiguous()))
            size += waiting[-1][1].nbytes
            if size >= PART_BYTES:
                self.add_part(waiting)
                waiting, size = [], 0
        if waiting:
            self.add_part(waiting)

    def add_part(self, items: list[tuple[str, Tensor]]) -> None:
        """A whole part or none, on the disk before it has its name."""
        with aside.folder(self.folder / f"part-{uuid.uuid4().hex}") as place:
            np.save(place / "keys.npy", np.array([digest(name) for name, _ in items], "S32"))
            np.save(place / "shapes.npy", np.array([tensor.shape for _, tensor in items], np.int64))
            with (place / "values.bin").open("wb") as file:
                for _, tensor in items:
                    file.write(tensor.flatten().view(torch.uint8).numpy().data)


def digest(name: str) -> bytes:
    return blake2b(name.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest().encode()


def share_of_names(names: Iterable[str], process: int, processes: int) -> Iterator[str]:
    """What one of several processes makes: a name alone decides whose it is, whatever is there already."""
    return (name for name in names if int(digest(name)[:8], 16) % processes == process)


def check_room(folder: Path, needed: int, what: str, argument: str = "cache") -> None:
    """Says how much will be written; refuses it where the disk of the `argument` has no room."""
    free = room.readable(room.free(folder))
    logger.info("%s: %s take %s in %s, %s are free", argument, what, room.readable(needed), folder, free)
    room.check(folder, needed, what, argument)
