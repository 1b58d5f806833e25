"""Pictures to whole numbers of the image tower's size, as CLIP's processor shapes them but in one pass.

The processor resizes all of a picture and throws away what lies outside the middle. Pillow can resize a
part, so that the middle alone is made, in little memory for a picture of any shape. Pillow keeps the part's
corners in single precision: now and then a value is rounded to its neighbour of 255.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor


def whole_pixels(
    processor: Any, pictures: Sequence[Image.Image]
) -> UInt8[Tensor, "batch channels height width"]:
    """Of upright RGB pictures: the short side resized, the middle cut out."""
    if not _folds(processor):
        done: Any = processor(list(pictures), return_tensors="pt", do_rescale=False, do_normalize=False)
        return done.pixel_values
    size, crop = processor.size["shortest_edge"], processor.crop_size
    shaped = [
        _middle(picture, size, crop["width"], crop["height"], processor.resample) for picture in pictures
    ]
    return torch.from_numpy(np.stack(shaped)).permute(0, 3, 1, 2).contiguous()


def normalized(
    processor: Any, pixels: UInt8[Tensor, "batch channels height width"]
) -> Float[Tensor, "batch channels height width"]:
    """`pixel_values`, on the device of the whole numbers."""
    values = pixels.float().mul_(processor.rescale_factor if processor.do_rescale else 1)
    if not processor.do_normalize:
        return values
    mean, std = (
        torch.tensor(numbers, device=pixels.device)[:, None, None]
        for numbers in (processor.image_mean, processor.image_std)
    )
    return values.sub_(mean).div_(std)


def _folds(processor: Any) -> bool:
    """Whether the processor does what CLIP's does: one that does less or in another way is asked itself."""
    size, crop = processor.size, processor.crop_size
    short = size and size.get("shortest_edge")
    plain = processor.do_resize and processor.do_center_crop and crop and not size.get("longest_edge")
    return bool(plain and short and short >= max(crop["height"], crop["width"]))


def _middle(picture: Image.Image, short: int, width: int, height: int, resample: int) -> np.ndarray:
    """What transformers cuts out, down to how it rounds the long side and the corner."""
    across, down = (side / int(short * side / min(picture.size)) for side in picture.size)
    left = (round(picture.width / across) - width) // 2
    top = (round(picture.height / down) - height) // 2
    right, bottom = left + width, top + height
    box = (left * across, top * down, min(right * across, picture.width), min(bottom * down, picture.height))
    return np.asarray(picture.resize((width, height), Image.Resampling(resample), box=box))
