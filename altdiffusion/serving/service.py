"""What the app does, without a word about how it looks: draw, compare, search, classify, read.

All model work is done by one thread (`queueing`). What is asked is checked in the call itself, before it
waits; drawings are iterators of news that may be closed at any time. Heavy libraries are imported when a
model is loaded, so that this module costs nothing.
"""

import contextlib
import functools
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from altdiffusion.images import read_provenance
from altdiffusion.languages import LANGUAGES, language
from altdiffusion.requests import SCHEDULERS, BadRequest, GenerateRequest, Provenance
from altdiffusion.serving.collection import Collection, opened
from altdiffusion.serving.limits import Limits, at_most
from altdiffusion.serving.meters import Meters
from altdiffusion.serving.news import Compared, Drawing, Drawn, Found, ModelInfo, Ranked
from altdiffusion.serving.queueing import Abandoned, Busy, Member, ModelThread, Ticket

if TYPE_CHECKING:
    from altdiffusion import AltCLIP, AltDiffusionPipeline, ImageIndex, Picture
    from altdiffusion.generation import Order, Step

_PREVIEW_EVERY = 2  # steps
_BATCH = 4  # 1.8 times as many pictures a second as 1, on two cores too (docs/decisions.md)
_CLASSIFIERS = 32  # kept ready, of at most a hundred labels each


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
        from altdiffusion.serving.previews import Previewer

        self.pipeline, self.index, self._encoder = pipeline, index, encoder
        self.batch = batch or _BATCH
        self.info = _info(pipeline, index, limits or Limits())
        self._preview = Previewer(pipeline.vae)
        self._classifiers: OrderedDict[tuple, Any] = OrderedDict()
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
        pictures are drawn together at most; 1 keeps the bytes of what a CPU draws (docs/serving.md)."""
        from altdiffusion import AltCLIP, AltDiffusionPipeline, ImageIndex

        options = {"dtype": dtype, "device": device}
        pipeline = AltDiffusionPipeline.from_pretrained(model, **options)
        clip = None if encoder is None else AltCLIP.from_pretrained(encoder, **options)
        pictures = None if index is None else ImageIndex.open(index, _maker(index, clip, pipeline))
        return cls(pipeline, index=pictures, encoder=clip, max_waiting=max_waiting, batch=batch)

    def generate(
        self,
        request: GenerateRequest,
        *,
        start: Image.Image | None = None,
        mask: Image.Image | None = None,
    ) -> Ticket:
        """News of a drawing: `Waiting`, `Drawing`, and at last `Drawn`.

        `start` is the picture to start from, `mask` white where it is to be drawn anew.
        """
        order = self._order(request, start=start, mask=mask)
        return self._submit("generate", _Work([order], lambda drawn: Drawn(tuple(drawn[0]))))

    def compare(self, prompts: Mapping[str, str], request: GenerateRequest) -> Ticket:
        """A picture of each language's prompt, from one seed: `Waiting`, `Drawing`, at last `Compared`."""
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

    def search(
        self,
        text: str = "",
        *,
        image: Image.Image | None = None,
        more: str = "",
        less: str = "",
        weight: float = 0.5,
        k: int = 20,
    ) -> list[Found]:
        """The `k` best pictures of the index, or of the bundled model's emoji. See `ImageIndex.search`."""
        from altdiffusion.retrieval import asking

        more_of, less_of = more or None, less or None
        asked = asking.Asked.checked(text or None, image, weight, more_of, less_of)
        at_most("k", k, self.info.limits.results)
        if not self.info.has_search:
            raise BadRequest("index: this model brings no collection; allowed with --index FOLDER")
        if (index := self.index) is None:
            emoji = self._emoji
            with self._refusals():
                while not emoji.ready:
                    self._thread.call(lambda: emoji.encode_some(self._encoder_for("search")))
            return self._call("search", lambda: emoji.search(self._encoder_for("search"), asked, k))
        hits = self._call(
            "search",
            lambda: index.search(text or None, image=image, weight=weight, more=more_of, less=less_of, k=k),
        )
        return list(opened(hits, Path(index.manifest.root)))

    def classify(
        self,
        image: Image.Image,
        labels: Mapping[str, Sequence[str]] | Sequence[str],
        *,
        language: str = "en",
        templates: Sequence[str] | None = None,
        multi_label: bool = False,
    ) -> Ranked:
        """Which of the labels the picture shows. Labels by language are ranked in each; the scores are those
        in `language` where it is among them, else in the first."""
        from altdiffusion import classification

        by_language = dict(labels) if isinstance(labels, Mapping) else {language: labels}
        checked = {tag: classification.check_labels(several) for tag, several in by_language.items()}
        if not checked:
            raise BadRequest("labels: nothing given; allowed one or more names of what a picture may show")
        for tag in checked:
            classification.templates_of(tag)
        own = None if templates is None else classification.check_templates(templates)
        at_most("labels", sum(map(len, checked.values())), self.info.limits.labels)
        at_most("templates", len(own or [""]), self.info.limits.templates)

        def rank() -> dict[str, Any]:
            clip = self._encoder_for("classify")
            ready = {tag: self._classifier(clip, tag, several, own) for tag, several in checked.items()}
            return {tag: one(image, multi_label=multi_label)[0] for tag, one in ready.items()}

        ranked = self._call("classify", rank)
        main = ranked.get(language) or next(iter(ranked.values()))
        agreement = {tag: (one.label, one.score) for tag, one in ranked.items()}
        return Ranked(main.labels, main.scores, agreement)

    def versions_of(self, prompt: str, tags: Sequence[str]) -> dict[str, str]:
        """The name of an emoji in other languages, for the bundled model; else nothing."""
        known = bool(self.info.covered) and Collection.exists()
        return self._emoji.versions(prompt, tags) if known else {}

    def together(self) -> AbstractContextManager[Any]:
        """What is submitted inside waits until all of it is there, and can be joined."""
        return self._thread.held()

    def read(self, picture: str | bytes) -> Provenance:
        """How a PNG was made, from the note in it."""
        self._meters.add("requests_total", label="read")
        return read_provenance(picture)

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
        self.info.limits.check(order.request, self.info.generation_defaults)
        return order

    def _submit(self, action: str, work: _Work) -> Ticket:
        key = work.orders[0].key
        size = sum(order.request.count for order in work.orders)
        with self._refusals():
            ticket = self._thread.submit(work, key=key, size=size)
        self._meters.add("requests_total", label=action)
        return ticket

    def _draw(self, members: Sequence[Member]) -> "list[Drawn | Compared]":
        """On the model's thread."""
        from altdiffusion.generation import draw_together

        began = first = time.monotonic()
        self._meters.add("waiting_seconds_total", sum(began - member.joined for member in members))
        owners = [member for member in members for _ in member.work.orders]
        orders = [order for member in members for order in member.work.orders]
        seen: dict[Member, dict[tuple[int, int], Image.Image]] = {member: {} for member in members}

        def watch(step: "Step") -> None:
            nonlocal first
            self._thread.between(members)
            fresh = step.done % _PREVIEW_EVERY == 0 or step.done == step.of
            pairs = zip(step.places, self._preview(step.latents), strict=True) if fresh else ()
            for place, preview in pairs:
                seen[owners[place[0]]][place] = preview
            now = time.monotonic()
            first = now if step.done == 1 else first  # the time before goes to reading prompts
            pace = (now - first) / (step.done - 1) if step.done > 1 else now - began
            left = pace * (step.of - step.done)
            for member, previews in seen.items():
                member.tell(Drawing(step.done, step.of, tuple(previews.values()) if fresh else (), left))

        try:
            drawn = draw_together(self.pipeline, orders, watch, batch_size=self.batch)
        except Exception as error:
            self._meters.add("abandoned_total" if isinstance(error, Abandoned) else "failures_total")
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

    @functools.cached_property
    def _emoji(self) -> Collection:
        return Collection()

    def _call(self, action: str, function: Callable[[], Any]) -> Any:
        """On the model's thread, between two steps of whatever is drawn."""
        with self._refusals():
            result = self._thread.call(function)
        self._meters.add("requests_total", label=action)
        return result

    @contextlib.contextmanager
    def _refusals(self) -> Iterator[None]:
        try:
            yield
        except Busy:
            self._meters.add("refusals_total", label="busy")
            raise

    def _classifier(self, clip: "AltCLIP", tag: str, labels: tuple[str, ...], templates: Any) -> Any:
        """Encoding labels in many templates takes longer than all the rest, and people ask again."""
        from altdiffusion import ZeroShotClassifier

        key = (tag, labels, templates)
        if key not in self._classifiers:
            self._classifiers[key] = ZeroShotClassifier(clip, labels, language=tag, templates=templates)
        self._classifiers.move_to_end(key)
        if len(self._classifiers) > _CLASSIFIERS:
            self._classifiers.popitem(last=False)
        return self._classifiers[key]

    def _encoder_for(self, action: str) -> "AltCLIP":
        if (clip := self._clip()) is None:
            raise BadRequest(f"encoder: this model holds none; allowed to {action} with --encoder MODEL")
        return clip

    def _clip(self) -> "AltCLIP | None":
        """The encoder, loaded when it is first needed; None where the model holds none."""
        if self._encoder is None and self.pipeline.holds_altclip:
            self._encoder = self.pipeline.altclip
        return self._encoder


def _info(pipeline: "AltDiffusionPipeline", index: "ImageIndex | None", limits: Limits) -> ModelInfo:
    from altdiffusion import bundled
    from altdiffusion.generation import model_name

    source = pipeline.source
    folder = None if source is None else Path(source).expanduser()
    card = bundled.card(folder) if folder is None or (folder / bundled.CARD).is_file() else {}
    return ModelInfo(
        name=model_name(source),
        generation_defaults=pipeline.generation_defaults,
        languages=tuple(card.get("languages") or LANGUAGES),
        covered=tuple(card.get("covered") or ()),
        schedulers=tuple(SCHEDULERS),
        has_search=index is not None or bool(card.get("covered") and Collection.exists()),
        limits=limits,
    )


def _maker(index: str | Path, clip: "AltCLIP | None", pipeline: "AltDiffusionPipeline") -> "AltCLIP | None":
    """The encoder at hand, if it made the index; else the index finds its own at its first search."""
    from altdiffusion.retrieval import manifest

    with contextlib.suppress(ValueError):
        clip = clip or pipeline.altclip
    made = manifest.read(Path(index).absolute()).fingerprint
    return clip if clip is not None and clip.fingerprint == made else None
