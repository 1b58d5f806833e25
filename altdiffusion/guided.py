"""Pipelines that more than words may guide: a mask, a ControlNet's picture, the UNet's own attention (PAG).

Each is the stock class with our conditioning, under the stock class's name, as in `pipelines`.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from diffusers import (
    ControlNetModel,
    StableDiffusionControlNetImg2ImgPipeline,
    StableDiffusionControlNetInpaintPipeline,
    StableDiffusionControlNetPAGInpaintPipeline,
    StableDiffusionControlNetPAGPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPAGImg2ImgPipeline,
    StableDiffusionPAGInpaintPipeline,
    StableDiffusionPAGPipeline,
)
from diffusers.models.controlnets.multicontrolnet import MultiControlNetModel
from PIL import Image

from altdiffusion import checkpoints
from altdiffusion.images import upright_rgb
from altdiffusion.pipelines import _Conditioned
from altdiffusion.requests import shorten


class _Inpainting(StableDiffusionInpaintPipeline if TYPE_CHECKING else object):
    """A UNet of 4 channels, or one of 9 that is shown the mask and what it covers."""

    _conditions = ((1, 0), (2, 1))

    def outpaint(
        self,
        prompt: Any,
        image: Image.Image,
        *,
        left: int = 0,
        top: int = 0,
        right: int = 0,
        bottom: int = 0,
        **arguments: Any,
    ) -> Any:
        """The picture continued by so many pixels on each side; its own pixels stay as they are."""
        canvas, mask = _widened(image, (left, top, right, bottom), self.vae_scale_factor)
        size = {"width": canvas.width, "height": canvas.height}
        drawn = self(prompt, image=canvas, mask_image=mask, **size, **arguments)
        drawn.images = [self.image_processor.apply_overlay(mask, canvas, picture) for picture in drawn.images]
        return drawn


class _Guided(_Conditioned):
    """What reaches into the UNet, which only PyTorch's lets anyone do."""

    _runtimes = ("torch",)


class _Controlled(_Guided):
    """`from_pretrained` takes `controlnet`, one `ControlNetModel` or a list, if the folder holds none."""

    @classmethod
    def _own_parts(
        cls, folder: Path, given: dict[str, Any], dtype: torch.dtype, variant: str | None
    ) -> dict[str, Any]:
        controlnet = given.get("controlnet")
        if controlnet is None:
            controlnet = _load_controlnets(folder, dtype, variant)
        if isinstance(controlnet, list | tuple):
            controlnet = MultiControlNetModel(controlnet)
        return {"controlnet": controlnet}


class AltDiffusionInpaintPipeline(_Inpainting, _Conditioned, StableDiffusionInpaintPipeline):
    """Inpainting by a UNet of 4 or 9 channels; called as `diffusers.StableDiffusionInpaintPipeline` is."""


class AltDiffusionControlNetPipeline(_Controlled, StableDiffusionControlNetPipeline):
    """Text to image under one ControlNet or several."""


class AltDiffusionControlNetImg2ImgPipeline(_Controlled, StableDiffusionControlNetImg2ImgPipeline):
    """Image to image under one ControlNet or several."""


class AltDiffusionControlNetInpaintPipeline(
    _Inpainting, _Controlled, StableDiffusionControlNetInpaintPipeline
):
    """Inpainting under one ControlNet or several."""


class AltDiffusionPAGPipeline(_Guided, StableDiffusionPAGPipeline):
    """Text to image with perturbed-attention guidance: `pag_scale`, and `pag_applied_layers`."""


class AltDiffusionPAGImg2ImgPipeline(_Guided, StableDiffusionPAGImg2ImgPipeline):
    """Image to image with perturbed-attention guidance."""


class AltDiffusionPAGInpaintPipeline(_Inpainting, _Guided, StableDiffusionPAGInpaintPipeline):
    """Inpainting with perturbed-attention guidance."""


class AltDiffusionControlNetPAGPipeline(_Controlled, StableDiffusionControlNetPAGPipeline):
    """Text to image under ControlNets with perturbed-attention guidance."""


class AltDiffusionControlNetPAGInpaintPipeline(
    _Inpainting, _Controlled, StableDiffusionControlNetPAGInpaintPipeline
):
    """Inpainting under ControlNets with perturbed-attention guidance."""


for _kind in list(globals().values()):
    if isinstance(_kind, type) and _kind.__name__.startswith("AltDiffusion"):
        _kind.__name__ = _kind.__name__.replace("AltDiffusion", "StableDiffusion")


def _load_controlnets(folder: Path, dtype: torch.dtype, variant: str | None) -> Any:
    """The folder's own: diffusers saves several as `controlnet`, `controlnet_1` and so on."""
    places = sorted(folder.glob("controlnet*"), key=lambda place: (len(place.name), place.name))
    if not places:
        raise ValueError(
            f"controlnet: {shorten(str(folder))} has none; allowed: controlnet=ControlNetModel(…)"
        )
    nets = [checkpoints.load_strict(ControlNetModel, place, dtype=dtype, variant=variant) for place in places]
    return nets if len(nets) > 1 else nets[0]


def _widened(
    image: Image.Image, sides: tuple[int, int, int, int], multiple: int
) -> tuple[Image.Image, Image.Image]:
    """The picture on a larger canvas, its edges drawn out to the canvas's, and a mask that is white there."""
    left, top, right, bottom = sides
    if min(sides) < 0 or not any(sides):
        raise ValueError(f"left, top, right, bottom: {sides}; allowed: 0 and up, not all 0")
    picture = upright_rgb(image)
    widths = ((top, bottom), (left, right), (0, 0))
    canvas = Image.fromarray(np.pad(np.asarray(picture), widths, mode="edge"))
    if canvas.width % multiple or canvas.height % multiple:
        raise ValueError(f"image: {canvas.size} pixels with its new sides; allowed: multiples of {multiple}")
    mask = Image.new("L", canvas.size, 255)
    mask.paste(0, (left, top, left + picture.width, top + picture.height))
    return canvas, mask
