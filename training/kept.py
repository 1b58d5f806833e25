"""What a frozen model makes of texts, kept on disk: it is read for what is not there, and only then."""

from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from training.config import RunConfig
from training.lazy import autocast, model_key, precision
from training.processes import state_of_processes
from training.store import Store, check_room, share_of_names

#: Texts encoded at a time.
CHUNK = 64
Model = TypeVar("Model")


class Kept(Generic[Model]):
    """One tensor for each text. A store holds what one model made in one precision.

    `make` is what the model says of several texts, `rows` how many rows of `width` values that will be.
    `transform` names all else that decides it.
    """

    def __init__(
        self,
        what: str,
        folder: str | Path,
        cache: Path,
        load: Callable[[], Model],
        make: Callable[[Model, list[str]], list[Tensor]],
        rows: Callable[[list[str]], list[int]],
        width: int,
        transform: str = "",
        rounded: bool = True,
    ) -> None:
        self.what, self.cache, self.load, self.make, self.rows_of = what, cache, load, make, rows
        self.width, self.transform, self.rounded = width, transform, rounded
        self.key = model_key(folder)
        self.state = state_of_processes()
        self.device = torch.device(self.state.device or "cpu")
        self.stores: dict[torch.dtype, Store] = {}

    @cached_property
    def model(self) -> Model:
        return self.load()

    @property
    def store(self) -> Store:
        """That of the precision here and now: a run in bfloat16 is told what it would have computed."""
        kind = precision(self.device)
        if kind not in self.stores:
            key = sha256(repr((self.key, self.transform, str(kind))).encode()).hexdigest()[:32]
            name = f"{self.what.replace(' ', '-')}-{key}"
            self.stores[kind] = Store(self.cache / name, kind if self.rounded else torch.float32)
        return self.stores[kind]

    def keep(self, texts: Iterable[str], run: RunConfig) -> None:
        """Makes what is missing, shared out over the processes, and lets go of the model."""
        with autocast(run, self.device):
            store = self.store
            missing = [text for text in dict.fromkeys(texts) if text not in store]
            if missing:
                values = sum(self.rows_of(missing)) * self.width
                check_room(store.folder, values * store.dtype.itemsize, f"{len(missing):,} {self.what}")
            self.state.wait_for_everyone()  # all have looked before the first one writes
            own = list(share_of_names(missing, self.state.process_index, self.state.num_processes))
            store.write(self.made(own))
            self.state.wait_for_everyone()
            store.read()
        self.__dict__.pop("model", None)

    @torch.no_grad()
    def made(self, texts: list[str]) -> Iterator[tuple[str, Tensor]]:
        """Texts of one length beside each other: hardly any padding."""
        rows = self.rows_of(texts) if texts else []
        order = sorted(range(len(texts)), key=lambda number: (rows[number], len(texts[number])))
        hidden = None if self.state.is_main_process else True
        bar = tqdm(range(0, len(texts), CHUNK), unit="batch", desc=self.what, disable=hidden)
        for first in bar:
            chunk = [texts[number] for number in order[first : first + CHUNK]]
            yield from zip(chunk, self.make(self.model, chunk), strict=True)

    @torch.no_grad()
    def __call__(self, texts: list[str]) -> list[Tensor]:
        """What is said of each; where a text is not kept, the model is asked, as often as it is there."""
        store = self.store
        unknown = [text for text in texts if text not in store]
        made: dict[str, Any] = (
            dict(zip(unknown, self.make(self.model, unknown), strict=True)) if unknown else {}
        )
        return [made[text] if text in made else store[text].to(self.device) for text in texts]
