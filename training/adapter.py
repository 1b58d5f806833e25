"""Adapter mode (PEA-Diffusion, Ma et al. 2024): a small net learns to stand between a text tower and a UNet.

UNet and tower are frozen. The UNet shall predict under a caption in any language what it predicts under the
English one in its own text encoder, and the noise that is there. So one AltCLIP draws with any Stable
Diffusion 1 or 2, whose LoRAs and ControlNets go on fitting.
"""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, StableDiffusionPipeline
from diffusers.training_utils import compute_snr
from torch import Tensor, nn

from altdiffusion import text_adapter
from altdiffusion.checkpoints import locate, quiet
from altdiffusion.conditioning import encode_trimmed, expand
from altdiffusion.languages import LANGUAGES
from altdiffusion.losses import diffusion_loss, imitation_loss
from altdiffusion.model import AltCLIP
from altdiffusion.pipelines import AltDiffusionPipeline
from altdiffusion.reading import read_json
from altdiffusion.text_adapter import TextAdapter
from training.adapter_data import Judged, ParallelPictures, judged_emoji
from training.attending import set_attention
from training.captions import Captions, check_captions
from training.config import OptimConfig, RunConfig, check_number, parse
from training.data import image_captions, open_pictures
from training.emoji import Scene, centred, load_emoji, some_emoji
from training.export import Made, data_of, finish
from training.frozen import FORMATS, store_rounded
from training.latents import cached_latents
from training.loop import Run
from training.opened import Opened
from training.pictures import CachedPictures, PicturesConfig
from training.processes import state_of_processes
from training.stage import run_stage
from training.unet import drawn_timesteps
from training.validation import Validation, ValidationConfig

logger = logging.getLogger(__name__)
#: Texts encoded at a time where no gradient is needed.
CHUNK = 64
OPENS = "`altdiffusion.AltDiffusionPipeline.from_pretrained` opens it; plain diffusers leaves `adapter/` out"


@dataclass(frozen=True)
class NetConfig:
    """Shape of the net; its widths at both ends are the tower's and the UNet's."""

    hidden_dim: int = 1024
    hidden_layers: int = 3
    """0 leaves a linear map, which is folded into the tower: the result is a stock model."""


@dataclass(frozen=True)
class AdapterConfig:
    """Adapter mode: an AltCLIP drives a Stable Diffusion that stays as it is."""

    output_dir: Path
    text: str
    """AltCLIP whose text tower shall condition the UNet: a folder or a Hub name, in any published layout."""
    stable_diffusion: str
    """Stable Diffusion 1 or 2 with the English text encoder that its UNet knows: a diffusers folder or a Hub
    name."""
    net: NetConfig = field(default_factory=NetConfig)
    data: str = ""
    """Pictures with captions, English ones among them, in the place of the emoji: a folder, a file, or a data
    set's name."""
    reading: PicturesConfig = field(default_factory=PicturesConfig)
    languages: tuple[str, ...] = ()
    """Caption languages; empty means all."""
    emoji: int = 0
    """Learn from so many of the emoji, spread evenly; 0 takes all of them."""
    fitted_captions: int = 2048
    """Captions on which the linear map is fitted by least squares before training; 0 starts without."""
    block_weight: float = 0.1
    """Weight of drawing the output of each UNet block to the teacher's."""
    caption_dropout: float = 0.1
    """Share of captions replaced by the empty one, for classifier-free guidance."""
    snr_gamma: float = 0.0
    """min-SNR weighting of the diffusion loss; 0 leaves the plain mean."""
    timestep_bias: float = 0.0
    """Timesteps t are drawn with a density like t to this power: 0 draws all alike, 1 mostly noisy ones."""
    gradient_checkpointing: bool = False
    """Compute the UNet's activations again on the way back, which takes less memory and more time."""
    judged_captions: int = 16
    """Captions of each language in the report's figures."""
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        if self.reading.streaming:
            raise ValueError("reading.streaming: True in adapter mode, which reads by place; allowed: False")
        if not self.data:
            check_captions(self.languages)
        check_number("fitted_captions", self.fitted_captions, 0)
        check_number("judged_captions", self.judged_captions, 1)
        check_number("caption_dropout", self.caption_dropout, 0, 1)


class ParallelLatents(torch.utils.data.Dataset):
    """Endless (latents, caption in some language, plain English caption) of emoji."""

    items = None

    def __init__(self, config: AdapterConfig, latents: Tensor, scenes: list[Scene]) -> None:
        self.config, self.latents, self.scenes = config, latents, scenes
        self.captions = Captions(load_emoji())

    def texts(self, index: int) -> tuple[int, str, str]:
        random = np.random.default_rng((self.config.run.seed, index, 4))
        number = int(random.integers(len(self.scenes)))
        scene = self.scenes[number]
        tag = self.captions.random_language(random, scene.characters, self.config.languages)
        return number, self.captions.caption(scene, tag, random), self.captions.name(scene)

    def __getitem__(self, index: int) -> tuple[Tensor, str, str]:
        number, text, english = self.texts(index)
        random = np.random.default_rng((self.config.run.seed, index, 5))
        dropped = random.random() < self.config.caption_dropout
        return (self.latents[number], "", "") if dropped else (self.latents[number], text, english)

    def collate(self, items: list[tuple[Tensor, str, str]]) -> tuple[Tensor, list[str], list[str]]:
        latents, texts, english = zip(*items, strict=True)
        return torch.stack(latents), list(texts), list(english)


class Imitation(nn.Module):
    """The adapter, which alone is trained, saved and averaged; the rest is held outside the module tree."""

    def __init__(
        self, student: AltDiffusionPipeline, teacher: StableDiffusionPipeline, config: AdapterConfig
    ) -> None:
        super().__init__()
        self.adapter: Any = text_adapter.adapter_of(student.text_encoder)
        self.config = config
        self.frozen = (student, teacher)
        self.schedule = DDPMScheduler.from_config(teacher.scheduler.config)

    def states(self, texts: list[str]) -> Tensor:
        """(texts, 77, dim): what the tower and the adapter tell the UNet."""
        student = self.frozen[0]
        states, _ = encode_trimmed(student.text_encoder, student.tokenizer, texts)
        return expand(states)

    @torch.no_grad()
    def english(self, texts: list[str]) -> Tensor:
        """The same of the UNet's own text encoder."""
        teacher = self.frozen[1]
        return teacher.encode_prompt(texts, teacher.unet.device, 1, False)[0]

    def forward(
        self, clean: Tensor, noise: Tensor, timesteps: Tensor, texts: list[str], english: list[str]
    ) -> tuple[Tensor, Tensor]:
        """The diffusion loss and the imitation loss."""
        unet, schedule = self.frozen[1].unet, self.schedule
        kind = schedule.config.prediction_type
        noisy = schedule.add_noise(clean, noise, timesteps)
        with torch.no_grad():
            goal, goal_blocks = observed(unet, noisy, timesteps, self.english(english))
        prediction, blocks = observed(unet, noisy, timesteps, self.states(texts))
        target = noise if kind == "epsilon" else schedule.get_velocity(clean, noise, timesteps)
        snr = compute_snr(schedule, timesteps)
        drawn = diffusion_loss(prediction, target, snr, kind, self.config.snr_gamma or None)
        return drawn, imitation_loss(prediction, goal, blocks, goal_blocks, self.config.block_weight)


def observed(
    unet: nn.Module, noisy: Tensor, timesteps: Tensor, states: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """The UNet's prediction, and what its down, middle and up blocks gave on the way."""
    blocks: list[Tensor] = []

    def keep(_block: nn.Module, _arguments: Any, output: Any) -> None:
        blocks.append((output[0] if isinstance(output, tuple) else output).float())

    parts: Any = unet
    watched = [*parts.down_blocks, parts.mid_block, *parts.up_blocks]
    handles = [block.register_forward_hook(keep) for block in watched if block is not None]
    try:
        return unet(noisy, timesteps, states).sample.float(), blocks
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def named(argument: str) -> Iterator[None]:
    """The library's complaints about a model begin with the flag that named it."""
    try:
        yield
    except ValueError as error:
        raise ValueError(
            f"{argument}: {str(error).removeprefix('model: ').removeprefix(argument + ': ')}"
        ) from None


def chosen_scenes(config: AdapterConfig) -> list[Scene]:
    return [centred(character) for character in some_emoji(config.emoji).characters]


def build(config: AdapterConfig) -> Imitation:
    """Teacher, and student on the same UNet, with a new adapter between."""
    with named("stable_diffusion"):
        folder = locate(config.stable_diffusion)
        width = int(read_json(folder / "unet/config.json").get("cross_attention_dim") or 0)
    with named("text"):
        clip = AltCLIP.from_pretrained(config.text, dtype=torch.float32, device="cpu")
    project_dim = clip.model.config.text_config.project_dim
    adapter = TextAdapter(project_dim, width, config.net.hidden_dim, config.net.hidden_layers)
    with named("stable_diffusion"):
        student = AltDiffusionPipeline.from_altclip(clip, folder, adapter=adapter)
    kind = student.scheduler.config.prediction_type
    if kind not in ("epsilon", "v_prediction"):
        raise ValueError(f"stable_diffusion: its UNet predicts {kind!r}; allowed: epsilon, v_prediction")
    with quiet():
        teacher = StableDiffusionPipeline.from_pretrained(
            folder,
            unet=student.unet,
            vae=student.vae,
            dtype=torch.float32,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    for part in (student.text_encoder, teacher.text_encoder, teacher.unet, clip.model):
        part.eval().requires_grad_(False)
    adapter.requires_grad_(True)
    set_attention(teacher.unet, "auto", config.run.mixed_precision)
    if config.gradient_checkpointing:
        teacher.unet.enable_gradient_checkpointing()
    return Imitation(student, teacher, config)


@torch.no_grad()
def fit(stage: Imitation, pairs: list[tuple[str, str]]) -> None:
    """Starts the linear map at the best one between both encoders' mean states of the same captions."""
    student = stage.frozen[0]
    texts, english = (list(side) for side in zip(*pairs, strict=True))
    with text_adapter.aside(student.text_encoder) as adapter:
        parts = [slice(first, first + CHUNK) for first in range(0, len(pairs), CHUNK)]
        source = torch.cat([stage.states(texts[part]).mean(1).cpu() for part in parts])
        target = torch.cat([stage.english(english[part]).mean(1).cpu() for part in parts])
    if adapter is not None:
        logger.info("linear map: explains %.1f %% of the English states", 100 * adapter.fit(source, target))


@torch.no_grad()
def gap(stage: Imitation, judged: Judged) -> dict[str, float]:
    """How far the UNet is, under each language's captions, from what it predicts under their English.

    In units of what the English text does at all: 0 is the same prediction, 1 as far as without a text.
    """
    unet, schedule = stage.frozen[1].unet, stage.schedule

    @cache  # most languages are judged on the same
    def asked(english: tuple[tuple[int, str], ...]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Noisy latents, timesteps, the prediction under the English, and what that text does."""
        count, (places, texts) = len(english), map(list, zip(*english, strict=True))
        draw = torch.Generator().manual_seed(stage.config.run.seed)
        noise = torch.randn(count, *judged.latents.shape[1:], generator=draw)
        # From a half to all of the noise: there it is decided what the picture shows.
        timesteps = torch.linspace(0.5, 0.98, count).mul(schedule.config.num_train_timesteps).long()
        noisy = schedule.add_noise(judged.latents[places], noise, timesteps).to(unet.device)
        timesteps = timesteps.to(unet.device)
        goal = unet(noisy, timesteps, stage.english(texts)).sample
        silent = unet(noisy, timesteps, stage.english([""] * count)).sample
        return noisy, timesteps, goal, F.mse_loss(silent, goal)

    found = {}
    for tag, samples in judged.samples.items():
        noisy, timesteps, goal, effect = asked(tuple((place, english) for place, _, english in samples))
        states = stage.states([text for _, text, _ in samples])
        found[tag] = (F.mse_loss(unet(noisy, timesteps, states).sample, goal) / effect).item()
    return found


def training_data(
    config: AdapterConfig, stage: Imitation, opened: Opened | None
) -> tuple[ParallelLatents | ParallelPictures, Judged]:
    """The samples, and what the report is about."""
    student, teacher = stage.frozen
    if opened is not None:
        assert opened.found is not None
        kept = config.output_dir / "latents"
        pictures = image_captions(opened, config.run, teacher.vae, student.tokenizer, kept)
        assert isinstance(pictures, CachedPictures)
        data = ParallelPictures(pictures, config.caption_dropout)
        return data, data.judged(opened.found, config.judged_captions)
    scenes = chosen_scenes(config)
    path, device = config.output_dir / "latents.safetensors", state_of_processes().device
    latents = cached_latents(teacher.vae, scenes, path, device, config.run.workers)
    data = ParallelLatents(config, latents, scenes)
    tags = config.languages or tuple(LANGUAGES)
    return data, judged_emoji(scenes, latents, data.captions, tags, config.judged_captions)


def with_adapter(stage: Imitation, adapter: TextAdapter) -> Imitation:
    """The trained adapter between the models; where those were rounded, they are read anew."""
    if stage.config.run.mixed_precision not in FORMATS:
        stage.adapter = adapter
        text_adapter.attach(stage.frozen[0].text_encoder, adapter)
        return stage
    fresh = build(stage.config)
    fresh.adapter.load_state_dict(adapter.state_dict())
    for pipeline in fresh.frozen:
        pipeline.to(stage.frozen[0].device)
    return fresh


def train(config: AdapterConfig) -> None:
    torch.manual_seed(config.run.seed)
    if config.run.threads:
        torch.set_num_threads(config.run.threads)
    opened = None
    if config.data:
        opened = open_pictures(config.data, config.reading, config.languages, needed="en")
    stage = build(config)
    data, judged = training_data(config, stage, opened)
    for pipeline in stage.frozen:
        pipeline.to(state_of_processes().device)
    figures = {}
    if stage.adapter.config.in_dim == stage.adapter.config.out_dim:
        with text_adapter.aside(stage.frozen[0].text_encoder):
            figures["without"] = gap(stage, judged)
    if config.fitted_captions:
        fit(stage, [data.texts(index)[1:] for index in range(config.fitted_captions)])
    figures["start"] = gap(stage, judged)
    student, teacher = stage.frozen
    for part in (student.text_encoder, teacher.text_encoder, teacher.unet):
        store_rounded(part, config.run.mixed_precision)
    run = Run.start(config, stage)
    validation = Validation(
        config.validation, run, lambda: stage.frozen[0], stage.states, judged.latents.shape[1:]
    )
    validation.draw()
    for clean, texts, english in run.batches(data):
        clean = clean.to(run.accelerator.device)
        noise = run.noise(*clean.shape)
        timesteps = drawn_timesteps(run, stage.schedule, len(clean), config.timestep_bias)
        with run.accelerator.autocast():
            drawn, imitated = run.model(clean, noise, timesteps, texts, english)
        run.log(diffusion=drawn.detach(), imitation=imitated.detach())
        run.step(drawn + imitated)
        validation.draw()
    if run.accelerator.is_main_process:
        trained: Any = run.trained()
        stage = with_adapter(stage, trained.adapter)
        figures["trained"] = gap(stage, judged)
        export(stage, figures, opened)


def export(stage: Imitation, figures: dict[str, dict[str, float]], opened: Opened | None) -> None:
    """The pipeline with its adapter in `adapter/`; a linear one is folded into the tower."""
    student, config = stage.frozen[0], stage.config
    if config.net.hidden_layers == 0:
        text_adapter.fold(student.text_encoder)
    student.save_pretrained(config.output_dir / "model")
    report = {**figures, **(opened.report() if opened else {})}
    (config.output_dir / "report.json").write_text(json.dumps(report, indent=1))
    made = Made(
        title="AltDiffusion by an adapter",
        stage="adapter mode (PEA-Diffusion, Ma et al. 2024)",
        library="diffusers",
        task="text-to-image",
        bases={"text tower": config.text, "UNet and VAE": config.stable_diffusion},
        **data_of(opened, config.languages),
        figures=figures,
        metric="How far the UNet's prediction is from that under the English caption in its own encoder, "
        "in units of what that text does: 0 is the same, 1 as far as no text",
        opens=OPENS if config.net.hidden_layers else "",
    )
    finish(config, made)


def main() -> None:
    run_stage(parse(AdapterConfig), train)


if __name__ == "__main__":
    main()
