"""From a request to pictures: the one way there, for Python, the command line and the app.

A diffusers pipeline gives wrong pictures, without an error, when two threads use it at once: its scheduler
keeps the state of the loop, and fast tokenizers share their padding settings. So one lock is held per model
(`prompting.lock_of`), and each request runs on a shallow copy of the pipeline with a scheduler of its own.
"""

import copy
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import diffusers
import numpy as np
import torch
import transformers
from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor

from altdiffusion import __version__, cards, prompts
from altdiffusion.images import open_image, pixels_digest, upright_mask, upright_rgb
from altdiffusion.memory import fitted_decoding, let_go
from altdiffusion.presets import PRESETS
from altdiffusion.prompting import lock_of
from altdiffusion.requests import MAX_SEED, BadRequest, GenerateRequest, Provenance, shorten
from altdiffusion.room import is_exhausted
from altdiffusion.schedulers import expected_picture, scheduler_like, scheduler_name
from altdiffusion.shortcuts import shortened

if TYPE_CHECKING:
    Shown = Image.Image
else:  # checked here, where the message can say what to do
    Shown = Any

_BATCH_PIXELS = 2**21  # of one call on an accelerator: eight pictures of 512 x 512


@dataclass(frozen=True)
class Picture:
    """A picture and how it was made; `flagged` where the model brings a safety checker and it objects.

    `left_out` has a line for each prompt that was too long, on what was not drawn of it.
    """

    image: Image.Image
    provenance: Provenance
    flagged: bool = False
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class Order:
    """A request as a model is to draw it: checked, nothing left open, its pictures at hand. See `prepare`."""

    request: GenerateRequest
    start: Image.Image | None = None
    mask: Image.Image | None = None
    digests: tuple[str | None, str | None] = (None, None)

    @property
    def key(self) -> tuple:
        """Equal for orders that may be drawn in one batch."""
        asked = self.request
        kind = ("text", "image", "inpaint")[(self.start is not None) + (self.mask is not None)]
        strength = asked.strength if self.start else None
        return (
            kind, asked.width, asked.height, asked.preset, asked.steps, asked.guidance_scale, asked.scheduler,
            strength,
        )  # fmt: skip


@dataclass(frozen=True)
class Step:
    """How far a drawing is. `places` says of each row of `latents` which order it is of, and which picture.

    The latents are those of the picture that the model expects at this step, not the noisy ones.
    """

    done: int
    of: int
    places: tuple[tuple[int, int], ...]
    latents: Float[Tensor, "batch channels height width"]


def generate(
    pipeline: Any,
    request: GenerateRequest,
    on_step: Callable[[int, int], None] | None = None,
    *,
    start: Shown | None = None,
    mask: Shown | None = None,
    batch_size: int | None = None,
) -> list[Picture]:
    """Draws `request.count` pictures, number i from the seed `seed + i`, so that each can be repeated alone.

    Noise comes from the CPU's generator on every device. On the CPU pictures are drawn one at a time, so that
    one drawn again has the same bytes; larger batches, usual on an accelerator, differ by less than 1e-4.
    `start` is a picture to start from that has no path for `request.image`; where `mask` is white it is drawn
    anew. `on_step(done, of)` is called after every step; what it raises ends the drawing and is passed on.
    """
    order = prepare(pipeline, request, start=start, mask=mask)
    watch = on_step and (lambda step: on_step(step.done, step.of))
    return draw_together(pipeline, [order], watch, batch_size=batch_size)[0]


def prepare(
    pipeline: Any,
    request: GenerateRequest,
    *,
    start: Shown | None = None,
    mask: Shown | None = None,
) -> Order:
    """Completes a request, opens and fits its pictures, and refuses what this model cannot draw."""
    for name, picture in (("start", start), ("mask", mask)):
        if picture is not None and not (isinstance(picture, Image.Image) and all(picture.size)):
            raise BadRequest(f"{name}: {shorten(picture)} shows nothing; allowed a picture of PIL")
    request.check_strength(start is not None or request.image is not None)
    if request.preset is not None:
        pipeline.check_preset(request.preset)
    request = complete(request, pipeline.generation_defaults)
    _check_texts(pipeline, request)
    digest = None
    if start is not None:
        start = upright_rgb(start, "start: it")
        digest = pixels_digest(start)
    elif request.image:
        start, digest = (
            open_image(request.image),
            hashlib.sha256(Path(request.image).read_bytes()).hexdigest(),
        )
    if start is not None:
        _check_strength(request)
        start = ImageOps.fit(start, _size(request), Image.Resampling.LANCZOS)
    if mask is None:
        return Order(request, start, None, (digest, None))
    if start is None:
        raise BadRequest("mask: given without a picture; allowed with one to start from")
    mask = upright_mask(mask)
    mask_digest = pixels_digest(mask)
    fitted = ImageOps.fit(mask, _size(request), Image.Resampling.LANCZOS)
    mask = fitted.point([0] * 128 + [255] * 128)
    if not mask.getbbox():
        raise BadRequest("mask: nothing is marked; allowed a mask that is white where to draw")
    return Order(request, start, mask, (digest, mask_digest))


def draw_together(
    pipeline: Any,
    orders: Sequence[Order],
    watch: Callable[[Step], None] | None = None,
    *,
    batch_size: int | None = None,
) -> list[list[Picture]]:
    """The pictures of each order; all orders have one `key`, so that as many as fit share a batch.

    Each picture has a generator of its own, so the noise of one does not depend on its neighbours.
    """
    if len({order.key for order in orders}) != 1:
        raise ValueError("orders: none, or of several keys; allowed one or more that have one key")
    if batch_size is not None and batch_size < 1:
        raise BadRequest(f"batch_size: {batch_size}; allowed a whole number from 1")
    first = orders[0].request
    drawn: list[list[Picture]] = [[] for _ in orders]
    made = [_provenance(pipeline, order) for order in orders]
    rows = [(number, i) for number, order in enumerate(orders) for i in range(order.request.count)]
    most = min(batch_size or _batch_size(pipeline, first), len(rows))
    fitted = fitted_decoding(pipeline.vae, *_size(first), most, pipeline.device)
    with lock_of(pipeline), torch.no_grad(), fitted:
        runner = _runner(pipeline, orders[0])
        embeds = [_conditioning(runner, order.request) for order in orders]
        lost = [runner.left_out(order.request.texts, bool(order.request.weighting)) for order in orders]
        batches = [tuple(rows[at : at + most]) for at in range(0, len(rows), most)]
        for number, places in enumerate(batches):
            step = watch and _step_callback(watch, runner, number, len(batches), places)
            seeds = [_seed(orders[order].request, i) for order, i in places]
            arguments = _arguments(orders, places) | _together([embeds[order] for order, _ in places])
            arrays, flags = _draw(runner, first, arguments, seeds, step)
            for (order, _), seed, array, flag in zip(places, seeds, arrays, flags, strict=True):
                image = _finished(runner, orders[order], array)
                drawn[order].append(Picture(image, made[order](seed), flag, lost[order]))
    return drawn


def complete(request: GenerateRequest, defaults: Any) -> GenerateRequest:
    """The request with its preset's values, then the model's, for what it leaves open, and its seed drawn."""
    preset = PRESETS[request.preset or "exact"]
    values = {
        "steps": preset.steps or defaults.steps,
        "scheduler": preset.scheduler or defaults.scheduler,
        **{name: getattr(defaults, name) for name in ("guidance_scale", "width", "height")},
    }
    open_fields = {name: value for name, value in values.items() if getattr(request, name) is None}
    return request.model_copy(update=open_fields).with_seed()


def _check_strength(request: GenerateRequest) -> None:
    assert request.steps is not None
    if int(request.steps * request.strength) < 1:
        raise BadRequest(
            f"strength: {request.strength} of {request.steps} steps leaves none to draw; "
            f"allowed at least {1 / request.steps:.3g}, or more steps"
        )


def _check_texts(pipeline: Any, request: GenerateRequest) -> None:
    tower = pipeline.text_encoder
    layers = tower.config.num_hidden_layers
    if request.clip_skip and not hasattr(tower, "transformation"):
        raise BadRequest(f"clip_skip: {request.clip_skip}; allowed 0 with this model's text encoder")
    if request.clip_skip and request.clip_skip >= layers:
        raise BadRequest(
            f"clip_skip: {request.clip_skip}; allowed 0 to {layers - 1} of the text tower's {layers} layers"
        )
    if request.weighting:
        for name, text in request.texts.items():
            try:
                prompts.parse(text)
            except ValueError as error:
                raise BadRequest(str(error).replace("prompt", name, 1)) from None


def _runner(pipeline: Any, order: Order) -> Any:
    if order.mask is not None:
        from altdiffusion.guided import AltDiffusionInpaintPipeline  # with ControlNets, which take a while

        runner = AltDiffusionInpaintPipeline.from_pipe(pipeline)
    else:
        runner = copy.copy(pipeline.to_image_to_image() if order.start else pipeline)
    runner.scheduler = scheduler_like(pipeline.scheduler, order.request.scheduler)
    runner.set_progress_bar_config(disable=True)
    return runner


def _batch_size(pipeline: Any, request: GenerateRequest) -> int:
    if pipeline.device.type == "cpu":
        return 1
    width, height = _size(request)
    return max(1, _BATCH_PIXELS // (width * height))


def _size(request: GenerateRequest) -> tuple[int, int]:
    assert request.width is not None and request.height is not None
    return request.width, request.height


def _seed(request: GenerateRequest, number: int) -> int:
    return (request.seed + number) % (MAX_SEED + 1)


def _conditioning(
    runner: Any, request: GenerateRequest
) -> tuple[Float[Tensor, "1 tokens dim"], Float[Tensor, "1 tokens dim"]]:
    """Of the prompt, or of what lies between it and `mix`; and of the negative prompt."""
    options = {"weights": bool(request.weighting), "clip_skip": request.clip_skip}
    positive, negative = runner.embed_prompts(request.prompt, request.negative_prompt, **options)
    if request.mix is not None:
        other, _ = runner.embed_prompts(request.mix, request.negative_prompt, **options)
        share = request.mix_share
        positive = prompts.blend(torch.cat([positive, other]), [1 - share, share])
    return positive, negative


def _together(embeds: Sequence[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    positive, negative = zip(*embeds, strict=True)
    return {"prompt_embeds": torch.cat(positive), "negative_prompt_embeds": torch.cat(negative)}


def _arguments(orders: Sequence[Order], places: Sequence[tuple[int, int]]) -> dict[str, Any]:
    order = orders[places[0][0]]
    request = order.request
    arguments = {
        "num_inference_steps": request.steps,
        "guidance_scale": request.guidance_scale,
        "output_type": "np",
    }
    if order.start is None:
        return arguments | {"width": request.width, "height": request.height}
    arguments |= {"image": [orders[number].start for number, _ in places], "strength": request.strength}
    if order.mask is None:
        return arguments
    masks = [orders[number].mask for number, _ in places]
    return arguments | {"mask_image": masks, "width": request.width, "height": request.height}


def _step_callback(
    watch: Callable[[Step], None],
    runner: Any,
    batch: int,
    batches: int,
    places: tuple[tuple[int, int], ...],
) -> Callable[..., dict]:
    # The stock pipelines hand out any local of theirs that stands in this list.
    runner._callback_tensor_inputs = ["latents", "noise_pred"]
    before: Tensor | None = None

    def after_step(runner: Any, step: int, timestep: Any, tensors: dict) -> dict:
        nonlocal before
        latents, noise = tensors.pop("latents"), tensors.pop("noise_pred")
        done, of = batch * runner.num_timesteps + step + 1, batches * runner.num_timesteps
        last = step + 1 == runner.num_timesteps
        seen = (
            latents if before is None or last else expected_picture(runner.scheduler, before, noise, timestep)
        )
        before = latents
        watch(Step(done, of, places, seen))
        return tensors

    return after_step


def _draw(
    runner: Any,
    request: GenerateRequest,
    arguments: dict[str, Any],
    seeds: list[int],
    after_step: Callable[..., dict] | None,
) -> tuple[np.ndarray, list[bool]]:
    watching = {"callback_on_step_end_tensor_inputs": ["latents", "noise_pred"]} if after_step else {}
    preset = PRESETS[request.preset or "exact"]
    try:
        with shortened(runner, guided=preset.guided, reuse=preset.reuse):
            output = runner(
                generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
                callback_on_step_end=after_step,
                **watching,
                **arguments,
            )
    except (RuntimeError, MemoryError) as error:
        if not is_exhausted(error):
            raise
        output = None  # leaving this block drops the error, whose traceback holds the tensors
    if output is None:
        let_go(runner.device)
        size, several = f"{request.width}x{request.height}", len(seeds) > 1
        raise BadRequest(
            f"size: {size}{f', {len(seeds)} pictures at once,' if several else ''} does not fit into the "
            f"memory of {runner.device}; lower size{', count or batch' if several else ''}"
        )
    return output.images, [bool(flag) for flag in output.nsfw_content_detected or [False] * len(seeds)]


def _finished(runner: Any, order: Order, array: np.ndarray) -> Image.Image:
    """As a picture; outside of a mask the start picture's own pixels, which the VAE would change a little."""
    image = Image.fromarray((array * 255).round().astype(np.uint8))
    if order.start is None or order.mask is None:
        return image
    return Image.composite(image, order.start, order.mask)


def _provenance(pipeline: Any, order: Order) -> Callable[[int], Provenance]:
    """What all pictures of an order share, waiting for the seed."""
    request = order.request
    names = ("prompt", "negative_prompt", "steps", "guidance_scale", "width", "height", "language", "mix")
    shared = {name: getattr(request, name) for name in (*names, "preset")}
    shared |= {"clip_skip": request.clip_skip or None, "weighting": request.weighting or None}
    shared["mix_share"] = request.mix_share if request.mix is not None else None
    if order.start is not None:
        image, mask = order.digests
        shared |= {"strength": request.strength, "image": image, "mask": mask}
    loras, embeddings = pipeline.additions
    packages = {package.__name__: str(package.__version__) for package in (torch, diffusers, transformers)}
    if pipeline.runtime != "torch":
        packages[pipeline.runtime] = version(pipeline.runtime)
    return lambda seed: Provenance(
        **shared,
        loras=loras,
        embeddings=embeddings,
        seed=seed,
        scheduler=request.scheduler or scheduler_name(pipeline.scheduler),
        model=model_name(pipeline.source),
        fingerprint=pipeline.fingerprint,
        versions={"altdiffusion": __version__, **packages},
    )


def model_name(source: Any) -> str:
    """`bundled`, a hub name, or the last part of a path: pictures tell no more of a disk."""
    return "bundled" if source is None else cards.name_of(source)
