"""From a request to pictures: the one way there, for Python, the command line and the app.

A diffusers pipeline gives wrong pictures, without an error, when two threads use it at once: its scheduler
keeps the state of the loop, and fast tokenizers share their padding settings. So one lock is held per model,
and each request runs on a shallow copy of the pipeline with a scheduler of its own.
"""

import copy
import hashlib
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from PIL import Image, ImageOps

from altdiffusion import __version__
from altdiffusion.images import open_image
from altdiffusion.requests import MAX_SEED, SCHEDULERS, BadRequest, GenerateRequest, Provenance

#: What a scheduler needs besides its class to be what its name says.
_SCHEDULER_OPTIONS: dict[str, dict[str, Any]] = {
    "dpm++": {"algorithm_type": "dpmsolver++"},
    "dpm++-sde": {"algorithm_type": "sde-dpmsolver++"},
    "pndm": {"skip_prk_steps": True},  # as Stable Diffusion does; the Runge-Kutta steps need a dozen more
}
_BATCH_PIXELS = 2**21  # of one call on an accelerator: eight pictures of 512 x 512
_locks: "weakref.WeakKeyDictionary[Any, threading.Lock]" = weakref.WeakKeyDictionary()
_locks_guard = threading.Lock()


@dataclass(frozen=True)
class Picture:
    """A picture and how it was made; `flagged` where the model brings a safety checker and it objects."""

    image: Image.Image
    provenance: Provenance
    flagged: bool = False


def generate(
    pipeline: Any,
    request: GenerateRequest,
    on_step: Callable[[int, int], None] | None = None,
    *,
    batch_size: int | None = None,
) -> list[Picture]:
    """Draws `request.count` pictures, number i from the seed `seed + i`, so that each can be repeated alone.

    Noise comes from the CPU's generator on every device. On the CPU pictures are drawn one at a time, so that
    one drawn again has the same bytes; larger batches, usual on an accelerator, differ by less than 1e-4.
    `on_step(done, of)` is called after every step; what it raises ends the drawing and is passed on.
    """
    request = complete(request, pipeline.generation_defaults)
    start = open_image(request.image) if request.image else None
    with _lock(pipeline):
        runner = _runner(pipeline, request)
        most = batch_size or _batch_size(runner, request)
        seeds = [(request.seed + i) % (MAX_SEED + 1) for i in range(request.count)]
        batches = [seeds[at : at + most] for at in range(0, len(seeds), most)]
        arguments = _arguments(request, start)
        pictures = []
        for number, batch in enumerate(batches):
            step = on_step and _step_callback(on_step, number, len(batches))
            arrays, flags = _draw(runner, request, arguments, batch, step)
            pictures += zip(arrays, batch, flags, strict=True)
    made = _provenance(pipeline, request)
    return [
        Picture(Image.fromarray((array * 255).round().astype(np.uint8)), made(seed), flag)
        for array, seed, flag in pictures
    ]


def complete(request: GenerateRequest, defaults: Any) -> GenerateRequest:
    """The request with the model's defaults for what it leaves open, and with its seed drawn."""
    names = ("steps", "guidance_scale", "width", "height", "scheduler")
    open_fields = {name: getattr(defaults, name) for name in names if getattr(request, name) is None}
    request = request.model_copy(update=open_fields).with_seed()
    assert request.steps is not None
    if request.image and int(request.steps * request.strength) < 1:
        raise BadRequest(
            f"strength: {request.strength} of {request.steps} steps leaves none to draw; "
            f"allowed at least {1 / request.steps:.3g}, or more steps"
        )
    return request


def _lock(pipeline: Any) -> threading.Lock:
    """One for all pipelines that share a text encoder, as text-to-image and image-to-image do."""
    with _locks_guard:
        return _locks.setdefault(pipeline.text_encoder, threading.Lock())


def _runner(pipeline: Any, request: GenerateRequest) -> Any:
    runner = copy.copy(pipeline.to_image_to_image() if request.image else pipeline)
    name = request.scheduler
    scheduler_class = getattr(diffusers, SCHEDULERS[name]) if name else type(pipeline.scheduler)
    options = _SCHEDULER_OPTIONS.get(name or "", {})
    runner.scheduler = scheduler_class.from_config(pipeline.scheduler.config, **options)
    runner.set_progress_bar_config(disable=True)
    return runner


def _batch_size(runner: Any, request: GenerateRequest) -> int:
    if runner.device.type == "cpu":
        return 1
    width, height = _size(request)
    return max(1, _BATCH_PIXELS // (width * height))


def _size(request: GenerateRequest) -> tuple[int, int]:
    assert request.width is not None and request.height is not None
    return request.width, request.height


def _arguments(request: GenerateRequest, start: Image.Image | None) -> dict[str, Any]:
    arguments = {
        "num_inference_steps": request.steps,
        "guidance_scale": request.guidance_scale,
        "output_type": "np",
    }
    width, height = _size(request)
    if start is None:
        return arguments | {"width": width, "height": height}
    fitted = ImageOps.fit(start, (width, height), Image.Resampling.LANCZOS)
    return arguments | {"image": fitted, "strength": request.strength}


def _step_callback(on_step: Callable[[int, int], None], batch: int, batches: int) -> Callable[..., dict]:
    def after_step(runner: Any, step: int, timestep: Any, tensors: dict) -> dict:
        on_step(batch * runner.num_timesteps + step + 1, batches * runner.num_timesteps)
        return tensors

    return after_step


def _draw(
    runner: Any,
    request: GenerateRequest,
    arguments: dict[str, Any],
    seeds: list[int],
    after_step: Callable[..., dict] | None,
) -> tuple[np.ndarray, list[bool]]:
    try:
        output = runner(
            prompt=[request.prompt] * len(seeds),
            negative_prompt=[request.negative_prompt] * len(seeds),
            generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
            callback_on_step_end=after_step,
            **arguments,
        )
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error):
            size = f"{request.width}x{request.height}"
            raise BadRequest(
                f"size: {size} does not fit into the memory of {runner.device}; lower size"
            ) from error
        raise
    if not np.isfinite(output.images).all():
        raise BadRequest(
            f"guidance_scale: {request.guidance_scale:g} with {request.scheduler or 'this scheduler'} in "
            f"{str(runner.unet.dtype).removeprefix('torch.')} gave values that are no colours; lower "
            "guidance_scale, take another scheduler or float32"
        )
    return output.images, [bool(flag) for flag in output.nsfw_content_detected or [False] * len(seeds)]


def _provenance(pipeline: Any, request: GenerateRequest) -> Callable[[int], Provenance]:
    """What all pictures of a request share, waiting for the seed."""
    classes = {name: kind for kind, name in reversed(SCHEDULERS.items())}
    names = ("prompt", "negative_prompt", "steps", "guidance_scale", "width", "height", "language")
    shared = {name: getattr(request, name) for name in names}
    if request.image:
        shared["strength"] = request.strength
        shared["image"] = hashlib.sha256(Path(request.image).read_bytes()).hexdigest()
    kind = type(pipeline.scheduler).__name__
    return lambda seed: Provenance(
        **shared,
        seed=seed,
        scheduler=request.scheduler or classes.get(kind, kind),
        model=model_name(pipeline.source),
        fingerprint=pipeline.fingerprint,
        versions={
            "altdiffusion": __version__,
            **{package.__name__: str(package.__version__) for package in (torch, diffusers, transformers)},
        },
    )


def model_name(source: Any) -> str:
    """`bundled`, a hub name, or the last part of a folder's path: pictures tell no more of a disk."""
    if source is None:
        return "bundled"
    return Path(source).resolve().name if Path(source).is_dir() else str(source)
