"""AltDiffusion: the UNet learns to draw what the text tower says. The tower and the VAE are frozen.

Concept alignment (Ye et al. 2023): after the tower of a Stable Diffusion was swapped, only keys and values of
cross-attention are trained (`trainable: kv`). Quality improvement: the whole UNet (`trainable: unet`), with a
tenth of the captions dropped for classifier-free guidance. With `unet` left out a new one is trained from
nothing.
"""

import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.training_utils import compute_snr
from torch import Tensor, nn
from transformers import AltCLIPModel, AutoConfig, AutoTokenizer, CLIPModel

from altdiffusion.conditioning import MAX_LENGTH, encode_trimmed, expand
from altdiffusion.losses import diffusion_loss
from altdiffusion.trainable import select_parameters
from training.captions import Captions
from training.config import OptimConfig, RunConfig, parse
from training.emoji import Scene, load_emoji, random_scene
from training.latents import cached_latents
from training.loop import Run
from training.stage import run_stage
from training.swap import map_cross_attention

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class UNetConfig:
    """Shape of a new UNet: Stable Diffusion's, narrower; its lowest block has no attention, as there."""

    block_out_channels: tuple[int, ...] = (64, 128, 192)
    layers_per_block: int = 1
    head_width: int = 32
    norm_num_groups: int = 16


@dataclass(frozen=True)
class TextToImageConfig:
    """Concept alignment, quality improvement, or a UNet from nothing."""

    output_dir: Path
    text: Path
    """transformers folder of the AltCLIP (or, for an English UNet, the CLIP) whose text tower conditions."""
    vae: Path
    unet: Path | None = None
    """diffusers folder of the UNet to go on from. None starts a new one."""
    trainable: Literal["kv", "cross_attention", "unet"] = "unet"
    languages: tuple[str, ...] = ()
    """Caption languages; empty means all."""
    emoji: int = 0
    """Draw only the first so many of the covered emoji, spread evenly; 0 draws all of them."""
    variants: int = 8
    """Pictures of each emoji, which differ in place and size; a single one stands in the middle."""
    caption_dropout: float = 0.1
    """Share of captions replaced by the empty one, for classifier-free guidance."""
    prediction_type: Literal["epsilon", "v_prediction"] = "v_prediction"
    snr_gamma: float = 5.0
    """min-SNR weighting; 0 leaves the plain mean."""
    timestep_bias: float = 0.0
    """Timesteps t are drawn with a density like t to this power: 0 draws all alike, 1 mostly noisy ones."""
    swapped_from: Path | None = None
    """transformers folder of the tower that `unet` was trained on, where `text` is another one: keys and
    values start with the least-squares map between the two."""
    architecture: UNetConfig = field(default_factory=UNetConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    run: RunConfig = field(default_factory=RunConfig)


class CaptionedLatents(torch.utils.data.Dataset):
    """Endless (latents, caption): a cached picture of a covered emoji, its caption in some language."""

    items = None

    def __init__(self, config: TextToImageConfig, latents: Tensor, scenes: list[Scene]) -> None:
        self.config, self.latents, self.scenes = config, latents, scenes
        self.captions = Captions(load_emoji())

    def __getitem__(self, index: int) -> tuple[Tensor, str]:
        random = np.random.default_rng((self.config.run.seed, index, 3))
        number = int(random.integers(len(self.scenes)))
        scene = self.scenes[number]
        tag = self.captions.random_language(random, scene.characters, self.config.languages)
        dropped = random.random() < self.config.caption_dropout
        return self.latents[number], "" if dropped else self.captions.caption(scene, tag, random)

    def collate(self, items: list[tuple[Tensor, str]]) -> tuple[Tensor, list[str]]:
        latents, texts = zip(*items, strict=True)
        return torch.stack(latents), list(texts)


def chosen_scenes(config: TextToImageConfig) -> list[Scene]:
    """`variants` scenes of each emoji that is drawn: one emoji, near the middle, on white."""
    covered = load_emoji().covered
    if config.emoji:
        covered = tuple(
            covered[round(i * (len(covered) - 1) / (config.emoji - 1))] for i in range(config.emoji)
        )
    spread = 0.3 if config.variants > 1 else 0.0
    return [
        random_scene(config.run.seed, 1000 * ord(c) + n, (c,), spread=spread)
        for c in covered
        for n in range(config.variants)
    ]


class TextTower:
    """A frozen text tower with its tokenizer: AltCLIP's, or for an English UNet CLIP's."""

    def __init__(self, folder: Path) -> None:
        self.multilingual = AutoConfig.from_pretrained(folder).model_type == "altclip"
        model = (AltCLIPModel if self.multilingual else CLIPModel).from_pretrained(
            folder, dtype=torch.float32
        )
        self.model = model.text_model.eval().requires_grad_(False)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.width = self.encode([""]).shape[-1]

    @torch.no_grad()
    def encode(self, texts: list[str]) -> Tensor:
        """(texts, 77, dim), as the pipelines condition the UNet."""
        if self.multilingual:
            states, _ = encode_trimmed(self.model, self.tokenizer, texts)
            return expand(states)
        tokens = self.tokenizer(
            texts, padding="max_length", max_length=MAX_LENGTH, truncation=True, return_tensors="pt"
        ).to(self.model.device)
        return self.model(tokens.input_ids).last_hidden_state


def build_unet(config: TextToImageConfig, width: int, latents: Tensor) -> UNet2DConditionModel:
    if config.unet is not None:
        unet = UNet2DConditionModel.from_pretrained(config.unet)
        if unet.config.cross_attention_dim != width:
            raise ValueError(
                f"text: its states are {width} wide; {config.unet} takes {unet.config.cross_attention_dim}"
            )
        return unet
    shape, blocks = config.architecture, len(config.architecture.block_out_channels)
    return UNet2DConditionModel(
        sample_size=latents.shape[-1],
        in_channels=latents.shape[1],
        out_channels=latents.shape[1],
        down_block_types=("CrossAttnDownBlock2D",) * (blocks - 1) + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * (blocks - 1),
        block_out_channels=shape.block_out_channels,
        layers_per_block=shape.layers_per_block,
        attention_head_dim=tuple(width // shape.head_width for width in shape.block_out_channels),
        norm_num_groups=shape.norm_num_groups,
        cross_attention_dim=width,
    )


def swap_captions(config: TextToImageConfig) -> list[str]:
    """What the two towers of a swap are compared on: the names of all emoji, and no text."""
    emoji = load_emoji()
    return ["", *(emoji.names[tag][c] for tag in config.languages or ("en",) for c in emoji.characters)]


#: Stable Diffusion's noise schedule (Rombach et al. 2022, table 15; every checkpoint of this family has it).
SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "clip_sample": False,
}


def train(config: TextToImageConfig) -> None:
    torch.manual_seed(config.run.seed)
    if config.run.threads:
        torch.set_num_threads(config.run.threads)
    vae, tower = AutoencoderKL.from_pretrained(config.vae).eval(), TextTower(config.text)
    scenes = chosen_scenes(config)
    latents = cached_latents(vae, scenes, config.output_dir / "latents.safetensors")
    unet = build_unet(config, tower.width, latents)
    if config.swapped_from is not None:
        texts = swap_captions(config)
        explained = map_cross_attention(
            unet, TextTower(config.swapped_from).encode(texts), tower.encode(texts)
        )
        logger.info("the new tower's states explain %.1f %% of the old one's", 100 * explained)
    select_parameters(unet, config.trainable)
    schedule = DDPMScheduler(**SCHEDULE, prediction_type=config.prediction_type)
    run = Run.start(config, unet)
    tower.model.to(run.accelerator.device)
    for clean, texts in run.batches(CaptionedLatents(config, latents, scenes)):
        clean = clean.to(run.accelerator.device)
        noise = run.noise(*clean.shape)
        uniform = run.uniform(len(clean)) ** (1 / (1 + config.timestep_bias))
        timesteps = (uniform * schedule.config.num_train_timesteps).long()
        noisy = schedule.add_noise(clean, noise, timesteps)
        with run.accelerator.autocast():
            prediction = run.model(noisy, timesteps, tower.encode(texts)).sample
        target = (
            noise if config.prediction_type == "epsilon" else schedule.get_velocity(clean, noise, timesteps)
        )
        snr = compute_snr(schedule, timesteps)
        run.step(
            diffusion_loss(prediction.float(), target, snr, config.prediction_type, config.snr_gamma or None)
        )
    if run.accelerator.is_main_process:
        export(run.trained(), vae, tower, config)


def export(unet: nn.Module, vae: AutoencoderKL, tower: TextTower, config: TextToImageConfig) -> None:
    """A folder that plain diffusers opens."""
    scheduler = DPMSolverMultistepScheduler(
        **{name: value for name, value in SCHEDULE.items() if name != "clip_sample"},
        prediction_type=config.prediction_type,
        timestep_spacing="trailing",  # the first step is the noisiest one (Lin et al. 2024, section 3.3)
        steps_offset=1,
    )
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=tower.model,
        tokenizer=tower.tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(config.output_dir / "model")
    drawn = {"covered": list(dict.fromkeys(c for s in chosen_scenes(config) for c in s.characters))}
    (config.output_dir / "drawn.json").write_text(json.dumps(drawn, ensure_ascii=False))


def main() -> None:
    run_stage(parse(TextToImageConfig), train)


if __name__ == "__main__":
    main()
