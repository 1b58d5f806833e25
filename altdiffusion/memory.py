"""Decoding a picture in the memory that there is: in tiles, one picture at a time, and without overflow."""

import contextlib
import gc
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

#: Tensors as large as the decoder's widest at full size that are there at a time: the input and output of a
#: convolution, and what its kernel needs. Measured of Stable Diffusion 1's in float32: 4.2 at 256 pixels and
#: 3.9 at 384.
_ALIVE = 4
#: Share of the free memory that decoding may take.
_SHARE = 0.8


def decoding_bytes(vae: Any, width: int, height: int, batch: int = 1) -> int:
    """What decoding takes at its peak beside the weights, by the decoder's widest tensor at full size."""
    channels = vae.config.block_out_channels
    widest = channels[min(1, len(channels) - 1)]  # what the last block's first layer takes
    return batch * width * height * widest * vae.dtype.itemsize * _ALIVE


def free_bytes(device: torch.device) -> int | None:
    """Memory that can be had now; None where that cannot be told."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        found = {name: value for name, _, value in (line.partition(":") for line in lines)}
        return int(found["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None


def let_go(device: torch.device) -> None:
    """Gives back what a failed call took, once nothing refers to it any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


@contextlib.contextmanager
def fitted_decoding(vae: Any, width: int, height: int, batch: int, device: torch.device) -> Iterator[None]:
    """With slices, then tiles, where the pictures would not fit otherwise, and says so; afterwards as before.

    Slices decode a picture at a time and change nothing. Tiles overlap and are blended: seams can show.
    """
    if not hasattr(vae, "use_tiling"):
        yield
        return
    before = vae.use_slicing, vae.use_tiling
    free = free_bytes(device)
    slices = free is not None and decoding_bytes(vae, width, height, batch) > _SHARE * free
    tiles = free is not None and decoding_bytes(vae, width, height) > _SHARE * free
    if tiles and not vae.use_tiling:
        warnings.warn(
            f"size: {width}x{height} is decoded in tiles, for lack of memory; seams may show",
            stacklevel=3,
        )
    try:
        vae.use_slicing, vae.use_tiling = before[0] or slices, before[1] or tiles
        yield
    finally:
        vae.use_slicing, vae.use_tiling = before


def decode_without_overflow(vae: Any) -> None:
    """Lets a float16 VAE decode again in float32 what came out as no numbers.

    The decoder of Stable Diffusion 1 overflows float16 for some latents. bfloat16 reaches as far as float32.
    """
    plain = vae.decode

    def decode(z: Float[Tensor, "batch channels height width"], *arguments: Any, **more: Any) -> Any:
        found = plain(z, *arguments, **more)
        if vae.dtype != torch.float16 or torch.isfinite(found[0]).all():
            return found
        torch.nn.Module.to(vae, torch.float32)  # diffusers' own warns of a module that is cast
        try:
            return plain(z.float(), *arguments, **more)
        finally:
            torch.nn.Module.to(vae, torch.float16)

    vae.decode = decode
