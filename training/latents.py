"""Latents of pictures, computed once and kept on disk while autoencoder and pictures stay the same."""

import hashlib
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from altdiffusion import aside
from training.emoji import Scene, pixels
from training.lazy import LazyAutoencoder, weights_key


@torch.no_grad()
def cached_latents(vae: AutoencoderKL | LazyAutoencoder, scenes: list[Scene], path: Path) -> Tensor:
    """(scenes, channels, height, width): posterior means, scaled to unit variance."""
    key = fingerprint(vae, scenes)
    if path.is_file():
        with safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get("key") == key:
                return file.get_tensor("latents")
    parts = []
    for first in tqdm(range(0, len(scenes), 64), unit="batch", desc="latents", disable=None):
        images = torch.from_numpy(pixels(scenes[first : first + 64], vae.config.sample_size))
        parts.append(vae.encode(images).latent_dist.mean * vae.config.scaling_factor)
    latents = torch.cat(parts).contiguous()
    path.parent.mkdir(parents=True, exist_ok=True)
    with aside.file(path) as place:  # several processes may come here at once
        save_file({"latents": latents}, place, metadata={"key": key})
    return latents


def fingerprint(vae: AutoencoderKL | LazyAutoencoder, scenes: list[Scene]) -> str:
    settings = repr((weights_key(vae), vae.config.scaling_factor, vae.config.sample_size, scenes))
    return hashlib.sha256(settings.encode()).hexdigest()
