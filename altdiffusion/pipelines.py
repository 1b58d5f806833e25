"""AltDiffusion's pipelines: the stock Stable Diffusion pipelines with exact, trimmed conditioning.

Only `encode_prompt` is ours. The classes carry the stock names, which is how AutoPipeline finds its way
between tasks and why what they save opens with plain diffusers.
"""

import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from diffusers import (
    AutoencoderKL,
    SchedulerMixin,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from jaxtyping import Float
from torch import Tensor
from transformers import (
    AltCLIPTextModel,
    CLIPImageProcessor,
    CLIPVisionModelWithProjection,
    XLMRobertaTokenizer,
)

from altdiffusion import bundled, checkpoints
from altdiffusion.conditioning import MAX_LENGTH, as_texts, dropped, encode_prompts, tower_length
from altdiffusion.runtime import choose_attention, choose_device, choose_dtype

_CARD = """---
library_name: diffusers
pipeline_tag: text-to-image
---

# AltDiffusion

Draws from prompts in many languages. Opens with `altdiffusion.AltDiffusionPipeline.from_pretrained` and
with plain `diffusers.DiffusionPipeline.from_pretrained`.
"""
_Pipeline = TypeVar(
    "_Pipeline", bound="_Conditioned"
)  # beartype takes no Self in methods that jaxtyping wraps
_OPTIONAL_MODELS = {
    "safety_checker": StableDiffusionSafetyChecker,
    "image_encoder": CLIPVisionModelWithProjection,
}


@dataclass(frozen=True)
class GenerationDefaults:
    """What a model draws with when the request leaves it open; scheduler None is the model's own."""

    steps: int
    guidance_scale: float
    width: int
    height: int
    scheduler: str | None = None


_Stock = StableDiffusionPipeline if TYPE_CHECKING else object


class _Conditioned(_Stock):
    """What the pipelines here put before their stock class."""

    _source: str | PathLike | None = "unsaved"
    _folder: Path | None = None
    _defaults: GenerationDefaults | None = None
    _fingerprint: tuple[object, str] | None = None

    def __init__(
        self,
        vae: AutoencoderKL,
        text_encoder: AltCLIPTextModel | None,
        tokenizer: XLMRobertaTokenizer | None,
        unet: UNet2DConditionModel,
        scheduler: SchedulerMixin,
        safety_checker: StableDiffusionSafetyChecker | None = None,
        feature_extractor: CLIPImageProcessor | None = None,
        image_encoder: CLIPVisionModelWithProjection | None = None,
        requires_safety_checker: bool = False,
    ):
        if text_encoder is not None:
            # unmasked pads count as words, and plain diffusers masks them only if the saved config says so
            text_encoder.config.use_attention_mask = True
        super().__init__(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=unet,
            scheduler=scheduler,
            safety_checker=safety_checker,
            feature_extractor=feature_extractor,
            image_encoder=image_encoder,
            requires_safety_checker=requires_safety_checker,
        )

    @classmethod
    def from_pretrained(
        cls: type[_Pipeline],
        name_or_folder: str | PathLike | None = None,
        *,
        dtype: str | torch.dtype | None = None,
        device: str | torch.device | None = None,
        attention: str = "auto",
        variant: str | None = None,
        revision: str | None = None,
        torch_dtype: str | torch.dtype | None = None,
        **components: Any,
    ) -> _Pipeline:
        """The bundled model, a folder or a Hub name; `components` (`vae=…`) replace the model's own."""
        device = choose_device(device)
        dtype = choose_dtype(device, dtype or torch_dtype)
        backend, _ = choose_attention(attention, device)
        known = set().union(*cls._get_signature_keys(cls))
        unknown = sorted(components.keys() - known)
        if unknown:
            allowed = ", ".join(sorted(known))
            raise TypeError(f"{unknown[0]}: not an argument of from_pretrained; allowed parts: {allowed}")
        folder = checkpoints.resolve(name_or_folder, revision=revision)
        if checkpoints.kind_of(folder) != "pipeline":
            raise ValueError(f"model: {str(folder)!r:.80} is an AltCLIP model; allowed: a model that draws")
        parts = _load_parts(folder, components, dtype, variant)
        with checkpoints.quiet():
            pipeline = super().from_pretrained(str(folder), dtype=dtype, local_files_only=True, **parts)
        pipeline._source, pipeline._folder = name_or_folder, folder
        pipeline._defaults = _read_defaults(folder)
        pipeline = pipeline.to(device)
        if backend == "xformers":
            pipeline.enable_xformers_memory_efficient_attention()
        return pipeline

    @classmethod
    def from_pipe(
        cls: type[_Pipeline], pipeline: Any, *, dtype: torch.dtype | None = None, **components: Any
    ) -> _Pipeline:
        """This task with another pipeline's parts, shared and not cast (the stock method casts them)."""
        expected, optional = cls._get_signature_keys(cls)
        parts = {name: part for name, part in pipeline.components.items() if name in expected}
        parts |= {name: pipeline.config[name] for name in optional if name in pipeline.config}
        made = cls(**{**parts, **components})
        for name in ("_source", "_folder", "_defaults", "_progress_bar_config"):
            if hasattr(pipeline, name):
                setattr(made, name, getattr(pipeline, name))
        return made if dtype is None else made.to(dtype=dtype)

    def save_pretrained(self, save_directory: str | PathLike, *args: Any, **kwargs: Any) -> None:
        """diffusers' folder, and what came with the model: `altclip/`, card, covered emoji, manifest."""
        with checkpoints.quiet():
            super().save_pretrained(save_directory, *args, **kwargs)
        folder = Path(save_directory)
        checkpoints.forget_paths(folder)
        if self._folder is not None and self._folder.resolve() != folder.resolve():
            for source in self._folder.iterdir():
                if source.name == "altclip":
                    shutil.copytree(source, folder / source.name, dirs_exist_ok=True)
                elif source.name in ("README.md", bundled.CARD) or source.name.startswith("LICENSE"):
                    shutil.copyfile(source, folder / source.name)
        if not (folder / "README.md").exists():
            (folder / "README.md").write_text(_CARD, encoding="utf-8")
        bundled.write_manifest(folder)

    @property
    def source(self) -> str | PathLike | None:
        """What `from_pretrained` was given: None for the bundled model."""
        return self._source

    @property
    def altclip_folder(self) -> Path | None:
        """Where the model's AltCLIP lies, for `AltCLIP.from_pretrained`."""
        folder = self._folder and self._folder / "altclip"
        return folder if folder and folder.is_dir() else None

    @property
    def generation_defaults(self) -> GenerationDefaults:
        """The model's own, or Stable Diffusion's at the size that the UNet was trained for."""
        if self._defaults is not None:
            return self._defaults
        size = self.unet.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        scale = self.vae_scale_factor
        return GenerationDefaults(50, 7.5, width * scale, height * scale)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of weights, vocabulary and noise schedule: the same for every copy of a model."""
        models = [self.unet, self.vae, *([self.text_encoder] if self.text_encoder else [])]
        stamps = [checkpoints.stamp(model) for model in models]
        if self._fingerprint is None or self._fingerprint[0] != stamps:
            vocabulary = self.tokenizer.backend_tokenizer.to_str() if self.tokenizer else ""
            schedule = repr(sorted((k, v) for k, v in self.scheduler.config.items() if not k.startswith("_")))
            self._fingerprint = stamps, checkpoints.fingerprint(models, [vocabulary, schedule])
        return self._fingerprint[1]

    def encode_prompt(
        self,
        prompt: Any,
        device: Any,
        num_images_per_prompt: int,
        do_classifier_free_guidance: bool,
        negative_prompt: Any = None,
        prompt_embeds: Float[Tensor, "batch tokens dim"] | None = None,
        negative_prompt_embeds: Float[Tensor, "batch tokens dim"] | None = None,
        lora_scale: float | None = None,
        clip_skip: int | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """As the stock method, with the exact trimmed encode.

        `clip_skip` holds for both prompts, as if the tower had been built without those layers.
        """
        with _scaled_lora(self.text_encoder, lora_scale):
            if prompt_embeds is None:
                prompt_embeds = self._embed("prompt", prompt, self._length, clip_skip)
            if do_classifier_free_guidance and negative_prompt_embeds is None:
                texts = _negatives(prompt, negative_prompt, len(prompt_embeds))
                length = prompt_embeds.shape[1]
                negative_prompt_embeds = self._embed("negative_prompt", texts, length, clip_skip)
        return super().encode_prompt(
            prompt,
            device,
            num_images_per_prompt,
            do_classifier_free_guidance,
            negative_prompt,
            prompt_embeds,
            negative_prompt_embeds,
            lora_scale,
            clip_skip,
        )

    @property
    def _length(self) -> int:
        length = self.tokenizer.model_max_length  # diffusers' rule; a tokenizer that sets no limit says 1e30
        return length if length <= tower_length(self.text_encoder) else MAX_LENGTH

    def _embed(
        self, argument: str, prompts: Any, length: int, clip_skip: int | None
    ) -> Float[Tensor, "batch tokens dim"]:
        texts = self.maybe_convert_prompt(as_texts(prompts, argument), self.tokenizer)
        for text in dict.fromkeys(texts):
            lost = dropped(self.tokenizer, text, min(length, tower_length(self.text_encoder)))
            if lost is not None:
                message = f"{argument}: too long by {lost.tokens} tokens, left out: {lost.text!r:.300}"
                warnings.warn(message, stacklevel=4)
        return encode_prompts(
            self.text_encoder, self.tokenizer, texts, max_length=length, clip_skip=clip_skip
        )


class AltDiffusionPipeline(_Conditioned, StableDiffusionPipeline):
    """Text to image; called as `diffusers.StableDiffusionPipeline` is."""

    def to_image_to_image(self) -> "AltDiffusionImg2ImgPipeline":
        """Image to image with the same parts, shared."""
        return AltDiffusionImg2ImgPipeline.from_pipe(self)


class AltDiffusionImg2ImgPipeline(_Conditioned, StableDiffusionImg2ImgPipeline):
    """Image to image; called as `diffusers.StableDiffusionImg2ImgPipeline` is."""

    def to_image_to_image(self) -> "AltDiffusionImg2ImgPipeline":
        return self

    def to_text_to_image(self) -> AltDiffusionPipeline:
        """Text to image with the same parts, shared."""
        return AltDiffusionPipeline.from_pipe(self)


AltDiffusionPipeline.__name__ = StableDiffusionPipeline.__name__
AltDiffusionImg2ImgPipeline.__name__ = StableDiffusionImg2ImgPipeline.__name__


def _load_parts(
    folder: Path, components: dict[str, Any], dtype: torch.dtype, variant: str | None
) -> dict[str, Any]:
    """Every part with weights, read strictly, except those that the caller brought; and the tokenizer."""
    classes = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": AltCLIPTextModel}
    classes |= {name: kind for name, kind in _OPTIONAL_MODELS.items() if (folder / name).is_dir()}
    parts = dict(components)
    for name, kind in classes.items():
        if name not in parts:
            parts[name] = checkpoints.load_strict(kind, folder / name, dtype=dtype, variant=variant)
    tower, unet = parts["text_encoder"], parts["unet"]
    if "tokenizer" not in parts:
        max_ids = tower.config.vocab_size if tower is not None else None
        parts["tokenizer"] = checkpoints.load_tokenizer(folder / "tokenizer", max_ids)
    if tower is not None and unet.config.cross_attention_dim != tower.config.project_dim:
        raise ValueError(
            f"model: {str(folder)!r:.80}: its text encoder gives {tower.config.project_dim} values a token; "
            f"allowed by its UNet: {unet.config.cross_attention_dim}"
        )
    return parts


def _read_defaults(folder: Path) -> GenerationDefaults | None:
    file = folder / bundled.CARD
    if not file.is_file():
        return None
    try:
        return GenerationDefaults(**bundled.card(folder)["defaults"])
    except (KeyError, TypeError):
        raise ValueError(f"model: {str(file)!r:.80} is damaged: its defaults are none") from None


def _negatives(prompt: Any, negative_prompt: Any, count: int) -> list[str]:
    if negative_prompt is None:
        return [""] * count
    if isinstance(negative_prompt, str):
        if isinstance(prompt, list | tuple):
            raise TypeError(
                f"negative_prompt: {negative_prompt!r:.80} is one text; allowed: a list, as prompt is"
            )
        return [negative_prompt] * count
    if len(negative_prompt) != count:
        raise ValueError(f"negative_prompt: {len(negative_prompt)} texts; allowed: {count}, as of prompt")
    return list(negative_prompt)


@contextmanager
def _scaled_lora(text_encoder: AltCLIPTextModel | None, scale: float | None) -> Iterator[None]:
    from diffusers.utils.peft_utils import scale_lora_layers, unscale_lora_layers

    if scale is None or text_encoder is None:
        yield
        return
    scale_lora_layers(text_encoder, scale)
    try:
        yield
    finally:
        unscale_lora_layers(text_encoder, scale)
