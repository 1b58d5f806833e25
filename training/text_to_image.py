"""AltDiffusion: the UNet learns to draw what the text tower says. The tower and the VAE are frozen.

Concept alignment (Ye et al. 2023): after the tower of a Stable Diffusion was swapped, only keys and values of
cross-attention are trained (`trainable: kv`). Quality improvement: the whole UNet (`trainable: unet`), with a
tenth of the captions dropped for classifier-free guidance. `lora` and `textual_inversion` leave the UNet as
it is and train a small file that diffusers loads beside it. With `unet` left out a new one is trained from
nothing.
"""

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

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

from altdiffusion import aside
from altdiffusion.losses import diffusion_loss
from altdiffusion.runtime import choose_attention
from altdiffusion.trainable import lora_state, select_parameters
from training import inversion, lora
from training.attending import set_attention
from training.captions import check_captions
from training.config import OptimConfig, RunConfig, check_number, parse
from training.data import image_captions, open_pictures
from training.emoji_latents import (
    CaptionedLatents,
    ScenesConfig,
    chosen_emoji,
    chosen_scenes,
    swap_captions,
)
from training.export import Made, data_of, finish
from training.frozen import store_rounded, unrounded
from training.inversion import Inversion, InversionConfig, WithWord
from training.kept_tower import KeptTower, full_states, open_tower
from training.known import known_texts
from training.latents import cached_latents
from training.lazy import LazyAutoencoder
from training.loop import Run
from training.lora import LoraConfig
from training.opened import Opened
from training.pictures import PicturesConfig, batches, latent_shape
from training.prior import PriorConfig, WithPrior, WithPrompt, prior_latents
from training.processes import state_of_processes
from training.stage import run_stage
from training.streams import check_workers
from training.swap import map_cross_attention
from training.tower import TextTower
from training.unet import UNetConfig, build_unet, drawn_timesteps, schedule_fields
from training.validation import Validation, ValidationConfig

logger = logging.getLogger(__name__)
AnyTower = TextTower | KeptTower


@dataclass(frozen=True)
class TextToImageConfig:
    """Concept alignment, quality improvement, a LoRA, or a UNet from nothing."""

    output_dir: Path
    text: Path
    """transformers folder of the AltCLIP (or, for an English UNet, the CLIP) whose text tower conditions."""
    vae: Path
    unet: Path | None = None
    """diffusers folder of the UNet to go on from. None starts a new one."""
    trainable: Literal["kv", "cross_attention", "unet", "lora", "textual_inversion"] = "unet"
    """kv: keys and values of cross-attention, as the paper says. cross_attention: all of it, as the paper's
    code did. lora: low-rank pairs beside the UNet, which stays as it is. textual_inversion: the vectors of a
    new word, and nothing else."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    inversion: InversionConfig = field(default_factory=InversionConfig)
    data: str = ""
    """Pictures with captions, in the place of the emoji: a folder, a file, or a data set's name."""
    reading: PicturesConfig = field(default_factory=PicturesConfig)
    languages: tuple[str, ...] = ()
    """Caption languages; empty means all."""
    emoji: int = 0
    """Draw only so many of the emoji, spread evenly; 0 draws all of them."""
    characters: str = ""
    """Draw these emoji alone."""
    instance_prompt: str = ""
    """Caption of every picture, in place of its own: DreamBooth's instance prompt."""
    variants: int = 8
    """Pictures of each emoji, which differ in place and size; a single one stands in the middle."""
    pairs: int = 0
    """Pictures of two emoji side by side, which their caption names from left to right."""
    pair_share: float = 0.3
    """Share of the samples that are such pairs, where there are any."""
    scenes: ScenesConfig = field(default_factory=ScenesConfig)
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
    cache: Path | None = None
    """Folder, which runs may share, for what the text tower says of each caption, so that the tower is read
    only where something is missing. None: computed anew in every step."""
    attention: Literal["auto", "sdpa", "xformers"] = "auto"
    """auto: xformers where it is installed and the device is CUDA; in bf16 on a CPU two plain products where
    sequences are short; otherwise, as sdpa, PyTorch's own."""
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    architecture: UNetConfig = field(default_factory=UNetConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        if self.zero_terminal_snr and self.prediction_type == "epsilon":
            raise ValueError(
                "zero_terminal_snr: True with prediction_type epsilon, which then learns to copy its input; "
                "allowed: prediction_type v_prediction, or zero_terminal_snr False"
            )
        if not self.data:
            check_captions(self.languages)
        check_number("caption_dropout", self.caption_dropout, 0, 1)
        check_number("variants", self.variants, 1)
        if self.pairs < 0 or not 0 <= self.pair_share < 1:
            raise ValueError(
                f"pairs: {self.pairs} with pair_share {self.pair_share}; allowed: 0 and more, 0 to below 1"
            )
        self.scenes.check_shares(self.pair_share if self.pairs else 0.0)
        if self.cache is not None and (self.pairs or self.scenes.groups or self.scenes.ground_share):
            raise ValueError("cache: with pairs or scenes, whose captions are too many; allowed: without")
        check_workers(self.reading.streaming, self.run.workers)
        if self.reading.streaming and self.cache is not None:
            raise ValueError(
                "cache: with reading.streaming, whose texts are not known beforehand; allowed: without"
            )
        if self.reading.streaming and (self.prior.prompts or self.instance_prompt):
            raise ValueError("reading.streaming: True with prior.prompts or instance_prompt; allowed: False")
        if self.trainable == "textual_inversion":
            inversion.check(self)
        beside = self.trainable in ("lora", "textual_inversion")
        for name, wanted in (("trainable", beside), ("prior", bool(self.prior.prompts))):
            if wanted and self.unet is None:
                raise ValueError(f"unet: None, and {name} needs one that draws; allowed: a UNet's folder")


def prepare_unet(config: TextToImageConfig, tower: AnyTower, shape: torch.Size) -> UNet2DConditionModel:
    """The UNet for latents of this `shape`, with the parameters of the stage, and no others, trainable."""
    unet = build_unet(config.unet, config.architecture, tower.width, (shape[0], shape[-1]))
    if config.swapped_from is not None:
        texts = swap_captions(config.languages)
        before = full_states(open_tower(config.swapped_from, config.cache), texts)
        explained = map_cross_attention(unet, before, full_states(tower, texts))
        logger.info("the new tower's states explain %.1f %% of the old one's", 100 * explained)
    if config.trainable == "lora":
        lora.prepare(unet, config.lora)
    if config.trainable != "textual_inversion":
        select_parameters(unet, config.trainable)
    set_attention(unet, config.attention, config.run.mixed_precision)
    if config.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    return unet


def training_data(
    config: TextToImageConfig, opened: Opened | None, vae: LazyAutoencoder, tower: AnyTower
) -> tuple[Any, torch.Size]:
    """The samples, and the shape of their latents (in buckets that of the square)."""
    if opened is not None:
        cache = (config.cache or config.output_dir) / "latents"
        dataset = image_captions(
            opened,
            config.run,
            vae,
            tower.tokenizer,
            cache,
            config.caption_dropout,
            config.instance_prompt,
            "cache" if config.cache else "output_dir",
        )
        shape = latent_shape(vae, config.reading.resolution)
    else:
        scenes = chosen_scenes(config)
        path = config.output_dir / "latents.safetensors"
        latents = cached_latents(vae, scenes, path, state_of_processes().device, config.run.workers)
        dataset, shape = CaptionedLatents(config, latents, scenes), latents.shape[1:]
        if config.instance_prompt:
            dataset = WithPrompt(dataset, config.instance_prompt)
    if config.trainable == "textual_inversion" and not config.instance_prompt:
        dataset = WithWord(dataset, config.inversion, config.languages, config.run.seed)
    if config.prior.prompts:
        dataset = with_prior(dataset, config, vae, tower)
    if not config.reading.streaming:  # a stream is encoded while it is read
        vae.release()
    return dataset, shape


def with_prior(dataset: Any, config: TextToImageConfig, vae: LazyAutoencoder, tower: AnyTower) -> Any:
    """Beside each sample one that the starting UNet has drawn."""
    unet = UNet2DConditionModel.from_pretrained(config.unet)
    path = config.output_dir / "prior.safetensors"
    pictures = prior_latents(pipeline_of(unet, vae.model, tower, config), config.prior, config.run.seed, path)
    return WithPrior(dataset, pictures, config.prior, config.run.seed)


def open_parts(config: TextToImageConfig) -> tuple[Opened | None, LazyAutoencoder, AnyTower]:
    """Data of one's own, autoencoder and tower, of which only what is needed is read."""
    opened = None
    if config.data:
        prompt = config.instance_prompt or config.inversion.token
        opened = open_pictures(config.data, config.reading, config.languages, otherwise=prompt)
    tower = open_tower(config.text, config.cache)
    if config.trainable == "textual_inversion":
        inversion.check_words(config.inversion, tower.tokenizer)
    if isinstance(tower, KeptTower):
        drawn = [] if opened else [c for scene in chosen_scenes(config) for c in scene.characters]
        tower.kept.keep(known_texts(config, opened, drawn), config.run)
    return opened, LazyAutoencoder(config.vae), tower


def start(
    config: TextToImageConfig, unet: UNet2DConditionModel, tower: AnyTower
) -> tuple[Run, Callable[[list[str]], Any], Callable[[list[str]], Tensor]]:
    """The run, what makes its third input of captions, and what encodes prompts as it has learnt to."""
    model, encode, states = unet, tower.encode, tower.encode
    if config.trainable == "textual_inversion":
        assert isinstance(tower, TextTower)  # a cache is refused
        model = Inversion(unet, tower, config.inversion)
        encode, states = list, model.states  # it reads the texts itself
    if config.unet is not None:
        store_rounded(unet, config.run.mixed_precision)
    if isinstance(tower, TextTower):
        store_rounded(tower.model, config.run.mixed_precision)
    run = Run.start(config, model)
    tower.to(run.accelerator.device)
    return run, encode, states


def train(config: TextToImageConfig) -> None:
    choose_attention(config.attention)  # refuses before the models are read what cannot run here
    if not config.data:
        chosen_emoji(config)  # and what is not there
    torch.manual_seed(config.run.seed)
    if config.run.threads:
        torch.set_num_threads(config.run.threads)
    opened, vae, tower = open_parts(config)
    dataset, shape = training_data(config, opened, vae, tower)
    unet = prepare_unet(config, tower, shape)
    schedule = DDPMScheduler(**schedule_fields(config.prediction_type, config.zero_terminal_snr))
    run, encode, states = start(config, unet, tower)
    at_hand = tower if isinstance(tower, TextTower) else None
    validation = Validation(
        config.validation, run, lambda: pipeline_of(unet, vae.model, at_hand, config), states, shape
    )
    validation.draw()
    for clean, texts in batches(dataset, run, vae):
        clean = clean.to(run.accelerator.device)
        noise = run.noise(*clean.shape)
        timesteps = drawn_timesteps(run, schedule, len(clean), config.timestep_bias)
        if config.noise_offset:
            noise = noise + config.noise_offset * run.noise(*clean.shape[:2], 1, 1)
        noisy = schedule.add_noise(clean, noise, timesteps)
        with run.accelerator.autocast():
            prediction = run.model(noisy, timesteps, encode(texts)).sample
        target = (
            noise if config.prediction_type == "epsilon" else schedule.get_velocity(clean, noise, timesteps)
        )
        run.step(stage_loss(config, prediction.float(), target, compute_snr(schedule, timesteps)))
        validation.draw()
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
    unet: UNet2DConditionModel, vae: AutoencoderKL, tower: AnyTower | None, config: TextToImageConfig
) -> StableDiffusionPipeline:
    """The stock pipeline of these parts, with a sampler that fits. Without a tower it takes states alone."""
    fields = schedule_fields(config.prediction_type, config.zero_terminal_snr)
    scheduler = DPMSolverMultistepScheduler(
        **{name: value for name, value in fields.items() if name != "clip_sample"},
        timestep_spacing="trailing",  # the first step is the noisiest one (Lin et al. 2024, section 3.3)
        steps_offset=1,
    )
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=None if tower is None else tower.model,
        tokenizer=None if tower is None else tower.tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def export(
    trained: UNet2DConditionModel | Any,
    vae: LazyAutoencoder,
    tower: AnyTower,
    config: TextToImageConfig,
) -> None:
    """A folder that plain diffusers opens; of a LoRA or a new word the file that its pipelines load."""
    folder = config.output_dir / "model"
    if config.trainable == "textual_inversion":
        with aside.merged(folder) as place:
            inversion.export(trained, config.inversion, place)
    elif config.trainable == "lora":
        layers, settings = lora_state(trained)
        with aside.merged(folder) as place:
            StableDiffusionPipeline.save_lora_weights(
                place, unet_lora_layers=layers, unet_lora_adapter_metadata=settings
            )
    else:
        precision = config.run.mixed_precision
        if config.unet is not None:
            trained = unrounded(trained, precision, lambda: UNet2DConditionModel.from_pretrained(config.unet))
        if isinstance(tower, TextTower):
            tower.model = unrounded(tower.model, precision, lambda: TextTower(config.text).model)
        pipeline_of(trained, vae.model, tower, config).save_pretrained(folder)
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
        "textual_inversion": f"textual inversion (Gal et al. 2023) of the word `{config.inversion.token}`",
    }
    beside = {"lora": ("LoRA", "load_lora_weights"), "textual_inversion": ("Word", "load_textual_inversion")}
    title, opener = beside.get(config.trainable, ("AltDiffusion", ""))
    return Made(
        title=title,
        stage=stages[config.trainable],
        library="diffusers",
        task="text-to-image",
        bases={"UNet": config.unet, "text tower": config.text, "VAE": config.vae, "LoRA": config.lora.start},
        **data_of(opened, config.languages),
        opens=f"`{opener}` of a pipeline opens it" if opener else "",
    )


def main() -> None:
    run_stage(parse(TextToImageConfig), train)


if __name__ == "__main__":
    main()
