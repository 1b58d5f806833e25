"""Sizes that pictures are brought to: one square, or aspect-ratio buckets by diffusers' own functions."""

import warnings

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


def fitted(picture: Image.Image, size: Size) -> Image.Image:
    """Scaled until it covers the size, then cut in the middle."""
    return ImageOps.fit(picture, (size[1], size[0]), Image.Resampling.LANCZOS)
