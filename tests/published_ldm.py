"""Tensors under the original Stable Diffusion names, as LDM's own modules have them, at a narrow width."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

_Shapes = dict[str, tuple[int, ...]]


def schedule() -> dict[str, Tensor]:
    """LatentDiffusion's buffers."""
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    kept = np.cumprod(1 - betas)
    before = np.append(1.0, kept[:-1])
    variance = betas * (1 - before) / (1 - kept)
    values = {
        "betas": betas,
        "alphas_cumprod": kept,
        "alphas_cumprod_prev": before,
        "sqrt_alphas_cumprod": np.sqrt(kept),
        "sqrt_one_minus_alphas_cumprod": np.sqrt(1 - kept),
        "log_one_minus_alphas_cumprod": np.log(1 - kept),
        "sqrt_recip_alphas_cumprod": np.sqrt(1 / kept),
        "sqrt_recipm1_alphas_cumprod": np.sqrt(1 / kept - 1),
        "posterior_variance": variance,
        "posterior_log_variance_clipped": np.log(np.maximum(variance, 1e-20)),
        "posterior_mean_coef1": betas * np.sqrt(before) / (1 - kept),
        "posterior_mean_coef2": (1 - before) * np.sqrt(1 - betas) / (1 - kept),
        "scale_factor": np.array(0.18215),
    }
    return {name: torch.tensor(value, dtype=torch.float32) for name, value in values.items()}


def unet(context: int, *, linear: bool, seed: int = 0, in_channels: int = 4) -> dict[str, Tensor]:
    """openaimodel.UNetModel: two levels, one block each, attention in the first and in the middle."""
    channels, wide, emb = 32, 64, 128
    shapes = _affine("time_embed.0", (emb, channels)) | _affine("time_embed.2", (emb, emb))
    shapes |= _affine("input_blocks.0.0", (channels, in_channels, 3, 3))
    shapes |= _block("input_blocks.1.0", channels, channels, emb)
    shapes |= _transformer("input_blocks.1.1", channels, context, linear)
    shapes |= _affine("input_blocks.2.0.op", (channels, channels, 3, 3))
    shapes |= _block("input_blocks.3.0", channels, wide, emb)
    shapes |= _block("middle_block.0", wide, wide, emb)
    shapes |= _transformer("middle_block.1", wide, context, linear)
    shapes |= _block("middle_block.2", wide, wide, emb)
    shapes |= _block("output_blocks.0.0", wide + wide, wide, emb)
    shapes |= _block("output_blocks.1.0", wide + channels, wide, emb)
    shapes |= _affine("output_blocks.1.1.conv", (wide, wide, 3, 3))
    shapes |= _block("output_blocks.2.0", wide + channels, channels, emb)
    shapes |= _transformer("output_blocks.2.1", channels, context, linear)
    shapes |= _block("output_blocks.3.0", channels + channels, channels, emb)
    shapes |= _transformer("output_blocks.3.1", channels, context, linear)
    shapes |= _norm("out.0", channels) | _affine("out.2", (4, channels, 3, 3))
    return _filled(shapes, seed + 10)


def autoencoder(seed: int, channels: int = 32) -> dict[str, Tensor]:
    """autoencoder.AutoencoderKL: two levels of the same width, one block each; four latent channels."""
    shapes = _affine("encoder.conv_in", (channels, 3, 3, 3)) | _affine("decoder.conv_in", (channels, 4, 3, 3))
    for level in (0, 1):
        shapes |= _vae_block(f"encoder.down.{level}.block.0", channels)
        for block in (0, 1):
            shapes |= _vae_block(f"decoder.up.{level}.block.{block}", channels)
    shapes |= _affine("encoder.down.0.downsample.conv", (channels, channels, 3, 3))
    shapes |= _affine("decoder.up.1.upsample.conv", (channels, channels, 3, 3))
    for side, out in (("encoder", 8), ("decoder", 3)):
        shapes |= _vae_block(f"{side}.mid.block_1", channels) | _vae_block(f"{side}.mid.block_2", channels)
        shapes |= _norm(f"{side}.mid.attn_1.norm", channels)
        for name in ("q", "k", "v", "proj_out"):
            shapes |= _affine(f"{side}.mid.attn_1.{name}", (channels, channels, 1, 1))
        shapes |= _norm(f"{side}.norm_out", channels) | _affine(f"{side}.conv_out", (out, channels, 3, 3))
    shapes |= _affine("quant_conv", (8, 8, 1, 1)) | _affine("post_quant_conv", (4, 4, 1, 1))
    return _filled(shapes, seed + 20)


def _affine(name: str, shape: tuple[int, ...]) -> _Shapes:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def _norm(name: str, channels: int) -> _Shapes:
    return {f"{name}.weight": (channels,), f"{name}.bias": (channels,)}


def _block(name: str, before: int, after: int, emb: int) -> _Shapes:
    shapes = _norm(f"{name}.in_layers.0", before) | _affine(f"{name}.in_layers.2", (after, before, 3, 3))
    shapes |= _affine(f"{name}.emb_layers.1", (after, emb)) | _norm(f"{name}.out_layers.0", after)
    shapes |= _affine(f"{name}.out_layers.3", (after, after, 3, 3))
    return shapes | (_affine(f"{name}.skip_connection", (after, before, 1, 1)) if before != after else {})


def _transformer(name: str, channels: int, context: int, linear: bool) -> _Shapes:
    """attention.SpatialTransformer."""
    projection = (channels, channels) if linear else (channels, channels, 1, 1)
    inner = f"{name}.transformer_blocks.0"
    shapes = _norm(f"{name}.norm", channels)
    for end in ("proj_in", "proj_out"):
        shapes |= _affine(f"{name}.{end}", projection)
    for attention, width in (("attn1", channels), ("attn2", context)):
        shapes[f"{inner}.{attention}.to_q.weight"] = (channels, channels)
        shapes[f"{inner}.{attention}.to_k.weight"] = (channels, width)
        shapes[f"{inner}.{attention}.to_v.weight"] = (channels, width)
        shapes |= _affine(f"{inner}.{attention}.to_out.0", (channels, channels))
    shapes |= _affine(f"{inner}.ff.net.0.proj", (8 * channels, channels))
    shapes |= _affine(f"{inner}.ff.net.2", (channels, 4 * channels))
    for number in (1, 2, 3):
        shapes |= _norm(f"{inner}.norm{number}", channels)
    return shapes


def _vae_block(name: str, channels: int) -> _Shapes:
    shapes = {}
    for number in (1, 2):
        shapes |= _norm(f"{name}.norm{number}", channels)
        shapes |= _affine(f"{name}.conv{number}", (channels, channels, 3, 3))
    return shapes


def _filled(shapes: _Shapes, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return dict(_values(shapes, generator))


def _values(shapes: _Shapes, generator: torch.Generator) -> Iterator[tuple[str, Tensor]]:
    for name, shape in shapes.items():
        fan = int(np.prod(shape[1:])) or 1
        value = torch.randn(shape, generator=generator) * (fan**-0.5 if len(shape) > 1 else 0.1)
        yield name, value + (1.0 if len(shape) == 1 and name.endswith("weight") else 0.0)
