"""AltDiffusion's pipelines: the stock Stable Diffusion pipelines with exact, trimmed conditioning.

Only what becomes of prompts is ours (`prompting`). The classes carry the stock names, which is how
AutoPipeline finds its way between tasks and why what they save opens with plain diffusers.
"""

import inspect
import shutil
import warnings
from contextlib import nullcontext
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from diffusers import DiffusionPipeline, StableDiffusionImg2ImgPipeline, StableDiffusionPipeline

from altdiffusion import (
    attention,
    backbone,
    bundled,
    calling,
    cards,
    checkpoints,
    openvino_parts,
    text_adapter,
)
from altdiffusion.checkpoints import ADAPTER
from altdiffusion.keys import has_keys, keys_once
from altdiffusion.layouts import Layout
from altdiffusion.memory import decode_without_overflow
from altdiffusion.model import AltCLIP
from altdiffusion.openvino_cache import choose_runtime
from altdiffusion.presets import PRESETS
from altdiffusion.prompting import Prompting, lock_of
from altdiffusion.requests import Addition, BadRequest, one_of, shorten
from altdiffusion.runtime import choose_attention, choose_device, choose_dtype
from altdiffusion.schedulers import scheduler_like
from altdiffusion.shortcuts import shortened

_CARD = """---
library_name: diffusers
pipeline_tag: text-to-image
---

# AltDiffusion

Draws from prompts in many languages. Opens with `altdiffusion.AltDiffusionPipeline.from_pretrained` and
with plain `diffusers.DiffusionPipeline.from_pretrained`.
"""
_Pipeline = TypeVar("_Pipeline", bound="_Conditioned")  # beartype takes no Self in what jaxtyping wraps


@dataclass(frozen=True)
class GenerationDefaults:
    """What a model draws with when the request leaves it open; scheduler None is the model's own."""

    steps: int
    guidance_scale: float
    width: int
    height: int
    scheduler: str | None = None


class _Conditioned(Prompting):
    """What the pipelines here put before their stock class."""

    _source: str | PathLike | None = "unsaved"
    _folder: Path | None = None
    _defaults: GenerationDefaults | None = None
    _fingerprint: tuple[object, str] | None = None
    _found: Layout | None = None
    _altclip: "AltCLIP | None" = None
    _card: str = _CARD
    #: LoRA and learned words that `altdiffusion.additions` laid over the model, for its pictures to tell.
    additions: tuple[tuple[Addition, ...], tuple[Addition, ...]] = ((), ())
    #: Whether cross-attention leaves out the padding of prompts (`altdiffusion.keys`): unasked, on a CPU.
    compact_keys: bool | None = None
    #: What may run the models.
    _runtimes: tuple[str, ...] = ("torch", "openvino")
    #: What the UNet may take: so many latents, and a mask.
    _conditions: tuple[tuple[int, int], ...] = ((1, 0),)

    def register_modules(self, **parts: Any) -> None:
        tower, unet, vae = (parts.get(name) for name in ("text_encoder", "unet", "vae"))
        if tower is not None:
            # unmasked pads count as words, and plain diffusers masks them only if the saved config says so
            tower.config.use_attention_mask = True
        if unet is not None and vae is not None:
            latent = vae.config.latent_channels
            allowed = [latent * times + mask for times, mask in self._conditions]
            if unet.config.in_channels not in allowed:
                channels, task = unet.config.in_channels, type(self).__qualname__
                text = " or ".join(map(str, allowed))
                raise ValueError(f"unet: it takes {channels} channels; allowed in {task}: {text}")
        super().register_modules(**parts)

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
        ema: bool | None = None,
        runtime: str = "torch",
        **components: Any,
    ) -> _Pipeline:
        """The bundled model, a folder, a file or a Hub name, in any published layout (docs/weights.md).

        `components` (`vae=…`) replace the model's own; `tokenizer` may be the folder of one. `ema` chooses
        the averaged weights of a training checkpoint, or the raw ones. `runtime="openvino"` runs the models
        by OpenVINO on the CPU, converted at the first use (docs/openvino.md).
        """
        make = choose_runtime(runtime, device, cls._runtimes)
        device = choose_device("cpu" if make else device)
        dtype = choose_dtype(device, dtype or torch_dtype)
        backend, _ = choose_attention(attention, device)
        known = set().union(*cls._get_signature_keys(cls))
        unknown = sorted(components.keys() - known)
        if unknown:
            allowed = ", ".join(sorted(known))
            raise TypeError(f"{unknown[0]}: not an argument of from_pretrained; allowed parts: {allowed}")
        found = checkpoints.find(name_or_folder, revision=revision, variant=variant)
        components |= cls._own_parts(found.path, components, dtype, variant)
        options = {"dtype": dtype, "variant": variant, "ema": ema, "make": make}
        with bundled.compared(found.path):
            parts = checkpoints.load_parts(found, components, **options)
        pipeline: _Pipeline
        stock = found.format == "stock pipeline"
        if stock and not make:
            with checkpoints.quiet():
                pipeline = super().from_pretrained(
                    str(found.path), dtype=dtype, local_files_only=True, **parts
                )
            if "text_encoder" not in components and checkpoints.adapter_config(found.path / ADAPTER):
                text_adapter.attach(pipeline.text_encoder, text_adapter.load(found.path, dtype=dtype))
        else:
            pipeline = cls(**parts)
            name = cards.name_of(found.path if name_or_folder is None else name_or_folder)
            pipeline._card = cards.card(found.form, name, draws=True, changes=cards.SAVED)
        if stock:
            pipeline._folder, pipeline._defaults = found.path, _read_defaults(found.path)
        pipeline._source, pipeline._found = name_or_folder, found
        pipeline = pipeline.to(device)
        if dtype == torch.float16:
            decode_without_overflow(pipeline.vae)
        if make:
            _forget_weights(pipeline)
        if backend == "xformers":
            pipeline.enable_xformers_memory_efficient_attention()
        return pipeline

    @classmethod
    def _own_parts(
        cls, folder: Path, given: dict[str, Any], dtype: torch.dtype, variant: str | None
    ) -> dict[str, Any]:
        """Parts that only this task has: of the folder, or made of those that are given."""
        return {}

    @classmethod
    def from_altclip(
        cls: type[_Pipeline],
        clip: AltCLIP,
        stable_diffusion: DiffusionPipeline | str | PathLike,
        *,
        form: str | None = None,
        revision: str | None = None,
        variant: str | None = None,
        prediction_type: str | None = None,
        adapter: text_adapter.TextAdapter | str | PathLike | None = None,
    ) -> _Pipeline:
        """Draws with the UNet and VAE of `stable_diffusion`, on `clip`'s own parameters, device and dtype.

        `stable_diffusion` is a pipeline, whose parts are shared, or a folder, a file or a Hub name: of
        AltDiffusion, or of any Stable Diffusion 1 or 2 as wide as the AltCLIP, to be aligned by training.
        `form` overrules how the AltCLIP makes its conditioning ("m9", "m18" or "own"). `prediction_type` is
        for a single file that does not tell. `adapter`, or its folder, goes between the tower and a UNet that
        was not trained for it, which may then be of another width.
        """
        arguments = {
            "adapter": adapter,
            "form": form,
            "revision": revision,
            "variant": variant,
            "prediction_type": prediction_type,
        }
        pipeline = cls(**backbone.pipeline_parts(clip, stable_diffusion, **arguments))
        pipeline._altclip = clip
        if clip.form != "own":
            named = isinstance(stable_diffusion, str | PathLike)
            partner = cards.name_of(stable_diffusion) if named else "a Stable Diffusion"
            text_config = clip.model.config.text_config.to_dict()
            options = {"draws": True, "text_config": text_config, "changes": cards.SAVED}
            pipeline._card = cards.card(clip.form, "its parts", **options, partner=partner)
        return pipeline.to(clip.device)

    @classmethod
    def from_pipe(
        cls: type[_Pipeline], pipeline: Any, *, dtype: torch.dtype | None = None, **components: Any
    ) -> _Pipeline:
        """This task with another pipeline's parts, shared and not cast (the stock method casts them)."""
        expected, optional = cls._get_signature_keys(cls)
        parts = {name: part for name, part in pipeline.components.items() if name in expected}
        parts |= {name: pipeline.config[name] for name in optional if name in pipeline.config}
        made = cls(**{**parts, **components})
        kept = ("_source", "_folder", "_defaults", "_found", "_altclip", "_card", "additions")
        for name in (*kept, "compact_keys", "_progress_bar_config"):
            if hasattr(pipeline, name):
                setattr(made, name, getattr(pipeline, name))
        return made if dtype is None else made.to(dtype=dtype)

    def save_pretrained(self, save_directory: str | PathLike, *args: Any, **kwargs: Any) -> None:
        """diffusers' folder, and what came with the model: `altclip/`, `adapter/`, card, emoji, manifest."""
        if self.runtime == "openvino":
            raise openvino_parts.refuse("saving")
        folder = Path(save_directory)
        if kwargs.get("push_to_hub"):
            kwargs.setdefault("repo_id", folder.name)  # of the place aside it would be a name of its own
        with checkpoints.saving(folder) as place:
            with text_adapter.aside(self.text_encoder) as adapter:
                super().save_pretrained(place, *args, **kwargs)
            if adapter is not None:
                adapter.save_pretrained(place / ADAPTER)
            self._save_what_came_with_it(place, folder)
        if adapter is None:
            text_adapter.remove(folder)

    def _save_what_came_with_it(self, place: Path, folder: Path) -> None:
        """A README.md or LICENSE that lies in `folder` is someone's own, and stays."""
        if self._folder is not None and self._folder.resolve() != folder.resolve():
            for source in self._folder.iterdir():
                if source.name == "altclip":
                    shutil.copytree(source, place / source.name)
                elif source.name == bundled.CARD or (
                    (source.name == "README.md" or source.name.startswith("LICENSE"))
                    and not (folder / source.name).exists()
                ):
                    shutil.copyfile(source, place / source.name)
        if self._altclip is not None:
            self._altclip.save_pretrained(place / "altclip")
        if not (place / "README.md").exists() and not (folder / "README.md").exists():
            (place / "README.md").write_text(self._card, encoding="utf-8")

    def __call__(self, *arguments: Any, preset: str | None = None, **named: Any) -> Any:
        """As the stock pipeline, which see; `preset` is one of `altdiffusion.presets.PRESETS`.

        A preset brings scheduler, steps and what the last steps leave out; with it guidance and steps that
        are not given are the model's own rather than diffusers' 7.5 and 50. Arguments given come first.
        Threads may share a pipeline: they draw one after the other.
        """
        signature = inspect.signature(super().__call__)
        given = calling.by_name(signature, arguments, named)
        if preset is not None:
            preset = one_of("preset", PRESETS, preset)
            given = calling.by_preset(PRESETS[preset], self.generation_defaults, given)
        given = calling.checked(self, signature, given)
        once = self.compact_keys
        if once is None:
            once = self._execution_device.type == "cpu"  # not where the weights lie: they may be offloaded
        with lock_of(self), keys_once(self.unet) if once and has_keys(self.unet) else nullcontext():
            drawn = super().__call__(**given) if preset is None else self._call_by_preset(preset, given)
        images = drawn[0]  # as latents nothing has looked at them
        if isinstance(images, torch.Tensor) and not images.isfinite().all():
            raise calling.no_colours(self)
        return drawn

    def run_safety_checker(self, image: Any, *rest: Any) -> tuple[Any, list[bool] | None]:
        """As the stock method, of what are colours."""
        finite = image.isfinite() if isinstance(image, torch.Tensor) else np.isfinite(image)
        if not finite.all():
            raise calling.no_colours(self)
        return super().run_safety_checker(image, *rest)

    def _call_by_preset(self, preset: str, given: dict[str, Any]) -> Any:
        chosen = PRESETS[preset]
        self.check_preset(preset)
        own = self.scheduler
        self.scheduler = scheduler_like(own, chosen.scheduler)
        try:
            with shortened(self, guided=chosen.guided, reuse=chosen.reuse):
                return super().__call__(**given)
        finally:
            self.scheduler = own

    def check_preset(self, name: str) -> None:
        """Refuses what this UNet cannot do, and says where a preset was chosen by another one."""
        if PRESETS[name].reuse > 1 and not hasattr(self.unet, "up_blocks"):
            able = ", ".join(other for other, preset in PRESETS.items() if preset.reuse == 1)
            raise BadRequest(f"preset: {name!r} needs a UNet that torch runs; allowed here {able}")
        if self.source is not None and PRESETS[name] != PRESETS["exact"]:
            warnings.warn(
                f"preset: {name!r} is chosen by the bundled model's pictures, and unproven with this model; "
                "'exact' is the model's own way",
                stacklevel=3,
            )

    def optimize(self, **options: Any) -> attention.Optimized:
        """Prepares it for many pictures of one size: `width`, `height`, `batch`, `fuse`, `compile`."""
        return attention.optimize(self, **options)

    @property
    def runtime(self) -> str:
        """What runs the models: "torch" or "openvino"."""
        return "openvino" if isinstance(self.unet, openvino_parts.Part) else "torch"

    @property
    def source(self) -> str | PathLike | None:
        """What `from_pretrained` was given: None for the bundled model."""
        return self._source

    @property
    def altclip(self) -> AltCLIP:
        """The AltCLIP that the model holds, on the same parameters as this pipeline's text encoder."""
        if self._altclip is None:
            place = self._found.path if self._found else None
            self._altclip = backbone.altclip_of(self.altclip_folder or place, self.text_encoder)
        return self._altclip

    @property
    def holds_altclip(self) -> bool:
        """Whether the model holds an AltCLIP, by its layout: nothing is read for it."""
        return self._altclip is not None or bool(self._found and self._found.vision)

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
            vocabulary = checkpoints.vocabulary(self.tokenizer) if self.tokenizer else ""
            schedule = repr(sorted((k, v) for k, v in self.scheduler.config.items() if not k.startswith("_")))
            self._fingerprint = stamps, checkpoints.fingerprint(models, [vocabulary, schedule])
        return self._fingerprint[1]


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


def _forget_weights(pipeline: Any) -> None:
    """The weights that were converted are needed once more, to say which they are."""
    assert pipeline.fingerprint
    for part in pipeline.components.values():
        if isinstance(part, openvino_parts.Part):
            part.weights.clear()


def _read_defaults(folder: Path) -> GenerationDefaults | None:
    file = folder / bundled.CARD
    if not file.is_file():
        return None
    try:
        return GenerationDefaults(**bundled.card(folder)["defaults"])
    except (KeyError, TypeError):
        raise ValueError(f"model: {shorten(str(file))} is damaged: its defaults are none") from None
