"""What a locked image tower says of one's own pictures, kept on disk: a feature of each record and view."""

from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from training.config import RunConfig
from training.lazy import autocast, model_key
from training.opened import Opened
from training.pictures import PicturesConfig, as_pixels, opened, picture_reader
from training.processes import state_of_processes
from training.samples import BadSample
from training.store import Store, check_room, share_of_names

#: Pictures encoded at a time.
CHUNK = 16
Encode = Callable[[Tensor], Tensor]
"""Pixels in [-1, 1] to unit-norm features, one row each."""


class PictureFeatures:
    """`keep` fills the cache; then `records` are those whose pictures can be used."""

    def __init__(self, data: Opened, model: Path, size: int, cache: Path, run: RunConfig) -> None:
        assert data.rows is not None and data.found is not None and isinstance(data.config, PicturesConfig)
        self.rows, self.found, self.size, self.run = data.rows, data.found, size, run
        self.picture = picture_reader(data.rows.folder, data.rows.columns, data.config)
        self.views = data.config.views
        views = (self.views.random, self.views.flip)
        key = repr((model_key(model), size, views, run.mixed_precision))
        name = f"image-features-{sha256(key.encode()).hexdigest()[:32]}"
        self.store = Store(cache / name, torch.float32)
        self.names = {int(record): self.name(int(record)) for record in self.found.usable}

    def name(self, record: int) -> str:
        """Changes with the data and with the picture's file."""
        stamp = ""
        if self.rows.folder is not None:
            try:
                source = self.picture(self.rows[record])
                if isinstance(source, Path):
                    stamp = f"{source.stat().st_size} {source.stat().st_mtime_ns}"
            except (BadSample, OSError):
                stamp = "missing"
        return f"{self.rows.fingerprint} {record} {stamp}"

    def __getitem__(self, place: tuple[int, int]) -> Float[Tensor, " dim"]:
        """Of (record, view)."""
        record, view = place
        return self.store[f"{self.names[record]} {view}"]

    def keep(self, read: Callable[[], Encode], width: int) -> None:
        """Encodes what is missing, shared out over the processes. The tower is `read` if there is any."""
        state = state_of_processes()
        missing = [record for record in self.names if not self.has(record)]
        if missing:
            size = len(missing) * self.views.count * width * self.store.dtype.itemsize
            check_room(self.store.folder, size, f"{len(missing):,} image features")
        state.wait_for_everyone()  # all have looked before the first one writes
        names = {self.names[record]: record for record in missing}
        own = share_of_names(names, state.process_index, state.num_processes)
        self.store.write(self.made([names[name] for name in own], read, state))
        state.wait_for_everyone()
        self.store.read()
        for record in self.names:
            if not self.has(record):
                self.found.bad.add(self.rows.name(record), self.reason(record))
        self.names = {record: name for record, name in self.names.items() if self.has(record)}

    def has(self, record: int) -> bool:
        return all(f"{self.names[record]} {view}" in self.store for view in range(self.views.count))

    @property
    def records(self) -> np.ndarray:
        return np.array(list(self.names), np.int64)

    @torch.no_grad()
    def made(
        self, records: list[int], read: Callable[[], Encode], state: Any
    ) -> Iterator[tuple[str, Tensor]]:
        encode: Encode | None = None
        waiting: list[tuple[str, Tensor]] = []
        hidden = None if state.is_main_process else True
        device = torch.device(state.device)
        for record in tqdm(records, unit="picture", desc="image features", disable=hidden):
            waiting += self.seen(record)
            if waiting and (len(waiting) >= CHUNK or record == records[-1]):
                encode = encode or read()
                names, pixels = zip(*waiting, strict=True)
                with autocast(self.run, device):
                    features = encode(torch.stack(pixels).to(device))
                yield from zip(names, features, strict=True)
                waiting = []

    def seen(self, record: int) -> list[tuple[str, Tensor]]:
        """Name and pixels of each view; none of a damaged picture, which `keep` judges once all are there."""
        try:
            picture = opened(self.picture(self.rows[record]))
        except BadSample:
            return []
        size, count = (self.size, self.size), range(self.views.count)
        return [
            (f"{self.names[record]} {view}", as_pixels(picture, size, self.views.stored(record, view)))
            for view in count
        ]

    def reason(self, record: int) -> str:
        try:
            opened(self.picture(self.rows[record]))
        except BadSample as error:
            return str(error)
        return "could not be read when the others were"
