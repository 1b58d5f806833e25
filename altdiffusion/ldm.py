"""Names in the original Stable Diffusion files: `model.diffusion_model.…`, `first_stage_model.…`.

diffusers reads these files and cannot write them. Its readers are turned round here instead of copied: they
are given every name that such a file can hold, each with a tensor that carries the name's number, and what
comes out says which stock name each stands for. An attention's 1 x 1 convolutions are found the same way:
they are the markers that come back with two axes fewer.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import product
from typing import Any

import torch
from diffusers.loaders.single_file_utils import (
    DIFFUSERS_TO_LDM_MAPPING,
    LDM_UNET_KEY,
    LDM_VAE_KEYS,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
)
from torch import Tensor

UNET, VAE = LDM_UNET_KEY, LDM_VAE_KEYS[0]
_UNET_RESNET = (
    "in_layers.0",
    "in_layers.2",
    "out_layers.0",
    "out_layers.3",
    "emb_layers.1",
    "skip_connection",
)
_VAE_RESNET = ("norm1", "conv1", "norm2", "conv2", "nin_shortcut")
_VAE_ATTENTION = ("norm", "q", "k", "v", "proj_out")
_Converter = Callable[[dict[str, Tensor], dict[str, Any]], dict[str, Tensor]]


def from_stock(unet: Mapping, unet_config: Mapping, vae: Mapping, vae_config: Mapping) -> dict[str, Tensor]:
    """The UNet's and the VAE's tensors as an original file names and shapes them."""
    unet_names = _unet_candidates(unet, unet_config)
    vae_names = _vae_candidates(vae_config)
    return {
        **_renamed("unet", unet, unet_config, convert_ldm_unet_checkpoint, UNET, unet_names),
        **_renamed("vae", vae, vae_config, convert_ldm_vae_checkpoint, VAE, vae_names),
    }


def _renamed(
    part: str, stock: Mapping, config: Mapping, convert: _Converter, prefix: str, candidates: Iterable[str]
) -> dict[str, Tensor]:
    names = [prefix + name for name in candidates]
    markers = {name: torch.full((1, 1, 1, 1), number) for number, name in enumerate(names)}
    places = {name: marker for name, marker in convert(markers, dict(config)).items() if name in stock}
    homeless = sorted(stock.keys() - places.keys())
    if homeless:
        raise ValueError(
            f"source: the {part}'s tensor {homeless[0]!r:.80} has no place in a single file; "
            "allowed: the UNet and VAE of Stable Diffusion 1 and 2"
        )
    return {
        names[int(marker.item())]: stock[name][..., None, None]
        if _was_convolution(stock[name], marker)
        else stock[name]
        for name, marker in places.items()
    }


def _was_convolution(tensor: Tensor, marker: Tensor) -> bool:
    return marker.ndim == 2 and tensor.ndim == 2


def _unet_candidates(stock: Iterable[str], config: Mapping) -> Iterator[str]:
    """In an original file a block is a list: a ResNet, attention where there is any, the upsampler."""
    for table in DIFFUSERS_TO_LDM_MAPPING["unet"].values():
        yield from table.values()
    parts = [name.split(".") for name in stock]
    attention = sorted({".".join(part[4:]) for part in parts if part[2:3] == ["attentions"]})
    attention += sorted({".".join(part[3:]) for part in parts if part[1:2] == ["attentions"]})
    resnet = [f"{word}.{kind}" for word, kind in product(_UNET_RESNET, ("weight", "bias"))]
    each = config["layers_per_block"] + 1
    for side, block in product(
        ("input_blocks", "output_blocks"), range(each * len(config["block_out_channels"]))
    ):
        place = f"{side}.{block}"
        attended = any(part[:3] == ["up_blocks", str(block // each), "attentions"] for part in parts)
        yield from (f"{place}.0.{name}" for name in resnet)
        yield from (f"{place}.1.{name}" for name in attention)
        sampler = f"{place}.0.op" if side == "input_blocks" else f"{place}.{1 + attended}.conv"
        yield from (f"{sampler}.weight", f"{sampler}.bias")
    yield from (f"middle_block.{at}.{name}" for at, name in product((0, 2), resnet))
    yield from (f"middle_block.1.{name}" for name in attention)


def _vae_candidates(config: Mapping) -> Iterator[str]:
    yield from DIFFUSERS_TO_LDM_MAPPING["vae"].values()
    levels, blocks = range(len(config["block_out_channels"])), range(config["layers_per_block"] + 1)
    kinds = ("weight", "bias")
    for side, way in (("encoder", "down"), ("decoder", "up")):
        resnets = [f"{side}.{way}.{level}.block.{block}" for level, block in product(levels, blocks)]
        resnets += [f"{side}.mid.block_{block}" for block in (1, 2)]
        yield from map(".".join, product(resnets, _VAE_RESNET, kinds))
        yield from map(".".join, product([f"{side}.mid.attn_1"], _VAE_ATTENTION, kinds))
        yield from map(
            ".".join, product([f"{side}.{way}.{level}.{way}sample.conv" for level in levels], kinds)
        )
