"""Tasks: a model and a data set in one language → scores.

Features are made in stretches and each is kept as soon as it is there, so that an interrupted run goes on
where it was. A stretch's name holds what it depends on: model, number format, files and texts.
"""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from altdiffusion import aside
from altdiffusion.classification import class_weights, templates_of
from altdiffusion.evaluation.datasets import Captioned, Found, Labelled, Picture
from altdiffusion.evaluation.metrics import Score, classification_scores, retrieval_hits, retrieval_scores
from altdiffusion.languages import LANGUAGES

if TYPE_CHECKING:
    from altdiffusion.model import AltCLIP

_STRETCH = 256  # pictures or texts between two savings
_CLASSES = 32  # classes between two savings: with CLIP's 80 templates, 2,560 texts


@dataclass(frozen=True)
class Outcome:
    """What one data set in one language gave. `texts` are captions or classes, `data` is a SHA-256."""

    data_set: str
    language: str
    kind: str
    pictures: int
    texts: int
    scores: dict[str, Score]
    data: str
    templates: str | None = None
    """`the data's` or `ours`: only with the data's own are published figures comparable."""


class Features:
    """Unit features of pictures, texts and classes, kept in `folder` where one is given."""

    def __init__(self, clip: "AltCLIP", folder: Path | None = None) -> None:
        self.clip = clip
        self.folder = folder
        self._last: tuple[tuple[Picture, ...], Tensor] | None = None
        if folder is not None:
            folder.mkdir(exist_ok=True)

    def of_pictures(self, pictures: tuple[Picture, ...]) -> Float[Tensor, "pictures dim"]:
        """Several languages of one data set in a row share the pictures' features."""
        if self._last is None or self._last[0] != pictures:
            with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:

                def encode(part: Sequence[Picture]) -> Tensor:
                    return self.clip.encode_image(list(pool.map(Picture.open, part)))

                self._last = pictures, self._in_stretches("pictures", pictures, _STRETCH, encode, _stamp)
        return self._last[1]

    def of_texts(self, texts: Sequence[str]) -> Float[Tensor, "texts dim"]:
        return self._in_stretches("texts", texts, _STRETCH, self.clip.encode_text)

    def of_classes(self, names: Sequence[str], templates: Sequence[str]) -> Float[Tensor, "classes dim"]:
        def weights(part: Sequence[str]) -> Tensor:
            return class_weights(self.clip, part, templates)

        return self._in_stretches("classes", names, _CLASSES, weights, lambda name: [name, *templates])

    def _in_stretches(
        self,
        kind: str,
        items: Sequence[Any],
        size: int,
        make: Callable[[Sequence[Any]], Tensor],
        stamp: Callable[[Any], Any] = str,
    ) -> Tensor:
        from tqdm import tqdm

        made = []
        with tqdm(total=len(items), desc=kind, leave=False, disable=None) as bar:
            for at in range(0, len(items), size):
                part = items[at : at + size]
                made.append(self._kept([kind, *map(stamp, part)], lambda part=part: make(part)))
                bar.update(len(part))
        return torch.cat(made)

    def _kept(self, depends: list[Any], make: Callable[[], Tensor]) -> Tensor:
        if self.folder is None:
            return make().float().cpu()
        text = json.dumps([self.clip.fingerprint, str(self.clip.dtype), depends], ensure_ascii=False)
        file = self.folder / f"{hashlib.sha256(text.encode()).hexdigest()}.npy"
        if file.is_file():
            return torch.from_numpy(np.load(file))
        features = make().float().cpu()
        with aside.file(file) as place, place.open("wb") as stream:
            np.save(stream, features.numpy())
        return features


def run(found: Found, tag: str, features: Features) -> Outcome:
    """One data set in one language."""
    data = found.read(tag)
    return (retrieval if found.kind == "retrieval" else zero_shot)(found.name, tag, data, features)


def retrieval(name: str, tag: str, data: Captioned, features: Features) -> Outcome:
    """The six recalls and MR."""
    numbers = [len(texts) for texts in data.captions]
    owners = torch.arange(len(numbers)).repeat_interleave(torch.tensor(numbers))
    texts = features.of_texts([text for texts in data.captions for text in texts])
    images = features.of_pictures(data.pictures)
    scores = retrieval_scores(retrieval_hits(images, texts, owners), owners)
    return Outcome(name, tag, "retrieval", len(images), len(texts), scores, data.digest)


def zero_shot(name: str, tag: str, data: Labelled, features: Features) -> Outcome:
    """Top-1, top-5 and mean per-class recall, with the data's templates or else ours for the language."""
    ours = templates_of(tag if tag in LANGUAGES else "en")
    templates = data.templates or ours.templates
    classes = features.of_classes(data.class_names, templates)
    logits = features.of_pictures(data.pictures) @ classes.T
    scores = classification_scores(logits, torch.tensor(data.labels))
    whose = "the data's" if data.templates else "ours"
    return Outcome(name, tag, "zero-shot", len(logits), len(classes), scores, data.digest, whose)


def _stamp(picture: Picture) -> list[Any]:
    state = picture.file.stat()
    return [str(picture.file.resolve()), picture.start, picture.size, state.st_size, state.st_mtime_ns]
