"""Sizes that pictures are brought to: one square, or aspect-ratio buckets by diffusers' own functions; and
what of a picture is seen in them.
"""

import warnings
from dataclasses import dataclass

import numpy as np
from diffusers.training_utils import find_nearest_bucket, generate_aspect_ratio_buckets, parse_buckets_string
from PIL import Image, ImageOps

#: Pixels to a latent of Stable Diffusion's autoencoder.
STEP = 8
#: Sides of automatic buckets are multiples of this from 256 pixels on: no level of the UNet has to round.
WIDE_STEP = 64

Size = tuple[int, int]
"""(height, width), as diffusers has it."""


def bucket_sizes(resolution: int, buckets: str) -> list[Size]:
    """The sizes that `buckets` stands for: "" one square, "auto" diffusers' ladder, or "height,width;…"."""
    if resolution < STEP or resolution % STEP:
        raise ValueError(f"resolution: {resolution} is no multiple of {STEP}; allowed: {STEP}, {2 * STEP}, …")
    if not buckets:
        return [(resolution, resolution)]
    if buckets == "auto":
        return generate_aspect_ratio_buckets(resolution, WIDE_STEP if resolution >= 256 else STEP)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd sides, which are refused below
            sizes = parse_buckets_string(buckets)
    except ValueError as error:
        raise ValueError(f'buckets: {error}; allowed: "auto" or "height,width;height,width;…"') from None
    for size in sizes:
        if size[0] % STEP or size[1] % STEP:
            raise ValueError(f"buckets: {size[0]},{size[1]} are no multiples of {STEP}")
    return sizes


def nearest(width: int, height: int, sizes: list[Size]) -> int:
    """The number of the size whose shape is nearest to a picture's."""
    return int(find_nearest_bucket(height, width, sizes) or 0)


@dataclass(frozen=True)
class View:
    """What is seen of a picture that was scaled until it covers a size."""

    left: float = 0.5
    """Share of what is too wide that is cut off on the left; the rest goes on the right."""
    top: float = 0.5
    mirrored: bool = False


CENTRE = View()


@dataclass(frozen=True)
class Views:
    """The views of each picture: cut in the middle or anywhere, mirrored or not."""

    random: bool = False
    flip: bool = False
    kept: int = 1
    """How many of random ones a store keeps."""

    @property
    def count(self) -> int:
        """How many a store keeps: mirrors alone make two."""
        return self.kept if self.random else 1 + self.flip

    def drawn(self, *key: int) -> View:
        """One by chance, which the key fixes."""
        random = np.random.default_rng(key)
        left, top, mirror = random.random(3)
        mirrored = bool(self.flip and mirror < 0.5)
        return View(left, top, mirrored) if self.random else View(mirrored=mirrored)

    def stored(self, record: int, number: int) -> View:
        """That of this `number`; without a seed, so that a store serves every run."""
        return self.drawn(record, number, 10) if self.random else View(mirrored=number == 1)


def fitted(picture: Image.Image, size: Size, view: View = CENTRE) -> Image.Image:
    """Scaled until it covers the size, then cut as the view says."""
    cut = ImageOps.fit(picture, (size[1], size[0]), Image.Resampling.LANCZOS, centering=(view.left, view.top))
    return ImageOps.mirror(cut) if view.mirrored else cut
