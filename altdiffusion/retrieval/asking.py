"""What a search is for, checked before any model work, and turned into the parts of a query."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from altdiffusion.images import open_image
from altdiffusion.requests import BadRequest, as_list, clean_text, shorten
from altdiffusion.retrieval.queries import Part, unit
from altdiffusion.retrieval.where import ANYWHERE, Where

if TYPE_CHECKING:
    from torch import Tensor

    from altdiffusion.model import AltCLIP

    Texts = str | Sequence[str]
    Picture = str | os.PathLike | Image.Image
    Pictures = Picture | Sequence[Picture] | Tensor
    Share = float
else:  # checked here, where the message can say what to do
    Texts = Pictures = Share = Any

MAX_RESULTS = 1000
_PICTURES = "pictures, or paths of them"
#: Plain captions of this and that, whose mean stands for where texts lie as such.
PLAIN = tuple(
    f"a picture of {thing}"
    for things in (
        ("a dog", "a bird", "a fish", "a woman", "a man", "children", "a crowd", "a face", "a hand"),
        ("a house", "a city street", "a bridge", "a car", "a bicycle", "a train", "a ship", "an aeroplane"),
        ("a mountain", "the sea", "a forest", "a flower", "the night sky", "snow", "fire", "food", "fruit"),
        ("a cup", "a chair", "a book", "a computer", "a map", "a sign", "a game", "music", "a machine"),
    )
    for thing in things
)


@dataclass(frozen=True)
class Asked:
    """A query as it was asked: cleaned texts, and opened pictures or `pixel_values`."""

    texts: list[str]
    images: Any
    weight: float
    more: list[str]
    less: list[str]

    @classmethod
    def checked(
        cls, text: Texts | None, image: Pictures | None, weight: Share, more: Texts | None, less: Texts | None
    ) -> "Asked":
        asked = cls(
            texts=_texts(text, "text"),
            images=_images(image),
            weight=_share(weight, "weight"),
            more=_texts(more, "more"),
            less=_texts(less, "less"),
        )
        if not asked.texts and not len(asked.images):
            raise BadRequest("text: nothing to search for; allowed a text, a picture (image), or both")
        return asked

    def parts(self, clip: "AltCLIP", image_mean: np.ndarray, text_mean: np.ndarray) -> list[Part]:
        both = bool(self.texts) and len(self.images) > 0
        wanted = [
            (self.texts, 1 - self.weight if both else 1.0),
            (self.more, 0.5),
            (self.less, -0.5),
        ]
        parts = [
            Part(_one(clip.encode_text(texts)), text_mean, weight) for texts, weight in wanted if len(texts)
        ]
        if len(self.images):
            vector = _one(clip.encode_image(self.images))
            parts.insert(0, Part(vector, image_mean, self.weight if both else 1.0))
        return [part for part in parts if part.weight]


def check_search(k: Any, alike: Any, where: Any = ANYWHERE) -> None:
    if not isinstance(where, Where):
        raise BadRequest(f"where: {shorten(where)}; allowed what Where.build gives")
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= MAX_RESULTS:
        raise BadRequest(f"k: {shorten(k)}; allowed a whole number from 1 to {MAX_RESULTS}")
    if alike is not None:
        _share(alike, "alike")


def _one(rows: "Tensor") -> np.ndarray:
    """Several are one query, their mean."""
    return unit(rows.float().cpu().numpy().mean(axis=0))


def _share(value: Any, name: str) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 <= value <= 1:  # nan is not either
        raise BadRequest(f"{name}: {shorten(value)}; allowed a number from 0 to 1")
    return float(value)


def _texts(given: Any, name: str) -> list[str]:
    if given is None:
        return []
    texts = [clean_text(text, name) for text in as_list(given, name, str, "a text, or a list of texts")]
    if not texts or not all(texts):
        raise BadRequest(f"{name}: {shorten(given)} is empty; allowed text")
    return texts


def _images(given: Any) -> Any:
    if given is None:
        return []
    from torch import Tensor

    if isinstance(given, Tensor):
        return given  # which `encode_image` checks
    images = as_list(given, "image", (str, os.PathLike, Image.Image), _PICTURES)
    if not images:
        raise BadRequest(f"image: an empty list; allowed {_PICTURES}")
    return [_opened(image) for image in images]


def _opened(image: Any) -> Image.Image:
    if isinstance(image, str | os.PathLike):
        return open_image(os.fspath(image), "image")
    if not isinstance(image, Image.Image) or not all(image.size):
        raise BadRequest(f"image: {shorten(image)} shows nothing; allowed {_PICTURES}")
    return image
