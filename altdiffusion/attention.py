"""Attention and the rest of a denoising step, chosen for the device by measuring: `optimize`.

Which kernel is fastest depends on the GPU, the versions and the shape (at head widths of 40 to 160 flash
attention pads, xformers need not be faster than PyTorch's own), so it is measured once and remembered.
"""

import contextlib
import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from altdiffusion import openvino_parts
from altdiffusion.runtime import choose_attention

#: PyTorch's kernels by the name that people know.
KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
_ROUNDS = 5


@dataclass(frozen=True)
class Optimized:
    """What `optimize` did to a pipeline."""

    attention: str
    """The fastest kernel measured: "flash", "cudnn", "efficient", "math" or "xformers"."""
    seconds: dict[str, float]
    """Of each kernel that runs here, at the UNet's largest self-attention."""
    channels_last: bool
    fused: bool
    compiled: bool


def optimize(
    pipeline: Any,
    *,
    width: int | None = None,
    height: int | None = None,
    batch: int = 1,
    fuse: bool = True,
    compile: bool = False,
) -> Optimized:
    """Prepares a pipeline for many pictures of one size; the pictures stay the same to rounding.

    On CUDA: the fastest attention of those that run, and channels last. On any device: with `fuse` the
    queries, keys and values of each self-attention by one product; with `compile` the UNet's repeated blocks
    compiled, minutes at the first picture of a shape, for a gain on a GPU, none on a CPU (docs/decisions.md).
    LoRA is to be loaded, or fused into the weights, before.
    """
    if isinstance(pipeline.unet, openvino_parts.Part):
        raise openvino_parts.refuse("optimize")
    unet, defaults = pipeline.unet, pipeline.generation_defaults
    scale = pipeline.vae_scale_factor
    tokens = (width or defaults.width) // scale * ((height or defaults.height) // scale)
    seconds = measure_kernels(pipeline.device, unet.dtype, 2 * batch, *_heads(unet), tokens)
    best = min(seconds, key=seconds.__getitem__)
    cuda = pipeline.device.type == "cuda"
    if cuda:
        unet.to(memory_format=torch.channels_last)
        pipeline.vae.to(memory_format=torch.channels_last)
        _use(pipeline, best)
    if fuse and not getattr(unet, "peft_config", None):
        unet.fuse_qkv_projections()
    if compile:
        unet.compile_repeated_blocks(fullgraph=True, dynamic=False)
    return Optimized(best, seconds, cuda, fuse and not getattr(unet, "peft_config", None), compile)


@functools.cache
def measure_kernels(
    device: torch.device, dtype: torch.dtype, batch: int, heads: int, width: int, tokens: int
) -> dict[str, float]:
    """Seconds of one self-attention by each kernel that runs on the device; the least of five calls."""
    query, key, value = (
        torch.randn(batch, heads, tokens, width, device=device, dtype=dtype) for _ in range(3)
    )
    found = {}
    for name, kernel in kernels_on(device).items():
        with contextlib.suppress(RuntimeError), sdpa_kernel(kernel):  # one that does not take this shape here
            found[name] = _least(lambda: F.scaled_dot_product_attention(query, key, value), device)
    if choose_attention("auto", device)[0] == "xformers":
        import xformers.ops  # pyright: ignore[reportMissingImports]

        rows = [tensor.transpose(1, 2) for tensor in (query, key, value)]
        with contextlib.suppress(NotImplementedError):
            found["xformers"] = _least(lambda: xformers.ops.memory_efficient_attention(*rows), device)
    return found


def kernels_on(device: torch.device) -> dict[str, SDPBackend]:
    """Those that can be chosen: cuDNN's comes last in PyTorch's order but on Hopper and Blackwell, where it
    comes first."""
    first = device.type == "cuda" and torch.cuda.get_device_capability(device)[0] in (9, 10)
    return {name: kernel for name, kernel in KERNELS.items() if name != "cudnn" or first}


def _least(call: Callable[[], Tensor], device: torch.device) -> float:
    times = []
    for _ in range(_ROUNDS + 1):
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times[1:])


def _heads(unet: Any) -> tuple[int, int]:
    """Heads and their width in the first block, where there are the most tokens."""
    heads = unet.config.attention_head_dim  # diffusers' name for the number of heads
    heads = heads if isinstance(heads, int) else heads[0]
    return heads, unet.config.block_out_channels[0] // heads


def _use(pipeline: Any, name: str) -> None:
    if name == "xformers":
        pipeline.enable_xformers_memory_efficient_attention()
        return
    # PyTorch takes the first of its own choice that is left on
    torch.backends.cuda.enable_flash_sdp(name == "flash")
    torch.backends.cuda.enable_cudnn_sdp(name == "cudnn")
    torch.backends.cuda.enable_mem_efficient_sdp(name in ("flash", "cudnn", "efficient"))
    torch.backends.cuda.enable_math_sdp(True)  # for what the others do not take
