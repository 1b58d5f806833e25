"""DreamBooth (Ruiz et al. 2023): pictures under one prompt, and prior preservation (section 3.2): what the
UNet drew before training is trained beside them, so that their class does not turn into them.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from altdiffusion import aside
from altdiffusion.checkpoints import fingerprint
from altdiffusion.runtime import choose_device

#: Pictures drawn at a time.
BATCH = 8


@dataclass(frozen=True)
class PriorConfig:
    """Prior preservation: pictures that the starting UNet draws, one for each sample of the batch."""

    prompts: tuple[str, ...] = ()
    """What they show: the class of what is learnt, in any languages. Empty: no prior."""
    images: int = 100
    """How many are drawn, before training (as many as diffusers' DreamBooth script draws)."""
    weight: float = 1.0
    """Weight of their loss against that of the data (diffusers' prior_loss_weight)."""
    steps: int = 25
    guidance_scale: float = 7.5

    def __post_init__(self) -> None:
        if self.images < 1:
            raise ValueError(f"prior.images: {self.images}; allowed: 1 and up")


@torch.no_grad()
def prior_latents(pipeline: StableDiffusionPipeline, config: PriorConfig, seed: int, path: Path) -> Tensor:
    """(images, channels, height, width): drawn once, and kept while models, schedule and prompts stay."""
    parts: Any = pipeline
    schedule = {name: value for name, value in parts.scheduler.config.items() if not name.startswith("_")}
    settings = repr((config, seed, sorted(schedule.items())))
    key = fingerprint([parts.unet, parts.text_encoder], [settings])
    if path.is_file():
        with safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get("key") == key:
                return file.get_tensor("latents")
    pipeline.to(choose_device())
    pipeline.set_progress_bar_config(disable=True)
    drawn = []
    for first in tqdm(range(0, config.images, BATCH), unit="batch", desc="prior", disable=None):
        numbers = range(first, min(first + BATCH, config.images))
        latents = parts(
            [prior_prompt(config, number) for number in numbers],
            num_inference_steps=config.steps,
            guidance_scale=config.guidance_scale,
            generator=[torch.Generator().manual_seed(1000 * seed + number) for number in numbers],
            output_type="latent",
        ).images
        drawn.append(latents.float().cpu())
    pipeline.to("cpu")
    path.parent.mkdir(parents=True, exist_ok=True)
    with aside.file(path) as place:  # several processes may come here at once
        save_file({"latents": torch.cat(drawn).contiguous()}, place, metadata={"key": key})
    return torch.cat(drawn)


def prior_prompt(config: PriorConfig, number: int) -> str:
    return config.prompts[number % len(config.prompts)]


class WithPrompt(torch.utils.data.Dataset):
    """A data set whose every caption, unless it was dropped, is the one prompt."""

    def __init__(self, data: Any, prompt: str) -> None:
        self.data, self.prompt, self.items = data, prompt, data.items

    def __getitem__(self, index: int) -> tuple[Tensor, str]:
        latents, text = self.data[index]
        return latents, self.prompt if text else ""

    def collate(self, items: list[tuple[Tensor, str]]) -> Any:
        return self.data.collate(items)


class WithPrior(torch.utils.data.Dataset):
    """A data set whose every sample is followed by a picture of the prior: a batch holds both in turn."""

    def __init__(self, data: Any, latents: Tensor, config: PriorConfig, seed: int) -> None:
        self.data, self.latents, self.config, self.seed = data, latents, config, seed
        self.items = data.items

    def __getitem__(self, index: int) -> tuple[Any, tuple[Tensor, str]]:
        number = int(np.random.default_rng((self.seed, index, 4)).integers(len(self.latents)))
        return self.data[index], (self.latents[number], prior_prompt(self.config, number))

    def collate(self, items: list) -> Any:
        latents, wanted = items[0][0][0], self.latents.shape[1:]
        if latents.shape != wanted:
            raise ValueError(
                f"prior.prompts: the UNet draws latents of {tuple(wanted)}, the data has "
                f"{tuple(latents.shape)}; allowed: data in the UNet's own size"
            )
        return self.data.collate([sample for pair in items for sample in pair])
