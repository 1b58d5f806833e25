"""What `altdiffusion classify` does."""

import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from altdiffusion.images import destination, open_image
from altdiffusion.languages import language as known_language
from altdiffusion.requests import BadRequest, shorten
from altdiffusion.terminal import say

if TYPE_CHECKING:
    from altdiffusion.classification import Classification, ZeroShotClassifier
    from altdiffusion.model import AltCLIP

_BATCH = 64


def classify(
    images: Sequence[str],
    labels: Sequence[str],
    *,
    language: str,
    templates: Sequence[str],
    k: str,
    multi_label: bool,
    weights: str | None,
    save: str | None,
    model: str | None,
    as_json: bool,
) -> None:
    """Checks everything that can be checked before the model is read; then picture after picture."""
    best = _number(k)
    known_language(language)
    if weights is not None and (labels or templates):
        raise BadRequest(f"weights: {shorten(weights)} brings labels and templates; allowed without others")
    if not images and save is None:
        raise BadRequest("images: nothing given; allowed picture files, or --save FILE alone")
    if tuple(labels) == ("-",):
        labels = [line.strip() for line in sys.stdin if line.strip()]
    if save is not None:
        destination(str(Path(save).parent), "save")
    batches = _batches(images)
    first = next(batches, [])  # opened before the model: most mistakes are in it
    from altdiffusion import classification
    from altdiffusion.checkpoints import resolve

    if weights is None:
        labels = classification.check_labels(labels)
    else:
        classification.read_weights(weights)
    chosen = classification.check_templates(templates) if templates else None
    resolve(model)
    from altdiffusion.model import AltCLIP

    classifier = _classifier(AltCLIP.from_pretrained(model), labels, language, chosen, weights)
    if save is not None:
        classifier.save(save)
    for batch in itertools.chain([first] if first else [], batches):
        pictures = [picture for _, picture in batch]
        for (path, _), found in zip(batch, classifier(pictures, best, multi_label=multi_label), strict=True):
            say(_line(path, found, as_json=as_json))


def _classifier(
    clip: "AltCLIP",
    labels: Sequence[str],
    language: str,
    templates: tuple[str, ...] | None,
    weights: str | None,
) -> "ZeroShotClassifier":
    from altdiffusion.classification import ZeroShotClassifier

    if weights is not None:
        return ZeroShotClassifier.load(weights, clip)
    return ZeroShotClassifier(clip, labels, language=language, templates=templates)


def _batches(images: Sequence[str]) -> Iterator[list[tuple[str, Image.Image]]]:
    opened = ((path, open_image(path, "images")) for path in images)
    while batch := list(itertools.islice(opened, _BATCH)):
        yield batch


def _line(path: str, found: "Classification", *, as_json: bool) -> str:
    pairs = zip(found.labels, found.scores, strict=True)
    if as_json:
        scores = {label: round(score, 6) for label, score in pairs}
        return json.dumps({"image": path, "label": found.label, "scores": scores}, ensure_ascii=False)
    return f"{path}: " + ", ".join(f"{label} {score:.3f}" for label, score in pairs)


def _number(k: str) -> int:
    try:
        number = int(k)
    except ValueError:
        number = 0
    if number < 1:
        raise BadRequest(f"k: {shorten(k)}; allowed whole numbers from 1")
    return number
