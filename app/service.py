"""What the app does, without a word about how it looks: draw, compare, search, classify, read.

All model work is done by one thread (`queueing`). What is asked is checked in the call itself, before it
waits; drawings are iterators of news that may be closed at any time. Heavy libraries are imported when a
model is loaded, so that this module costs nothing.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from altdiffusion.images import read_provenance
from altdiffusion.languages import LANGUAGES, language
from altdiffusion.requests import SCHEDULERS, BadRequest, GenerateRequest, Provenance

from .meters import Meters
from .news import Compared, Drawing, Drawn, Found, Limits, ModelInfo, Ranked
from .queueing import Busy, Closed, Member, ModelThread, Ticket, Waiting

if TYPE_CHECKING:
    from altdiffusion import AltCLIP, AltDiffusionPipeline, ImageIndex, Picture
    from altdiffusion.generation import Order, Step

__all__ = [
    "Busy",
    "Closed",
    "Compared",
    "Drawing",
    "Drawn",
    "Found",
    "Limits",
    "ModelInfo",
    "Ranked",
    "Service",
    "Waiting",
]

_PREVIEW_EVERY = 2  # steps


@dataclass(frozen=True)
class _Work:
    """What a member of the queue has drawn, and what its pictures become."""

    orders: "Sequence[Order]"
    conclude: "Callable[[list[list[Picture]]], Drawn | Compared]"


class Service:
    """One model, shared by all visitors. Close it, or use it in a `with`."""

    def __init__(
        self,
        pipeline: "AltDiffusionPipeline",
        *,
        index: "ImageIndex | None" = None,
        encoder: "AltCLIP | None" = None,
        max_waiting: int = 32,
        batch: int | None = None,
        limits: Limits | None = None,
    ) -> None:
        from .previews import Previewer

        self.pipeline, self.index, self._encoder = pipeline, index, encoder
        self.batch = batch or (1 if pipeline.device.type == "cpu" else 4)
        self.info = _info(pipeline, index, limits or Limits())
        self._preview = Previewer(pipeline.vae)
        self._meters, self._began = Meters(), time.time()
        self._thread = ModelThread(self._draw, max_waiting=max_waiting, most=self.batch)

    @classmethod
    def load(
        cls,
        model: str | Path | None = None,
        *,
        index: str | Path | None = None,
        dtype: Any = None,
        device: Any = None,
        max_waiting: int = 32,
        batch: int | None = None,
        encoder: str | Path | None = None,
    ) -> "Service":
        """`model` as everywhere: None is the bundled one. `index` is a folder that `altdiffusion index` made;
        `encoder` another AltCLIP than the model's own, to search and classify with. `batch` is how many
        pictures are drawn together at most (default: 1 on a CPU, 4 on an accelerator)."""
        from altdiffusion import AltCLIP, AltDiffusionPipeline, ImageIndex

        options = {"dtype": dtype, "device": device}
        pipeline = AltDiffusionPipeline.from_pretrained(model, **options)
        clip = None if encoder is None else AltCLIP.from_pretrained(encoder, **options)
        opened = None if index is None else ImageIndex.open(index)
        return cls(pipeline, index=opened, encoder=clip, max_waiting=max_waiting, batch=batch)

    def generate(
        self,
        request: GenerateRequest,
        *,
        start: Image.Image | None = None,
        mask: Image.Image | None = None,
        mix: tuple[str, float] | None = None,
    ) -> Ticket:
        """News of a drawing: `Waiting`, `Drawing`, and at last `Drawn`.

        `start` is the picture to start from, `mask` white where it is to be drawn anew. `mix` is a second
        prompt and how far to go to it.
        """
        if mix is not None:
            fields = request.model_dump(exclude_unset=True) | {"mix": mix[0], "mix_share": mix[1]}
            request = GenerateRequest.build(**fields)
        order = self._order(request, start=start, mask=mask)
        return self._submit("generate", _Work([order], lambda drawn: Drawn(tuple(drawn[0]))))

    def compare(self, prompts: Mapping[str, str], request: GenerateRequest) -> Ticket:
        """A picture of each language's prompt, all from one seed: `Waiting`, `Drawing`, at last `Compared`."""
        if not prompts:
            raise BadRequest("prompts: nothing given; allowed one or more languages with a prompt each")
        request = request.model_copy(update={"count": 1}).with_seed()
        fields = request.model_dump(exclude_unset=True)
        orders: dict[str, Order] = {}
        for tag, prompt in prompts.items():
            known = language(tag, "prompts").tag
            asked = {**fields, "prompt": prompt, "language": known, "seed": request.seed}
            orders[known] = self._order(GenerateRequest.build(**asked))
        return self._submit(
            "compare", _Work(list(orders.values()), lambda drawn: self._compared(list(orders), drawn))
        )

    def read(self, picture: str | bytes) -> Provenance:
        """How a PNG was made, from the note in it."""
        self._meters.add("requests_total", label="read")
        return read_provenance(picture)  # pyright: ignore[reportArgumentType]

    def health(self) -> dict[str, Any]:
        return {
            "status": "ok" if self._thread.alive else "closed",
            "model": self.info.name,
            "device": str(self.pipeline.device),
            "waiting": self._thread.waiting,
            "drawing": self._thread.drawing,
            "allowed": self._thread.max_waiting,
            "seconds_up": round(time.time() - self._began),
        }

    def meters(self) -> str:
        """Counts and times in Prometheus's text format."""
        return self._meters.text({"waiting": self._thread.waiting, "drawing": self._thread.drawing})

    def close(self) -> None:
        self._thread.close()
        if self.index is not None:
            self.index.close()

    def __enter__(self) -> "Service":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _order(self, request: GenerateRequest, **pictures: Image.Image | None) -> "Order":
        from altdiffusion.generation import prepare

        if request.image is not None:
            raise BadRequest("image: a path is of no use here; allowed a picture (start)")
        order = prepare(self.pipeline, request, **pictures)
        _check_limits(order.request, self.info)
        return order

    def _submit(self, action: str, work: _Work) -> Ticket:
        key = work.orders[0].key
        size = sum(order.request.count for order in work.orders)
        try:
            ticket = self._thread.submit(work, key=key, size=size)
        except Busy:
            self._meters.add("refusals_total", label="busy")
            raise
        self._meters.add("requests_total", label=action)
        return ticket

    def _draw(self, members: Sequence[Member]) -> "list[Drawn | Compared]":
        """On the model's thread."""
        from altdiffusion.generation import draw_together

        began = time.monotonic()
        self._meters.add("waiting_seconds_total", sum(began - member.joined for member in members))
        owners = [member for member in members for _ in member.work.orders]
        orders = [order for member in members for order in member.work.orders]
        seen: dict[Member, dict[tuple[int, int], Image.Image]] = {member: {} for member in members}

        def watch(step: "Step") -> None:
            self._thread.between(members)
            fresh = step.done % _PREVIEW_EVERY == 0 or step.done == step.of
            previews = zip(step.places, self._preview(step.latents), strict=True) if fresh else ()
            for place, preview in previews:
                seen[owners[place[0]]][place] = preview
            left = (time.monotonic() - began) / step.done * (step.of - step.done)
            for member, previews in seen.items():
                member.tell(Drawing(step.done, step.of, tuple(previews.values()) if fresh else (), left))

        try:
            drawn = draw_together(self.pipeline, orders, watch, batch_size=self.batch)
        except Exception:
            self._meters.add("abandoned_total")
            raise
        self._meters.add("drawings_total")
        self._meters.add("pictures_total", sum(map(len, drawn)))
        self._meters.add("drawing_seconds_total", time.monotonic() - began)
        results = []
        for member in members:
            own, drawn = drawn[: len(member.work.orders)], drawn[len(member.work.orders) :]
            results.append(member.work.conclude(own))
        return results

    def _compared(self, tags: Sequence[str], drawn: "list[list[Picture]]") -> Compared:
        """On the model's thread, as the encoder is the model's."""
        from altdiffusion.grids import labelled_grid

        pictures = {tag: of_language[0] for tag, of_language in zip(tags, drawn, strict=True)}
        grid = labelled_grid([(LANGUAGES[tag], [picture.image]) for tag, picture in pictures.items()])
        texts = images = []
        if (clip := self._clip()) is not None:
            rows = clip.encode_text([picture.provenance.prompt for picture in pictures.values()]).float()
            columns = clip.encode_image([picture.image for picture in pictures.values()]).float()
            texts, images = (rows @ rows.T).tolist(), (columns @ columns.T).tolist()
        return Compared(pictures, grid, texts, images)

    def _clip(self) -> "AltCLIP | None":
        """The encoder, loaded when it is first needed; None where the model holds none."""
        if self._encoder is None:
            try:
                self._encoder = self.pipeline.altclip
            except ValueError:
                return None
        return self._encoder


def _info(pipeline: "AltDiffusionPipeline", index: "ImageIndex | None", limits: Limits) -> ModelInfo:
    from altdiffusion import bundled
    from altdiffusion.generation import model_name

    source = pipeline.source
    folder = None if source is None else Path(source)
    card = bundled.card(folder) if folder is None or (folder / bundled.CARD).is_file() else {}
    return ModelInfo(
        name=model_name(source),
        generation_defaults=pipeline.generation_defaults,
        languages=tuple(card.get("languages") or LANGUAGES),
        covered=tuple(card.get("covered") or ()),
        schedulers=tuple(SCHEDULERS),
        has_search=index is not None or bool(card),
        limits=limits,
    )


def _check_limits(request: GenerateRequest, info: ModelInfo) -> None:
    limits, defaults = info.limits, info.generation_defaults
    pixels = max(limits.pixels, defaults.width * defaults.height)
    assert request.width and request.height and request.steps
    if request.width * request.height > pixels:
        size = f"{request.width}x{request.height}"
        raise BadRequest(f"size: {size} is too large here; allowed up to {pixels:,} pixels")
    for name, most in (("steps", limits.steps), ("count", limits.count)):
        value = getattr(request, name)
        if value > most:
            raise BadRequest(f"{name}: {value}; allowed here a whole number from 1 to {most}")
