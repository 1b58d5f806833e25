"""What the call of a pipeline is refused for, before the model works.

The stock pipelines draw a picture for -1 steps, an unguided one for a guidance of nan, one of another size
for latents that do not fit, and take no notice of `widht=64`. Here each refusal is one line that starts with
the argument's name, as in `requests`; what is given is otherwise theirs to understand.
"""

import inspect
import numbers
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from PIL import Image
from torch import Tensor

from altdiffusion.conditioning import as_texts
from altdiffusion.presets import Preset
from altdiffusion.prompting import negatives
from altdiffusion.requests import BadRequest, shorten, unknown_argument
from altdiffusion.schedulers import scheduler_name

_MAX_SIDE = 8192
_KINDS = ("pil", "np", "pt", "latent")
_PICTURES = "PIL pictures (open files with altdiffusion.images.open_image), arrays or tensors"


@dataclass(frozen=True)
class _Bounds:
    """Numbers from `low` to `high`; `none` and `several` say whether None and lists are numbers too."""

    low: float | int
    high: float | int
    multiple: int = 0  # 0: any number, else a whole one
    none: bool = False
    several: bool = False

    def allow(self, value: Any) -> bool:
        if value is None:
            return self.none
        if self.several and isinstance(value, list | tuple):
            return bool(value) and all(self.allow(one) for one in value)
        kind = numbers.Integral if self.multiple else numbers.Real
        if not isinstance(value, kind) or isinstance(value, bool | np.bool_):
            return False
        number: Any = value
        return bool(self.low <= number <= self.high) and not (self.multiple and number % self.multiple)

    def __str__(self) -> str:
        kind = {0: "a number", 1: "a whole number"}.get(self.multiple, f"a multiple of {self.multiple}")
        return f"{kind} from {self.low:g} to {self.high:g}"


_BOUNDS = {
    "height": _Bounds(8, _MAX_SIDE, multiple=8, none=True),
    "width": _Bounds(8, _MAX_SIDE, multiple=8, none=True),
    "num_images_per_prompt": _Bounds(1, 1000, multiple=1),
    "padding_mask_crop": _Bounds(0, _MAX_SIDE, multiple=1, none=True),
    "callback_steps": _Bounds(1, 1000, multiple=1, none=True),
    "guidance_scale": _Bounds(0, 100),
    "pag_scale": _Bounds(0, 100),
    "pag_adaptive_scale": _Bounds(0, 100),
    "guidance_rescale": _Bounds(0, 1),
    "strength": _Bounds(0, 1),
    "eta": _Bounds(0, 1),
    "controlnet_conditioning_scale": _Bounds(-100, 100, several=True),
    "control_guidance_start": _Bounds(0, 1, several=True),
    "control_guidance_end": _Bounds(0, 1, several=True),
    "timesteps": _Bounds(0, 1e6, none=True, several=True),
    "sigmas": _Bounds(0, 1e6, none=True, several=True),
}


def by_name(
    signature: inspect.Signature, arguments: Sequence[Any], named: Mapping[str, Any]
) -> dict[str, Any]:
    """The arguments of a call by their names, which the signature all has."""
    parameters = signature.parameters.values()
    names = [parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD]
    if len(arguments) > len(names):
        raise TypeError(f"prompt: {len(arguments)} arguments by place; allowed at most {len(names)}")
    given = dict(zip(names, arguments, strict=False))
    late = ["callback", "callback_steps"] if len(names) < len(parameters) else []  # deprecated, still taken
    for name in named:
        if name in given:
            raise TypeError(f"{name}: given by place and by name; allowed once")
        if name not in names and name not in late:
            raise TypeError(unknown_argument(name, names))
    return given | dict(named)


def by_preset(preset: Preset, own: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """What is given, and for what it leaves open the model's own guidance and the preset's steps."""
    brought = {"guidance_scale": own.guidance_scale}
    if given.get("timesteps") is None and given.get("sigmas") is None:
        brought["num_inference_steps"] = preset.steps or own.steps
    return {**brought, **given}


def checked(pipeline: Any, signature: inspect.Signature, given: dict[str, Any]) -> dict[str, Any]:
    """A call's arguments, as `by_name` gives them, as they are handed on; none of them nonsense."""
    full = {n: p.default for n, p in signature.parameters.items() if p.kind is not p.VAR_KEYWORD} | given
    for name, bounds in _bounds_of(pipeline, full).items():
        if name in full and not bounds.allow(full[name]):
            raise BadRequest(f"{name}: {shorten(full[name])}; allowed {bounds}")
    if full["output_type"] not in _KINDS:
        raise BadRequest(f"output_type: {shorten(full['output_type'])}; allowed {', '.join(_KINDS)}")
    _check_schedule(pipeline, full)
    for name in ("image", "mask_image", "control_image"):
        if name in full:
            _check_pictures(name, full[name])
    batch = _check_words(pipeline, full)
    rows = batch * full["num_images_per_prompt"]
    _check_generators(full["generator"], rows)
    sides = _sides(pipeline, full)
    if full.get("latents") is not None:
        channels = pipeline.vae.config.latent_channels
        scaled = [side and int(side) // pipeline.vae_scale_factor for side in sides]
        _check_tensor("latents", full["latents"], (rows, channels, *scaled))
    changed = {name: value.item() for name, value in given.items() if isinstance(value, np.generic)}
    if None not in sides:  # with one of them missing, the stock pipelines forget the other
        changed |= dict(zip(("height", "width"), sides, strict=True))
    if isinstance(full["prompt"], tuple):
        changed["prompt"] = list(full["prompt"])
    if (callback := _callback(pipeline, full)) is not None:
        changed["callback_on_step_end"] = callback
    return given | changed


def no_colours(pipeline: Any) -> BadRequest:
    """For a picture, or latents, with values that are infinite or none."""
    return BadRequest(
        f"guidance_scale: {pipeline.guidance_scale:g} with {scheduler_name(pipeline.scheduler)} in "
        f"{str(pipeline.unet.dtype).removeprefix('torch.')} gave values that are no colours; allowed a lower "
        "one, another scheduler, or float32"
    )


def _bounds_of(pipeline: Any, full: Mapping[str, Any]) -> dict[str, _Bounds]:
    """Those that depend on the model as well."""
    steps = pipeline.scheduler.config.get("num_train_timesteps", 1000)
    own = full.get("timesteps") is not None or full.get("sigmas") is not None
    tower = pipeline.text_encoder
    layers = 1 if tower is None else tower.config.num_hidden_layers
    return _BOUNDS | {
        "num_inference_steps": _Bounds(1, steps, multiple=1, none=own),
        "clip_skip": _Bounds(0, layers - 1, multiple=1, none=True),
    }


def _check_schedule(pipeline: Any, full: Mapping[str, Any]) -> None:
    own = [name for name in ("timesteps", "sigmas") if full.get(name) is not None]
    if len(own) == 2:
        raise BadRequest("timesteps: given beside sigmas; allowed one of them")
    for name in own:
        if not isinstance(full[name], list | tuple):
            raise BadRequest(f"{name}: {shorten(full[name])}; allowed a list of numbers")
        if name not in inspect.signature(pipeline.scheduler.set_timesteps).parameters:
            kind = type(pipeline.scheduler).__name__
            raise BadRequest(
                f"{name}: {shorten(full[name])}; allowed with a scheduler that takes it, not {kind}"
            )
    steps, strength = len(full[own[0]]) if own else full["num_inference_steps"], full.get("strength", 1)
    if int(steps * strength) < 1:
        raise BadRequest(
            f"strength: {strength} of {steps} steps leaves none to draw; allowed at least {1 / steps:.3g}"
        )


def _check_pictures(name: str, value: Any) -> None:
    several = list(value) if isinstance(value, list | tuple) else [value]
    if not several:
        raise BadRequest(f"{name}: an empty list; allowed {_PICTURES}")
    for one in several:
        if not isinstance(one, Image.Image | np.ndarray | Tensor | list | tuple):
            raise BadRequest(f"{name}: {shorten(one)} is {type(one).__name__}; allowed {_PICTURES}")
        values = one.numpy(force=True) if isinstance(one, Tensor) else one
        if isinstance(values, np.ndarray) and not np.isfinite(values).all():
            raise BadRequest(f"{name}: an array with infinite or NaN values; allowed {_PICTURES}")


def _check_words(pipeline: Any, full: Mapping[str, Any]) -> int:
    """How many prompts there are, after all that says what is to be drawn was looked at."""
    embeds = {name: full[name] for name in ("prompt_embeds", "negative_prompt_embeds")}
    for name, tensor in embeds.items():
        text = name.removesuffix("_embeds")
        if tensor is not None and full[text] is not None:
            raise BadRequest(f"{text}: {shorten(full[text])} is given beside {name}; allowed one of them")
    if embeds["prompt_embeds"] is None:
        batch = len(as_texts(full["prompt"], "prompt"))
        shape: tuple[int | None, ...] = (batch, None, _width(pipeline))
    else:
        _check_tensor("prompt_embeds", embeds["prompt_embeds"], (None, None, _width(pipeline)))
        shape = tuple(embeds["prompt_embeds"].shape)
        batch = len(embeds["prompt_embeds"])
    if embeds["negative_prompt_embeds"] is not None:
        _check_tensor("negative_prompt_embeds", embeds["negative_prompt_embeds"], shape)
    elif full["negative_prompt"] is not None:
        negatives(full["prompt"], full["negative_prompt"], batch)
    return batch


def _width(pipeline: Any) -> int:
    width = pipeline.unet.config.cross_attention_dim
    return width if isinstance(width, int) else width[0]


def _check_generators(value: Any, rows: int) -> None:
    several = value if isinstance(value, list) else [value] * rows
    if value is not None and not all(isinstance(one, torch.Generator) for one in several):
        raise BadRequest(f"generator: {shorten(value)}; allowed a torch.Generator, or a list of them")
    if len(several) != rows:
        raise BadRequest(f"generator: {len(several)} of them; allowed one, or {rows}: one for each picture")


def _check_tensor(name: str, value: Any, shape: Sequence[int | None]) -> None:
    """Finite numbers of this shape; None stands for any length."""
    allowed = f"finite numbers of shape ({', '.join('any' if n is None else str(n) for n in shape)})"
    if not isinstance(value, Tensor):
        raise BadRequest(f"{name}: {shorten(value)} is {type(value).__name__}; allowed a tensor, {allowed}")
    same = value.ndim == len(shape) and all(n in (None, m) for n, m in zip(shape, value.shape, strict=True))
    if not same or not value.numel():
        raise BadRequest(f"{name}: a tensor of shape {tuple(value.shape)}; allowed {allowed}")
    if not value.is_floating_point() or not value.isfinite().all():
        raise BadRequest(f"{name}: a tensor of whole, infinite or NaN values; allowed {allowed}")


def _sides(pipeline: Any, full: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """Height and width; a missing one is the model's own, unless a picture says it."""
    sides = full.get("height"), full.get("width")
    if "height" not in full or "image" in full:
        return sides
    size = pipeline.unet.config.sample_size
    own = [side * pipeline.vae_scale_factor for side in ((size, size) if isinstance(size, int) else size)]
    height, width = (side if given is None else int(given) for given, side in zip(sides, own, strict=True))
    return height, width


def _callback(pipeline: Any, full: Mapping[str, Any]) -> Callable[..., dict] | None:
    """The plain function of `callback_on_step_end`, what it gives back looked at."""
    own, names = full["callback_on_step_end"], full["callback_on_step_end_tensor_inputs"]
    known = pipeline._callback_tensor_inputs
    if not isinstance(names, list | tuple) or not all(name in known for name in names):
        raise BadRequest(
            f"callback_on_step_end_tensor_inputs: {shorten(names)}; allowed a list of {', '.join(known)}"
        )
    for name in ("callback_on_step_end", "callback"):
        if full.get(name) is not None and not callable(full[name]):
            raise BadRequest(f"{name}: {shorten(full[name])} cannot be called; allowed a function")
    if own is None or isinstance(own, PipelineCallback | MultiPipelineCallbacks):
        return None

    def looked_at(pipeline: Any, step: int, timestep: Any, tensors: dict) -> dict:
        before = tensors.get("latents")
        after = own(pipeline, step, timestep, tensors)
        if not isinstance(after, dict):
            raise BadRequest(
                f"callback_on_step_end: it returned {shorten(after)}; allowed a dict of tensors, may be empty"
            )
        latents = after.get("latents")
        if latents is not None and latents is not before:
            _check_tensor("callback_on_step_end", latents, [None] * 4 if before is None else before.shape)
        return after

    return looked_at
