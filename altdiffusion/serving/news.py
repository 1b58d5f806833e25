"""What a service tells of a request: news while it waits and is drawn, and what came of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from PIL import Image

from altdiffusion.serving.limits import Limits

if TYPE_CHECKING:
    from altdiffusion import Picture
    from altdiffusion.pipelines import GenerationDefaults


@dataclass(frozen=True)
class Drawing:
    """After step `step` of `steps`, over all pictures of the request.

    `pictures` are previews of those begun, the latest of each; empty between two of them.
    """

    step: int
    steps: int
    pictures: tuple[Image.Image, ...]
    seconds_left: float | None


@dataclass(frozen=True)
class Drawn:
    pictures: "tuple[Picture, ...]"


@dataclass(frozen=True)
class Compared:
    """One picture for each language, their grid, and the cosines of AltCLIP's features, in the same order.

    The cosines are empty for a model that brings no image tower.
    """

    pictures: "dict[str, Picture]"
    grid: Image.Image
    texts: list[list[float]]
    images: list[list[float]]


@dataclass(frozen=True)
class Ranked:
    """Labels, the best first, with their scores; for each language that labels were given in, its best."""

    labels: tuple[str, ...]
    scores: tuple[float, ...]
    agreement: dict[str, tuple[str, float]]


@dataclass(frozen=True)
class Found:
    """A picture that was found. `names` are its names by language, where they are known."""

    caption: str
    score: float
    picture: Image.Image
    name: str
    names: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelInfo:
    """What the widgets need to know of the model."""

    name: str
    generation_defaults: "GenerationDefaults"
    languages: tuple[str, ...]
    covered: tuple[str, ...]
    """The emoji that the bundled model draws; empty for other models."""
    schedulers: tuple[str, ...]
    has_search: bool
    limits: Limits = field(default_factory=Limits)
