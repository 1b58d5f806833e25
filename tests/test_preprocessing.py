"""Pictures shaped in one pass against transformers' processor for CLIP, which resizes all and then cuts."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close
from transformers import CLIPImageProcessorPil

from altdiffusion.preprocessing import normalized, whole_pixels

SIZES = [(640, 480), (480, 640), (224, 224), (225, 224), (31, 57), (57, 31), (1, 1), (1000, 223), (9, 700)]


def noise(width: int, height: int) -> Image.Image:
    random = np.random.default_rng(width)
    return Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))


def theirs(processor: CLIPImageProcessorPil, picture: Image.Image) -> torch.Tensor:
    return processor([picture], return_tensors="pt", do_rescale=False, do_normalize=False).pixel_values


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_noise_of_every_shape_is_within_one_of_255(size):
    processor = CLIPImageProcessorPil()
    found, expected = whole_pixels(processor, [noise(*size)]), theirs(processor, noise(*size))
    assert found.dtype == torch.uint8 and found.shape == expected.shape == (1, 3, 224, 224)
    apart = (found.int() - expected.int()).abs()
    assert apart.max() <= 1 and (apart > 0).float().mean() < 1e-3


@pytest.mark.parametrize(
    "fields",
    [
        {"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 24}},
        {"size": {"shortest_edge": 24}, "crop_size": {"height": 32, "width": 32}},
        {"size": {"height": 32, "width": 48}, "do_center_crop": False},
        {"size": {"shortest_edge": 32, "longest_edge": 40}, "crop_size": {"height": 32, "width": 32}},
        {"do_resize": False, "crop_size": {"height": 32, "width": 32}},
        {"resample": Image.Resampling.BILINEAR, "crop_size": {"height": 32, "width": 32}},
    ],
    ids=["larger than the cut", "smaller than the cut", "no cut", "two edges", "no resize", "bilinear"],
)
def test_other_ways_to_shape_are_the_processors_own(fields):
    processor = CLIPImageProcessorPil(**fields)
    found, expected = whole_pixels(processor, [noise(90, 61)]), theirs(processor, noise(90, 61))
    assert found.shape == expected.shape
    assert (found.int() - expected.int()).abs().max() <= 1


@pytest.mark.parametrize("fields", [{}, {"do_normalize": False}, {"do_rescale": False}], ids=str)
def test_whole_numbers_become_the_processors_values(fields):
    """Tolerance: theirs are computed in another order, and partly in float64."""
    processor = CLIPImageProcessorPil(**fields)
    picture = noise(224, 224)  # nothing to resize
    expected = processor([picture], return_tensors="pt").pixel_values
    assert_close(
        normalized(processor, whole_pixels(processor, [picture])), expected.float(), rtol=1e-5, atol=1e-6
    )


def test_several_pictures_are_what_each_is_alone():
    processor = CLIPImageProcessorPil()
    pictures = [noise(300, 200), noise(40, 90)]
    together = whole_pixels(processor, pictures)
    assert together.equal(torch.cat([whole_pixels(processor, [picture]) for picture in pictures]))
