"""Latents of pictures, computed once and kept on disk while autoencoder and pictures stay the same."""

import hashlib
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import BatchSampler
from tqdm import tqdm

from altdiffusion import aside
from training.emoji import Scene, pixels
from training.lazy import LazyAutoencoder, weights_key
from training.pictures import encoded
from training.workers import batches_of

#: Pictures encoded at a time.
CHUNK = 64


class Drawn(torch.utils.data.Dataset):
    """The scenes' pixels."""

    def __init__(self, scenes: list[Scene], size: int) -> None:
        self.scenes, self.size = scenes, size

    def __getitem__(self, number: int) -> Scene:
        return self.scenes[number]

    def collate(self, scenes: list[Scene]) -> Tensor:
        return torch.from_numpy(pixels(scenes, self.size))


@torch.no_grad()
def cached_latents(
    vae: AutoencoderKL | LazyAutoencoder,
    scenes: list[Scene],
    path: Path,
    device: torch.device | None = None,
    workers: int = 0,
) -> Tensor:
    """(scenes, channels, height, width) on the CPU: posterior means, scaled to unit variance.

    They are encoded on `device`, or where the autoencoder is, and drawn by `workers` beside this process.
    """
    key = fingerprint(vae, scenes)
    if path.is_file():
        with safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get("key") == key:
                return file.get_tensor("latents")
    model = vae.model if isinstance(vae, LazyAutoencoder) else vae
    chunks: Any = BatchSampler(range(len(scenes)), CHUNK, drop_last=False)
    drawn = batches_of(Drawn(scenes, model.config.sample_size), chunks, workers)  # pyright: ignore[reportAttributeAccessIssue]
    if device is not None:
        model.to(device)  # pyright: ignore[reportArgumentType]
    latents = torch.cat(
        [encoded(model, images).cpu() for images in tqdm(drawn, "latents", len(chunks), disable=None)]
    ).contiguous()
    path.parent.mkdir(parents=True, exist_ok=True)
    with aside.file(path) as place:  # several processes may come here at once
        save_file({"latents": latents}, place, metadata={"key": key})
    return latents


def fingerprint(vae: AutoencoderKL | LazyAutoencoder, scenes: list[Scene]) -> str:
    settings = repr((weights_key(vae), vae.config.scaling_factor, vae.config.sample_size, scenes))
    return hashlib.sha256(settings.encode()).hexdigest()
