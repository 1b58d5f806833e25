"""Latents as a small picture, by a linear map: thousands of times cheaper than the VAE, good enough to watch.

For Stable Diffusion's VAE the map is known. For others it is fitted to the VAE at hand, on shapes and shades
that it encodes itself: each latent with its eight neighbours gives a square of pixels, so that even a picture
of 16 x 16 latents is seen at its full size.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional as F

#: RGB of each of the four latents of Stable Diffusion 1 and 2, from -1 to 1, as Keturn fitted them:
#: https://discuss.huggingface.co/t/decoding-latents-to-rgb-without-upscaling/23204
_STABLE_DIFFUSION = torch.tensor(
    [[0.298, 0.207, 0.208], [0.187, 0.286, 0.173], [-0.158, 0.189, 0.264], [-0.184, -0.271, -0.473]]
)
_PICTURES, _SIDE = 12, 64  # to fit on: 3,072 latents of a VAE that halves the side twice
_RIDGE = 1e-3


class Previewer:
    """Draws previews of one VAE's latents; the first one takes the time to fit the map."""

    def __init__(self, vae: Any) -> None:
        self._vae = vae
        self._map: Tensor | None = None

    @torch.no_grad()
    def __call__(self, latents: Float[Tensor, "batch channels height width"]) -> list[Image.Image]:
        latents = latents.float().cpu()
        if is_stable_diffusion(self._vae):
            colours = torch.einsum("bchw,cr->bhwr", latents, _STABLE_DIFFUSION) / 2 + 0.5
        else:
            if self._map is None:
                self._map = fit(self._vae)
            colours = self._squares(latents, self._map)
        pixels = (colours.nan_to_num(0.5).clamp(0, 1) * 255).round().byte().numpy()
        return [Image.fromarray(picture) for picture in pixels]

    def _squares(self, latents: Tensor, weights: Tensor) -> Tensor:
        height, width = latents.shape[-2:]
        side = round((weights.shape[1] // 3) ** 0.5)
        squares = (_surroundings(latents) @ weights).transpose(1, 2)
        return F.fold(squares, (height * side, width * side), side, stride=side).permute(0, 2, 3, 1)


def is_stable_diffusion(vae: Any) -> bool:
    config = vae.config
    return config.latent_channels == 4 and abs(config.scaling_factor - 0.18215) < 1e-4 and _factor(vae) == 8


def fit(vae: Any) -> Float[Tensor, "neighbourhood square"]:
    """Least squares from each latent's surroundings to the pixels that it stands for, from 0 to 1."""
    with torch.no_grad():
        pictures = torch.from_numpy(_shapes()).permute(0, 3, 1, 2).float() / 255
        encoded = vae.encode((pictures * 2 - 1).to(vae.device, vae.dtype)).latent_dist.mean
        latents = encoded.float() * vae.config.scaling_factor
        decoded = vae.decode(encoded).sample.float().cpu() / 2 + 0.5
        factor = _factor(vae)
        rows = _surroundings(latents.cpu()).flatten(0, 1).double()
        squares = F.unfold(decoded, factor, stride=factor).transpose(1, 2).flatten(0, 1).double()
        damping = _RIDGE * len(rows) * torch.eye(rows.shape[1], dtype=rows.dtype)
        return torch.linalg.solve(rows.T @ rows + damping, rows.T @ squares).float()


def _surroundings(latents: Tensor) -> Float[Tensor, "batch places neighbourhood"]:
    """Each latent with its neighbours, and a 1 for what the map adds in any case."""
    rows = F.unfold(F.pad(latents, (1, 1, 1, 1), mode="replicate"), 3).transpose(1, 2)
    return torch.cat([rows, torch.ones_like(rows[..., :1])], dim=-1)


def _factor(vae: Any) -> int:
    return 2 ** (len(vae.config.block_out_channels) - 1)


def _shapes() -> np.ndarray:
    """Pictures of some discs and boxes on plain grounds, half of them white."""
    random = np.random.default_rng(0)
    pictures = []
    for number in range(_PICTURES):
        ground = (255, 255, 255) if number % 2 else _colour(random)
        picture = Image.new("RGB", (_SIDE, _SIDE), ground)
        pen = ImageDraw.Draw(picture)
        for _ in range(6):
            left, top = random.integers(0, _SIDE - 8, 2).tolist()
            width, height = random.integers(6, 36, 2).tolist()
            shape = pen.ellipse if random.random() < 0.6 else pen.rectangle
            shape((left, top, left + width, top + height), fill=_colour(random))
        pictures.append(np.asarray(picture))
    return np.stack(pictures)


def _colour(random: np.random.Generator) -> tuple[int, int, int]:
    red, green, blue = random.integers(0, 256, 3).tolist()
    return red, green, blue
