"""Latents of a whole data set on disk: encoded once, shared out over the processes, read by place.

Half precision: its rounding is a thousandth of the noise that training adds.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from altdiffusion import aside
from altdiffusion.checkpoints import fingerprint
from training.buckets import Size, View, Views, nearest
from training.lazy import weights_key
from training.pictures import as_pixels, encoded, latent_shape, opened
from training.samples import Bad, BadSample, Row, Rows
from training.store import check_room

#: Pictures encoded at a time.
CHUNK = 16


@dataclass
class Bucket:
    """Latents of one shape by the number of the record that they are of, and of its view."""

    records: np.ndarray
    """Sorted."""
    parts: list[np.ndarray]
    places: np.ndarray
    """(records * views, 2): in which part, in which row of it."""
    views: int = 1

    def __getitem__(self, record: int) -> Float[Tensor, "channels height width"]:
        return self.seen(record, 0)

    def seen(self, record: int, view: int) -> Float[Tensor, "channels height width"]:
        part, row = self.places[int(np.searchsorted(self.records, record)) * self.views + view]
        return torch.from_numpy(np.array(self.parts[part][row])).float()


@dataclass
class Part:
    """What one process writes: a file of latents per bucket, and whose they are."""

    folder: Path
    vae: AutoencoderKL
    sizes: list[Size]
    records: dict[int, list[int]] = field(default_factory=dict)
    shapes: dict[int, list[int]] = field(default_factory=dict)
    waiting: dict[int, list[tuple[int, Tensor]]] = field(default_factory=dict)

    def add(self, entry: int, picture: Any, view: View) -> None:
        bucket = nearest(picture.width, picture.height, self.sizes)
        waiting = self.waiting.setdefault(bucket, [])
        waiting.append((entry, as_pixels(picture, self.sizes[bucket], view)))
        if len(waiting) == CHUNK:
            self.write(bucket)

    def write(self, bucket: int) -> None:
        records, pixels = zip(*self.waiting.pop(bucket), strict=True)
        latents = encoded(self.vae, torch.stack(pixels)).half().cpu().numpy()
        with (self.folder / f"{bucket}.bin").open("ab") as file:
            file.write(latents.tobytes())
        self.records.setdefault(bucket, []).extend(records)
        self.shapes[bucket] = list(latents.shape[1:])

    def finish(self, bad: Bad, before: int) -> None:
        for bucket in list(self.waiting):
            self.write(bucket)
        index = {
            "records": self.records,
            "shapes": self.shapes,
            "bad": bad.count - before,
            "named": bad.named[min(before, len(bad.named)) :],
        }
        (self.folder / "index.json").write_text(json.dumps(index, ensure_ascii=False), encoding="utf-8")


def stored_latents(
    vae: AutoencoderKL,
    rows: Rows,
    source: Callable[[Row], Any],
    wanted: np.ndarray,
    sizes: list[Size],
    bad: Bad,
    folder: Path,
    state: Any,
    views: Views = Views(),  # noqa: B008 (frozen)
    argument: str = "output_dir",
) -> list[Bucket]:
    """The latents of the `wanted` records, read from `folder` or made there. `state` is accelerate's."""
    place = folder / store_key(vae, rows, source, wanted, sizes, views)
    if not complete(place):
        mine = place / f"{state.process_index}-of-{state.num_processes}"
        if not (mine / "index.json").is_file():
            count = len(wanted) * views.count
            check_room(place, count * largest(vae, sizes), f"latents of {len(wanted):,} pictures", argument)
            encode_part(vae, rows, source, wanted, sizes, bad, mine, state, views)
    state.wait_for_everyone()
    return read_store(complete(place), sizes, bad, views.count)


def largest(vae: AutoencoderKL, sizes: list[Size]) -> int:
    """Bytes of a picture's latents in the largest of the sizes."""
    return max(latent_shape(vae, *size).numel() * 2 for size in sizes)


def encode_part(
    vae: AutoencoderKL,
    rows: Rows,
    source: Callable[[Row], Any],
    wanted: np.ndarray,
    sizes: list[Size],
    bad: Bad,
    target: Path,
    state: Any,
    views: Views,
) -> None:
    own = wanted[state.process_index :: state.num_processes]
    judged = Bad(bad.share, bad.expected, bad.argument, bad.seen, list(bad.named), bad.count)
    bar = tqdm(own, unit="picture", desc="latents", disable=None if state.is_main_process else True)
    with aside.folder(target) as place:
        before, part = bad.count, Part(place, vae.to(state.device), sizes)
        for record in bar:
            try:
                picture = opened(source(rows[int(record)]))
            except BadSample as error:
                judged.add(rows.name(int(record)), error)
                continue
            for number in range(views.count):
                part.add(int(record) * views.count + number, picture, views.stored(int(record), number))
        part.finish(judged, before)
        vae.to("cpu")


def store_key(
    vae: AutoencoderKL,
    rows: Rows,
    source: Callable[[Row], Any],
    wanted: np.ndarray,
    sizes: list[Size],
    views: Views,
) -> str:
    """Changes with the autoencoder, the sizes, the views, the data, and the picture files that it names."""
    files = []
    if rows.folder is not None:
        for record in wanted:
            try:
                path = source(rows[int(record)])
                files += (
                    [f"{path.stat().st_size} {path.stat().st_mtime_ns}"] if isinstance(path, Path) else []
                )
            except (BadSample, OSError):
                files.append("missing")
    scale = repr((vae.config.scaling_factor, sizes, views))  # pyright: ignore[reportAttributeAccessIssue]
    return fingerprint([], [weights_key(vae), scale, rows.fingerprint, repr(wanted.tolist()), *files])[:32]


def complete(place: Path) -> list[Path]:
    """The parts of a store that is whole, whatever number of processes made it."""
    for first in sorted(place.glob("0-of-*")):
        count = int(first.name.split("-")[-1])
        parts = [place / f"{n}-of-{count}" for n in range(count)]
        if all((part / "index.json").is_file() for part in parts):
            return parts
    return []


def read_store(parts: list[Path], sizes: list[Size], bad: Bad, views: int) -> list[Bucket]:
    indices = [json.loads((part / "index.json").read_text(encoding="utf-8")) for part in parts]
    bad.count += sum(index["bad"] for index in indices)
    bad.named += [name for index in indices for name in index["named"]]
    bad.check()
    buckets = []
    for number in map(str, range(len(sizes))):
        arrays, entries, places = [], [], []
        for part, index in zip(parts, indices, strict=True):
            own = index["records"].get(number, [])
            if own:
                shape = (len(own), *index["shapes"][number])
                places += [(len(arrays), row) for row in range(len(own))]
                arrays.append(np.memmap(part / f"{number}.bin", np.float16, "r", shape=shape))
                entries += own
        if entries:
            order = np.argsort(entries)  # each record's views lie beside each other
            records = np.array(entries)[order][::views] // views
            buckets.append(Bucket(records, arrays, np.array(places)[order], views))
    return buckets
