"""AltDiffusion: the UNet learns to draw what the text tower says. The tower and the VAE are frozen.

Concept alignment (Ye et al. 2023): after the tower of a Stable Diffusion was swapped, only keys and values of
cross-attention are trained (`trainable: kv`). Quality improvement: the whole UNet (`trainable: unet`), with a
tenth of the captions dropped for classifier-free guidance. `lora` leaves the UNet as it is and trains a small
file that diffusers loads beside it. With `unet` left out a new one is trained from nothing.
"""

import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

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
from torch import Tensor

from altdiffusion.losses import diffusion_loss
from altdiffusion.runtime import choose_attention
from altdiffusion.trainable import add_lora, lora_state, select_parameters
from training.captions import Captions
from training.config import OptimConfig, RunConfig, parse
from training.data import Opened, image_captions, open_pictures
from training.emoji import Scene, load_emoji, random_scene
from training.export import Made, data_of, finish
from training.latents import cached_latents
from training.loop import Run
from training.pictures import PicturesConfig, batches, latent_shape
from training.prior import PriorConfig, WithPrior, WithPrompt, prior_latents
from training.stage import run_stage
from training.streams import check_workers
from training.swap import map_cross_attention
from training.tower import TextTower
from training.unet import UNetConfig, build_unet, schedule_fields, set_attention

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoraConfig:
    """The low-rank pairs beside the queries, keys, values and outputs of every attention."""

    rank: int = 4
    alpha: int | None = None
    """The pairs count alpha / rank times. None: as the rank, once."""

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"lora.rank: {self.rank}; allowed: 1 and up")


@dataclass(frozen=True)
class TextToImageConfig:
    """Concept alignment, quality improvement, a LoRA, or a UNet from nothing."""

    output_dir: Path
    text: Path
    """transformers folder of the AltCLIP (or, for an English UNet, the CLIP) whose text tower conditions."""
    vae: Path
    unet: Path | None = None
    """diffusers folder of the UNet to go on from. None starts a new one."""
    trainable: Literal["kv", "cross_attention", "unet", "lora"] = "unet"
    """kv: keys and values of cross-attention, as the paper says. cross_attention: all of it, as the paper's
    code did. lora: low-rank pairs beside the UNet, which stays as it is."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    data: str = ""
    """Pictures with captions, in the place of the emoji: a folder, a file, or a data set's name."""
    reading: PicturesConfig = field(default_factory=PicturesConfig)
    languages: tuple[str, ...] = ()
    """Caption languages; empty means all."""
    emoji: int = 0
    """Draw only the first so many of the covered emoji, spread evenly; 0 draws all of them."""
    characters: str = ""
    """Draw these emoji alone, covered or not."""
    instance_prompt: str = ""
    """Caption of every picture, in place of its own: DreamBooth's instance prompt."""
    variants: int = 8
    """Pictures of each emoji, which differ in place and size; a single one stands in the middle."""
    prior: PriorConfig = field(default_factory=PriorConfig)
    caption_dropout: float = 0.1
    """Share of captions replaced by the empty one, for classifier-free guidance."""
    prediction_type: Literal["epsilon", "v_prediction"] = "v_prediction"
    snr_gamma: float = 5.0
    """min-SNR weighting; 0 leaves the plain mean."""
    noise_offset: float = 0.0
    """Weight of noise that is the same all over a channel: teaches very dark and very light pictures."""
    zero_terminal_snr: bool = False
    """The last timestep is noise alone (Lin et al. 2024, section 3.1). Needs v_prediction."""
    timestep_bias: float = 0.0
    """Timesteps t are drawn with a density like t to this power: 0 draws all alike, 1 mostly noisy ones."""
    swapped_from: Path | None = None
    """transformers folder of the tower that `unet` was trained on, where `text` is another one: keys and
    values start with the least-squares map between the two."""
    gradient_checkpointing: bool = False
    """Compute activations again on the way back: a fifth of their memory, a third more time."""
    attention: Literal["auto", "sdpa", "xformers"] = "auto"
    """auto: xformers where it is installed and the device is CUDA, otherwise PyTorch's own."""
    architecture: UNetConfig = field(default_factory=UNetConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        if self.zero_terminal_snr and self.prediction_type == "epsilon":
            raise ValueError(
                "zero_terminal_snr: True with prediction_type epsilon, which then learns to copy its input; "
                "allowed: prediction_type v_prediction, or zero_terminal_snr False"
            )
        if not 0 <= self.caption_dropout <= 1:
            raise ValueError(f"caption_dropout: {self.caption_dropout}; allowed: 0 to 1")
        check_workers(self.reading.streaming, self.run.workers)
        if self.reading.streaming and (self.prior.prompts or self.instance_prompt):
            raise ValueError("reading.streaming: True with prior.prompts or instance_prompt; allowed: False")
        for name, wanted in (("trainable", self.trainable == "lora"), ("prior", bool(self.prior.prompts))):
            if wanted and self.unet is None:
                raise ValueError(f"unet: None, and {name} needs one that draws; allowed: a UNet's folder")


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
    emoji = load_emoji()
    drawn = emoji.covered
    if config.characters:
        drawn = tuple(config.characters)
        if strange := [c for c in drawn if c not in emoji.characters]:
            raise ValueError(f"characters: {strange[0]!r} is none; allowed: the emoji of the font")
    elif config.emoji:
        drawn = tuple(drawn[round(i * (len(drawn) - 1) / (config.emoji - 1))] for i in range(config.emoji))
    spread = 0.3 if config.variants > 1 else 0.0
    return [
        random_scene(config.run.seed, 1000 * ord(c) + n, (c,), spread=spread)
        for c in drawn
        for n in range(config.variants)
    ]


def swap_captions(config: TextToImageConfig) -> list[str]:
    """What the two towers of a swap are compared on: the names of all emoji, and no text."""
    emoji = load_emoji()
    return ["", *(emoji.names[tag][c] for tag in config.languages or ("en",) for c in emoji.characters)]


def prepare_unet(config: TextToImageConfig, tower: TextTower, shape: torch.Size) -> UNet2DConditionModel:
    """The UNet for latents of this `shape`, with the parameters of the stage, and no others, trainable."""
    unet = build_unet(config.unet, config.architecture, tower.width, (shape[0], shape[-1]))
    if config.swapped_from is not None:
        texts = swap_captions(config)
        explained = map_cross_attention(
            unet, TextTower(config.swapped_from).encode(texts), tower.encode(texts)
        )
        logger.info("the new tower's states explain %.1f %% of the old one's", 100 * explained)
    if config.trainable == "lora":
        add_lora(unet, config.lora.rank, config.lora.alpha)
    select_parameters(unet, config.trainable)
    set_attention(unet, config.attention)
    if config.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    return unet


def training_data(
    config: TextToImageConfig, opened: Opened | None, vae: AutoencoderKL, tower: TextTower
) -> tuple[Any, torch.Size]:
    """The samples, and the shape of their latents (in buckets that of the square)."""
    if opened is not None:
        cache = config.output_dir / "latents"
        dataset = image_captions(
            opened,
            config.run,
            vae,
            tower.tokenizer,
            cache,
            config.caption_dropout,
            config.instance_prompt,
        )
        return dataset, latent_shape(vae, config.reading.resolution)
    scenes = chosen_scenes(config)
    latents = cached_latents(vae, scenes, config.output_dir / "latents.safetensors")
    return CaptionedLatents(config, latents, scenes), latents.shape[1:]


def train(config: TextToImageConfig) -> None:
    choose_attention(config.attention)  # refuses before the models are read what cannot run here
    torch.manual_seed(config.run.seed)
    if config.run.threads:
        torch.set_num_threads(config.run.threads)
    opened = open_pictures(config.data, config.reading, config.languages) if config.data else None
    vae, tower = AutoencoderKL.from_pretrained(config.vae).eval(), TextTower(config.text)
    dataset, shape = training_data(config, opened, vae, tower)
    if config.instance_prompt:
        dataset = WithPrompt(dataset, config.instance_prompt)
    if config.prior.prompts:
        unet = UNet2DConditionModel.from_pretrained(config.unet)
        path = config.output_dir / "prior.safetensors"
        pictures = prior_latents(pipeline_of(unet, vae, tower, config), config.prior, config.run.seed, path)
        dataset = WithPrior(dataset, pictures, config.prior, config.run.seed)
    unet = prepare_unet(config, tower, shape)
    schedule = DDPMScheduler(**schedule_fields(config.prediction_type, config.zero_terminal_snr))
    run = Run.start(config, unet)
    tower.model.to(run.accelerator.device)
    for clean, texts in batches(dataset, run, vae):
        clean = clean.to(run.accelerator.device)
        noise = run.noise(*clean.shape)
        uniform = run.uniform(len(clean)) ** (1 / (1 + config.timestep_bias))
        timesteps = (uniform * schedule.config.num_train_timesteps).long()
        if config.noise_offset:
            noise = noise + config.noise_offset * run.noise(*clean.shape[:2], 1, 1)
        noisy = schedule.add_noise(clean, noise, timesteps)
        with run.accelerator.autocast():
            prediction = run.model(noisy, timesteps, tower.encode(texts)).sample
        target = (
            noise if config.prediction_type == "epsilon" else schedule.get_velocity(clean, noise, timesteps)
        )
        run.step(stage_loss(config, prediction.float(), target, compute_snr(schedule, timesteps)))
    if run.accelerator.is_main_process:
        export(run.trained(), vae, tower, config)
        finish(config, made(config, opened))


def stage_loss(config: TextToImageConfig, prediction: Tensor, target: Tensor, snr: Tensor) -> Tensor:
    """The diffusion loss; with a prior its own and the pictures' take turns in the batch."""

    def loss(rows: slice) -> Tensor:
        return diffusion_loss(
            prediction[rows], target[rows], snr[rows], config.prediction_type, config.snr_gamma or None
        )

    if not config.prior.prompts:
        return loss(slice(None))
    return loss(slice(0, None, 2)) + config.prior.weight * loss(slice(1, None, 2))


def pipeline_of(
    unet: UNet2DConditionModel, vae: AutoencoderKL, tower: TextTower, config: TextToImageConfig
) -> StableDiffusionPipeline:
    """The stock pipeline of these parts, with a sampler that fits the schedule."""
    fields = schedule_fields(config.prediction_type, config.zero_terminal_snr)
    scheduler = DPMSolverMultistepScheduler(
        **{name: value for name, value in fields.items() if name != "clip_sample"},
        timestep_spacing="trailing",  # the first step is the noisiest one (Lin et al. 2024, section 3.3)
        steps_offset=1,
    )
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=tower.model,
        tokenizer=tower.tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def export(
    unet: UNet2DConditionModel | Any, vae: AutoencoderKL, tower: TextTower, config: TextToImageConfig
) -> None:
    """A folder that plain diffusers opens; of a LoRA the file that its `load_lora_weights` reads."""
    folder = config.output_dir / "model"
    if config.trainable == "lora":
        layers, settings = lora_state(unet)
        StableDiffusionPipeline.save_lora_weights(
            folder, unet_lora_layers=layers, unet_lora_adapter_metadata=settings
        )
    else:
        pipeline_of(unet, vae, tower, config).save_pretrained(folder)
    if config.data:
        return
    drawn = {"covered": list(dict.fromkeys(c for s in chosen_scenes(config) for c in s.characters))}
    (config.output_dir / "drawn.json").write_text(json.dumps(drawn, ensure_ascii=False))


def made(config: TextToImageConfig, opened: Opened | None) -> Made:
    stages = {
        "kv": "concept alignment (Ye et al. 2023)",
        "cross_attention": "concept alignment of all cross-attention, as the code of Ye et al. 2023 has it",
        "unet": "quality improvement (Ye et al. 2023)" if config.unet else "a UNet from nothing",
        "lora": "a LoRA",
    }
    return Made(
        title="LoRA" if config.trainable == "lora" else "AltDiffusion",
        stage=stages[config.trainable],
        library="diffusers",
        task="text-to-image",
        bases={"UNet": config.unet, "text tower": config.text, "VAE": config.vae},
        **data_of(opened, config.languages),
        opens="`load_lora_weights` of a pipeline opens it" if config.trainable == "lora" else "",
    )


def main() -> None:
    run_stage(parse(TextToImageConfig), train)


if __name__ == "__main__":
    main()
