"""Random models of the published shapes, captions, and our loop around a module, for `bench.training`."""

import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from transformers import AltCLIPTextConfig, AltCLIPTextModel, XLMRobertaTokenizer

from altdiffusion.conditioning import MAX_LENGTH
from bench.published_sizes import NARROW, TEXT, UNET_1, VAE, VISION_L
from training.config import OptimConfig, RunConfig
from training.loop import Run
from training.student import still

#: Tokens of the captions, spread evenly: short captions as people write them.
SHORTEST, LONGEST = 7, 20
#: The text tower of openai/clip-vit-large-patch14.
TEACHER = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
}
CHANNELS = {"block_out_channels": [32, 32, 64, 64]}


@dataclass(frozen=True)
class Shape:
    """Sizes of all models, and of the pictures."""

    text: dict[str, Any]
    teacher: dict[str, Any]
    vision: dict[str, Any]
    unet: dict[str, Any]
    vae: dict[str, Any]
    pixels: int


SHAPES = {
    "published": Shape({**TEXT, "project_dim": 768}, TEACHER, VISION_L, UNET_1, VAE, 256),
    "tiny": Shape(
        {**TEXT, **NARROW, "vocab_size": 99, "project_dim": 32},
        {**NARROW, "projection_dim": 32, "vocab_size": 99, "bos_token_id": 0, "eos_token_id": 98},
        NARROW,
        {**UNET_1, **CHANNELS, "cross_attention_dim": 32},
        {**VAE, **CHANNELS},
        64,
    ),
}


@dataclass
class Models:
    """Random models of one shape. The two that several ways can share are made once."""

    shape: Shape
    folder: Path
    """Where our runs may write."""

    @cached_property
    def unet(self) -> UNet2DConditionModel:
        return self.new_unet().train()

    @cached_property
    def student(self) -> AltCLIPTextModel:
        return self.new_tower().train()

    def new_unet(self) -> UNet2DConditionModel:
        return UNet2DConditionModel(**self.shape.unet)

    def new_tower(self) -> AltCLIPTextModel:
        tower = AltCLIPTextModel(AltCLIPTextConfig(**self.shape.text))
        still(tower)
        return tower

    @property
    def width(self) -> int:
        return self.shape.text["project_dim"]

    @property
    def side(self) -> int:
        return self.shape.pixels // 8


@dataclass(frozen=True)
class RunsConfig:
    """What `Run` asks of a stage."""

    output_dir: Path
    optim: OptimConfig = field(default_factory=OptimConfig)
    run: RunConfig = field(default_factory=RunConfig)


class Samples(torch.utils.data.Dataset):
    """The same few samples without end, as they come from a cache."""

    items = None

    def __init__(self, samples: Sequence[tuple[Any, ...]], collate: Callable[[list], Any]) -> None:
        self.samples, self.collate = samples, collate

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        return self.samples[index % len(self.samples)]


def started(models: Models, module: nn.Module, batch: int) -> Run:
    """Our loop around the module; it neither logs nor saves."""
    never = 10**9
    settings = RunConfig(
        max_train_steps=never,
        batch_size=batch,
        mixed_precision="bf16",
        checkpointing_steps=never,
        log_steps=never,
        threads=1,
    )
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    number = len(list(models.folder.iterdir()))
    config = RunsConfig(models.folder / f"run-{number}", OptimConfig(warmup_steps=0), settings)
    run = Run.start(config, module)
    for number, handler in handlers.items():
        signal.signal(number, handler)
    return run


def tokenizer() -> XLMRobertaTokenizer:
    """Few words: the size of the vocabulary is the model's, whatever the tokenizer uses of it."""
    words = ("<s>", "<pad>", "</s>", "<unk>", "▁a", "▁cat", "<mask>")
    return XLMRobertaTokenizer(vocab=[(word, -float(n)) for n, word in enumerate(words)])


def captions(batch: int) -> list[str]:
    lengths = np.linspace(SHORTEST, LONGEST, batch + 2)[1:-1].round().astype(int)
    return [" ".join((["a", "cat"] * LONGEST)[: length - 2]) for length in lengths]


def padded(batch: int) -> dict[str, Tensor]:
    length = {"padding": "max_length", "max_length": MAX_LENGTH}
    return dict(tokenizer()(captions(batch), **length, return_tensors="pt"))
