"""Random models of the published shapes, diffusers' way to draw with them and ours, for `bench.generate`.

The peer is diffusers' own `AltDiffusionPipeline` (deprecated, still importable) with its defaults: float32,
50 steps, which are 51 UNet calls of PNDM, prompts padded to 77 tokens. Ours draw with the same weights.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel
from diffusers.pipelines.deprecated.alt_diffusion import AltDiffusionPipeline as Peer
from diffusers.pipelines.deprecated.alt_diffusion.modeling_roberta_series import (
    RobertaSeriesConfig,
    RobertaSeriesModelWithTransformation,
)
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AltCLIPTextConfig, AltCLIPTextModel

from altdiffusion import AltDiffusionPipeline, towers
from altdiffusion.conditioning import MAX_LENGTH
from altdiffusion.presets import Preset
from altdiffusion.schedulers import scheduler_like
from altdiffusion.shortcuts import shortened
from bench.encode_ways import ONE, WORDS, captions, tokenizer
from bench.published_sizes import NARROW, TEXT, UNET_1, VAE
from bench.training_models import CHANNELS

SCHEDULER = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}
STEPS = 50
#: Kinds of UNet calls, in the order in which `every_kind_of_step` comes to them.
KINDS = ("guided", "guided, shallow", "unguided", "unguided, shallow")
DECODE = "decode"


@dataclass(frozen=True)
class Shape:
    text: dict[str, Any]
    unet: dict[str, Any]
    vae: dict[str, Any]
    pixels: int


SHAPES = {
    "published": Shape({**TEXT, "project_dim": 768}, UNET_1, VAE, 256),
    "tiny": Shape(
        {**TEXT, **NARROW, "vocab_size": WORDS + 5, "project_dim": 32},
        {**UNET_1, **CHANNELS, "cross_attention_dim": 32},
        {**VAE, **CHANNELS},
        64,
    ),
}


def made(kind: Callable[[], nn.Module], dtype: torch.dtype) -> nn.Module:
    """Random weights in this format from the start: they need not lie in memory twice."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return kind().eval()
    finally:
        torch.set_default_dtype(before)


def painters(shape: Shape, dtype: torch.dtype) -> dict[str, nn.Module]:
    """UNet and VAE."""
    return {
        "unet": made(lambda: UNet2DConditionModel(**shape.unet), dtype),
        "vae": made(lambda: AutoencoderKL(**shape.vae), dtype),
    }


def peer_tower(shape: Shape, dtype: torch.dtype) -> RobertaSeriesModelWithTransformation:
    config = RobertaSeriesConfig(**shape.text)
    return made(lambda: RobertaSeriesModelWithTransformation(config), dtype)


def our_tower(peer: RobertaSeriesModelWithTransformation) -> AltCLIPTextModel:
    """On the peer's own tensors."""
    config = AltCLIPTextConfig(**towers.stock_config(peer.config.to_dict(), "m9"))
    with torch.device("meta"):
        tower = AltCLIPTextModel(config).eval()
    tower.load_state_dict(towers.to_stock(peer.state_dict(), "m9"), assign=True)
    for name, buffer in peer.roberta.embeddings.named_buffers():
        tower.roberta.embeddings.register_buffer(name, buffer, persistent=False)
    return tower


def pipeline(kind: type, tower: nn.Module | None, parts: dict[str, nn.Module]) -> Any:
    reader = tokenizer()
    reader.model_max_length = MAX_LENGTH
    made = kind(
        text_encoder=tower,
        tokenizer=reader,
        scheduler=PNDMScheduler(**SCHEDULER, skip_prk_steps=True),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        **parts,
    )
    made.set_progress_bar_config(disable=True)
    return made


def peer(tower: nn.Module | None, parts: dict[str, nn.Module]) -> Peer:
    return pipeline(Peer, tower, parts)


def ours(tower: nn.Module | None, parts: dict[str, nn.Module]) -> AltDiffusionPipeline:
    return pipeline(AltDiffusionPipeline, tower, parts)


def words() -> Iterator[str]:
    """Prompts of 13 tokens, all different: none is in our memory of prompts."""
    number = 0
    while True:
        (text,) = captions([ONE - 1])
        yield f"{text} w{number % WORDS}"
        number += 1


@contextmanager
def timed(module: nn.Module) -> Iterator[list[float]]:
    """CPU seconds of each call of `module`."""
    seconds: list[float] = []
    began = 0.0

    def before(module: nn.Module, inputs: Any) -> None:
        nonlocal began
        began = time.process_time()

    def after(module: nn.Module, inputs: Any, output: Any) -> None:
        seconds.append(time.process_time() - began)

    handles = [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    try:
        yield seconds
    finally:
        for handle in handles:
            handle.remove()


def one_step(runner: Peer, shape: Shape, embeds: Any) -> dict[str, float]:
    """CPU seconds of one guided UNet call and of decoding, of the peer."""
    return dict(zip(("guided", DECODE), _short_call(runner, shape, embeds, 1), strict=True))


def every_kind_of_step(runner: AltDiffusionPipeline, shape: Shape, embeds: Any) -> dict[str, float]:
    """CPU seconds of a UNet call of each kind, and of decoding, of ours."""
    runner.scheduler = scheduler_like(runner.scheduler, "unipc")  # four steps of it are four calls
    with shortened(runner, guided=0.5, reuse=2):
        return dict(zip((*KINDS, DECODE), _short_call(runner, shape, embeds, len(KINDS)), strict=True))


def _short_call(runner: Any, shape: Shape, embeds: Any, steps: int) -> list[float]:
    positive, negative = embeds
    arguments = {"num_inference_steps": steps, "height": shape.pixels, "width": shape.pixels}
    with timed(runner.unet) as calls, timed(runner.vae.decoder) as decoded:
        runner(prompt_embeds=positive, negative_prompt_embeds=negative, output_type="np", **arguments)
    return [*calls, *decoded]


def guided_flops(shape: Shape) -> float:
    """Floating point operations of a guided UNet call, two for each multiplication and addition."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**shape.unet).eval()
        side = shape.pixels // 8
        latents, states = (
            torch.empty(2, 4, side, side),
            torch.empty(2, MAX_LENGTH, unet.config.cross_attention_dim),
        )
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            unet(latents, torch.tensor(1), states)
    return float(counter.get_total_flops())


def counts(preset: Preset, calls: int) -> dict[str, int]:
    """How many UNet calls of each kind a picture takes."""
    kinds = dict.fromkeys(KINDS, 0)
    for number in range(calls):
        kind = "guided" if number < preset.guided * calls else "unguided"
        kinds[kind if number % preset.reuse == 0 else f"{kind}, shallow"] += 1
    return kinds


def calls_of(preset: Preset) -> int:
    """UNet calls of a picture: PNDM, the checkpoint's own, makes one more than it is given steps."""
    return preset.steps or STEPS + 1
