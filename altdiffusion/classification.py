"""Zero-shot classification: class names in any language, put into templates, against a picture's features.

As in CLIP (Radford et al. 2021, section 3.1.4): a class is the mean of its filled templates' unit features,
brought back to unit length. Templates per language are in `templates/*.json`, each with its source.
"""

import functools
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from altdiffusion import aside
from altdiffusion.images import open_image
from altdiffusion.languages import language as known_language
from altdiffusion.model import AltCLIP
from altdiffusion.reading import one_line
from altdiffusion.requests import BadRequest, as_list, clean_text, shorten

if TYPE_CHECKING:
    Texts = str | Sequence[str]
    Pictures = Image.Image | str | os.PathLike | Sequence[Image.Image | str | os.PathLike] | Tensor
    Tag = str
    Count = int
else:  # checked here, where the message can say what to do
    Texts = Pictures = Tag = Count = Any

_FOLDER = Path(__file__).parent / "templates"
_SLOT = re.compile(r"\{c?\}")  # `{}`, or `{c}` as CLIP_benchmark writes it
_TEXTS = 4096  # encoded together: enough for equal lengths to meet
_FORMAT = "altdiffusion-classifier-1"


@dataclass(frozen=True)
class Templates:
    """A language's ways to ask for {}, what stands in {} for anything at all, and where they come from."""

    templates: tuple[str, ...]
    anything: str
    source: str


@dataclass(frozen=True)
class Classification:
    """A picture's labels, the best first, with their scores."""

    labels: tuple[str, ...]
    scores: tuple[float, ...]

    @property
    def label(self) -> str:
        return self.labels[0]

    @property
    def score(self) -> float:
        return self.scores[0]


class ZeroShotClassifier:
    """Tells which of `labels` a picture shows. `templates` replaces the language's own."""

    def __init__(
        self, clip: AltCLIP, labels: Texts, *, language: Tag = "en", templates: Texts | None = None
    ) -> None:
        own = templates_of(language)
        self.clip = clip
        self.labels = check_labels(labels)
        self.language = known_language(language).tag
        self.templates = own.templates if templates is None else check_templates(templates)
        # The last row is what a label has to beat where several may be right.
        rows = class_weights(clip, [*self.labels, own.anything], self.templates)
        self.weights: Float[Tensor, "labels dim"] = rows[:-1]
        self._anything: Float[Tensor, "one dim"] = rows[-1:]

    def __call__(
        self, images: Pictures, k: Count | None = None, *, multi_label: bool = False
    ) -> list[Classification]:
        """The `k` best labels of each picture (None: all)."""
        k = check_k(k, len(self.labels))
        best = self.scores(images, multi_label=multi_label).topk(k, dim=1)
        return [
            Classification(tuple(self.labels[i] for i in places), tuple(values))
            for values, places in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]

    @torch.no_grad()
    def scores(self, images: Pictures, *, multi_label: bool = False) -> Float[Tensor, "pictures labels"]:
        """Probabilities over the labels; with `multi_label` each label's own, against "something".

        The second kind says whether a picture shows a label rather than anything at all, so it does not
        depend on what else is asked for.
        """
        features = self.clip.encode_image(_opened(images)).float()
        scale = self.clip.model.logit_scale.exp().float()
        logits = scale * features @ self.weights.T
        if multi_label:
            return torch.sigmoid(logits - scale * features @ self._anything.T)
        return logits.softmax(dim=1)

    def save(self, file: str | os.PathLike) -> None:
        """One safetensors file with the weights, the labels and the model's fingerprint."""
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        notes = {
            "format": _FORMAT,
            "fingerprint": self.clip.fingerprint,
            "language": self.language,
            "labels": json.dumps(self.labels, ensure_ascii=False),
            "templates": json.dumps(self.templates, ensure_ascii=False),
        }
        tensors = {"weights": self.weights, "anything": self._anything}
        file = Path(file)
        try:
            with aside.file(file) as place:
                save_file({name: rows.cpu().contiguous() for name, rows in tensors.items()}, place, notes)
        except (OSError, SafetensorError) as error:
            where, why = shorten(str(file)), getattr(error, "strerror", None) or shorten(str(error))
            raise BadRequest(f"save: {where} cannot be written ({why})") from None

    @classmethod
    def load(cls, file: str | os.PathLike, clip: AltCLIP) -> "ZeroShotClassifier":
        """What `save` wrote; refused where another model made it."""
        notes, tensors = read_weights(file)
        if notes["fingerprint"] != clip.fingerprint:
            raise BadRequest(
                f"weights: {shorten(str(file))} was made with the model {notes['fingerprint'][:10]}, this "
                f"one is {clip.fingerprint[:10]}; allowed: the same model, or labels to make them anew"
            )
        classifier = cls.__new__(cls)
        classifier.clip, classifier.language = clip, notes["language"]
        classifier.labels = tuple(json.loads(notes["labels"]))
        classifier.templates = tuple(json.loads(notes["templates"]))
        classifier.weights = tensors["weights"].to(clip.device)
        classifier._anything = tensors["anything"].to(clip.device)
        return classifier


def templates_of(language: Tag) -> Templates:
    """The templates that come with this package for a language."""
    return _templates(known_language(language).tag)


@functools.cache
def _templates(tag: str) -> Templates:
    file = _FOLDER / f"{tag}.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    return Templates(tuple(content["templates"]), content["anything"], content["source"])


@torch.no_grad()
def class_weights(
    clip: AltCLIP, labels: Sequence[str], templates: Sequence[str]
) -> Float[Tensor, "labels dim"]:
    """Each label in every template: the mean of the unit features, brought back to unit length."""
    together = max(1, _TEXTS // len(templates))
    rows = []
    for at in range(0, len(labels), together):
        texts = [fill(template, label) for label in labels[at : at + together] for template in templates]
        features = clip.encode_text(texts).float().unflatten(0, (-1, len(templates)))
        rows.append(F.normalize(features.mean(dim=1), dim=-1))
    return torch.cat(rows)


def fill(template: str, label: str) -> str:
    return _SLOT.sub(lambda slot: label, template)


def check_labels(labels: Texts) -> tuple[str, ...]:
    given = as_list(labels, "labels", str, "a text, or a list of texts")
    cleaned = [clean_text(label, "labels") for label in given]
    if not any(cleaned):
        raise BadRequest("labels: nothing given; allowed one or more names of what a picture may show")
    seen: set[str] = set()
    for label in cleaned:
        if not label or label in seen:
            what = f"{shorten(label)} twice" if label else "an empty one"
            raise BadRequest(f"labels: {what}; allowed different names of what a picture may show")
        seen.add(label)
    return tuple(cleaned)


def check_templates(templates: Texts) -> tuple[str, ...]:
    given = as_list(templates, "templates", str, "a text with {} for the label, or a list of them")
    for template in given or [""]:
        if not isinstance(template, str) or not _SLOT.search(template):
            raise BadRequest(
                f"templates: {shorten(template)} has no place for the label; allowed texts with {{}}"
            )
    return tuple(clean_text(template, "templates") for template in given)


def check_k(k: Count | None, labels: int) -> int:
    if k is None:
        return labels
    if not isinstance(k, int) or isinstance(k, bool) or k < 1:
        raise BadRequest(f"k: {shorten(k)}; allowed whole numbers from 1")
    return min(k, labels)


def read_weights(file: str | os.PathLike) -> tuple[dict[str, str], dict[str, Tensor]]:
    """The notes and the tensors of a saved classifier, checked."""
    from safetensors import safe_open

    name = shorten(str(file))
    if not Path(file).is_file():
        raise BadRequest(f"weights: no file {name}; allowed what `classify --save` wrote")
    try:
        with safe_open(file, "pt") as content:
            notes = dict(content.metadata() or {})
            tensors = {key: content.get_tensor(key) for key in content.keys()}  # noqa: SIM118
    except Exception as error:  # the library has an exception of its own for each fault
        raise BadRequest(f"weights: {name} is no safetensors file ({one_line(error)})") from None
    if notes.get("format") != _FORMAT or tensors.keys() != {"weights", "anything"}:
        raise BadRequest(f"weights: {name} is no classifier; allowed what `classify --save` wrote")
    return notes, tensors


def _opened(images: Pictures) -> Any:
    """Paths opened, everything else as it is."""
    if isinstance(images, Tensor):
        return images
    many = as_list(images, "images", (Image.Image, str, os.PathLike), "pictures, or paths of them")
    return [open_image(Path(i), "images") if isinstance(i, str | os.PathLike) else i for i in many]
