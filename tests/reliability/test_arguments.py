"""A1: bad arguments to a pipeline's call and to `generate` end in a right picture or in a named refusal."""

import io
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from altdiffusion.generation import generate
from altdiffusion.requests import SCHEDULERS, GenerateRequest
from tests.reliability.judging import JUNK, PICTURE, WORDS, examples, judge, shown
from tests.reliability.malformed import cut
from tests.test_requests import BAD

#: What a user is told beside a picture.
pytestmark = pytest.mark.filterwarnings(r"ignore:(prompt|negative_prompt|mix|preset)\b:UserWarning")
NAN, INF = math.nan, math.inf


def embeds(rows: int = 1, width: int = 32, value: float = 0.1, tokens: int = 77) -> torch.Tensor:
    return torch.full((rows, tokens, width), value)


def latents(*shape: int, value: float | None = None) -> torch.Tensor:
    shape = shape or (1, 4, 16, 16)
    if value is not None:
        return torch.full(shape, value)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def leaves(value: Any) -> Any:
    return lambda pipeline, step, timestep, tensors: value


#: Calls of the pipeline that have to be refused: the argument to be named, and what is given.
REFUSED: list[tuple[str, dict[str, Any]]] = [
    *[("prompt", {"prompt": p}) for p in ([], None, 42, b"", {"a": 1}, [1, 2], [None, "a"], [["a", "b"]])],
    *[("prompt", {"prompt": p}) for p in ("\ud800", "a" * 1_000_000, ["a", "a" * 100_001], [])],
    *[("height", {"height": v}) for v in (65, 0, -64, NAN, INF, "64", 64.0, 10**6, True, [64], 10**5000)],
    *[("width", {"width": v}) for v in (65, 0, -64, NAN, "64", 10**6)],
    *[("num_inference_steps", {"num_inference_steps": v}) for v in (0, -1, 2.5, "2", 1001, NAN, None, True)],
    *[("guidance_scale", {"guidance_scale": v}) for v in (NAN, INF, -INF, 1e30, -5, "7", None, True, [7.5])],
    *[("num_images_per_prompt", {"num_images_per_prompt": v}) for v in (0, -1, 1.5, None, "2", 10**9)],
    ("negative_prompt", {"negative_prompt": ["a", "b"]}),
    ("negative_prompt", {"prompt": ["a", "b"], "negative_prompt": "c"}),
    *[("negative_prompt", {"negative_prompt": v}) for v in (42, "\udfff", b"", [], [None], "a" * 1_000_000)],
    *[("generator", {"generator": v}) for v in (42, "7", [torch.Generator(), torch.Generator()], [], [7])],
    ("latents", {"latents": latents(1, 4, 18, 18)}),
    ("latents", {"latents": latents(1, 3, 16, 16)}),
    ("latents", {"latents": latents(2, 4, 16, 16)}),
    ("latents", {"latents": latents(4, 16, 16)}),
    ("latents", {"latents": latents(0, 4, 16, 16)}),
    ("latents", {"latents": latents(value=NAN)}),
    ("latents", {"latents": latents(value=INF)}),
    ("latents", {"latents": latents(value=0.0).long()}),
    ("latents", {"latents": latents().numpy()}),
    ("prompt_embeds", {"prompt": None, "prompt_embeds": embeds(width=16)}),
    ("prompt_embeds", {"prompt": None, "prompt_embeds": embeds(value=NAN)}),
    ("prompt_embeds", {"prompt": None, "prompt_embeds": embeds()[0]}),
    ("prompt_embeds", {"prompt": None, "prompt_embeds": embeds().tolist()}),
    ("prompt", {"prompt": "a", "prompt_embeds": embeds()}),
    ("negative_prompt_embeds", {"negative_prompt_embeds": embeds(2)}),
    ("negative_prompt_embeds", {"negative_prompt_embeds": embeds(value=INF)}),
    (
        "negative_prompt_embeds",
        {"prompt": None, "prompt_embeds": embeds(), "negative_prompt_embeds": embeds(tokens=3)},
    ),
    ("negative_prompt", {"negative_prompt": "a", "negative_prompt_embeds": embeds()}),
    *[("eta", {"eta": v}) for v in (5, -1, NAN, "0")],
    *[("guidance_rescale", {"guidance_rescale": v}) for v in (NAN, -1, 2)],
    *[("clip_skip", {"clip_skip": v}) for v in (2, -1, 1.5, "1", NAN)],
    *[("output_type", {"output_type": v}) for v in ("jpeg", "", None, 5, "PIL")],
    *[("callback_on_step_end", {"callback_on_step_end": v}) for v in (5, "print")],
    ("callback_on_step_end_tensor_inputs", {"callback_on_step_end_tensor_inputs": ["noise"]}),
    ("callback_on_step_end_tensor_inputs", {"callback_on_step_end_tensor_inputs": "latents"}),
    ("timesteps", {"timesteps": [NAN]}),
    ("timesteps", {"timesteps": [999, 500], "sigmas": [1.0, 0.5]}),
    ("sigmas", {"sigmas": 5}),
    ("widht", {"widht": 64}),
    ("negative_prompts", {"negative_prompts": "a"}),
    ("preset", {"preset": "quick"}),
]
#: What a callback may do is seen after its first step only.
LATE: list[tuple[str, dict[str, Any]]] = [
    ("callback_on_step_end", {"callback_on_step_end": leaves({"latents": latents(value=NAN)})}),
    ("callback_on_step_end", {"callback_on_step_end": leaves({"latents": latents(1, 4, 8, 8)})}),
    ("callback_on_step_end", {"callback_on_step_end": leaves(None)}),
    ("callback_on_step_end", {"callback_on_step_end": leaves(5)}),
]
RIGHT: list[dict[str, Any]] = [
    {"prompt": ""},
    {"prompt": ["a", ""]},
    {"prompt": ("a", "b")},
    {"prompt": "a\0\u202eb"},
    {"prompt": "word " * 200},
    {"height": 128},
    {"width": np.int64(32)},
    {"height": 8, "width": 8},
    {"num_inference_steps": 1},
    {"guidance_scale": 0},
    {"guidance_scale": np.float32(1.0)},
    {"guidance_scale": 100},
    {"num_images_per_prompt": 3},
    {"prompt": ["a", "b"], "negative_prompt": ["c", "d"]},
    {"generator": torch.Generator().manual_seed(7)},
    {"generator": None},
    {"latents": latents()},
    {"latents": latents(1, 4, 16, 8), "width": 32},
    {"prompt": None, "prompt_embeds": embeds(2), "negative_prompt_embeds": embeds(2, value=0.0)},
    {"negative_prompt_embeds": embeds()},
    {"eta": 1.0},
    {"guidance_rescale": 0.7},
    {"clip_skip": 1},
    {"output_type": "latent"},
    {"output_type": "pt"},
    {"output_type": "np"},
    {"callback_on_step_end": leaves({})},
    {"callback_on_step_end": leaves({"latents": latents(value=0.0)})},
    {"return_dict": False},
    {"preset": "fast"},
    {"cross_attention_kwargs": None},
]


def models(pipeline: Any) -> dict[str, torch.nn.Module]:
    return {name: getattr(pipeline, name) for name in ("text_encoder", "unet", "vae")}


def expected(arguments: dict[str, Any]) -> tuple[int, int, int]:
    """(pictures, height, width) of a call that is right."""
    prompt = arguments.get("prompt")
    rows = (
        len(arguments["prompt_embeds"]) if prompt is None else 1 if isinstance(prompt, str) else len(prompt)
    )
    several = arguments.get("num_images_per_prompt", 1)
    return rows * several, arguments.get("height") or 64, arguments.get("width") or 64


def picture_fault(output: Any, arguments: dict[str, Any]) -> str:
    """What is wrong with what the pipeline gave."""
    images = output[0]
    rows, height, width = expected(arguments)
    kind = arguments.get("output_type", "pil")
    if kind == "pil":
        images = np.stack([np.asarray(image) for image in images]) / 255
    elif kind in ("pt", "latent"):
        images = np.moveaxis(images.numpy(), 1, -1)
    shape = (rows, height // 4, width // 4, 4) if kind == "latent" else (rows, height, width, 3)
    if images.shape != shape:
        return f"is of shape {images.shape}, not {shape}"
    if not np.isfinite(images).all():
        return "is not finite"
    return "" if kind == "latent" or (images.min() >= 0 and images.max() <= 1) else "is out of range"


def draw(pipeline: Any, arguments: dict[str, Any]) -> Any:
    return pipeline(**{"prompt": "a", "num_inference_steps": 1, "guidance_scale": 3.0} | arguments)


def try_call(
    tally: Any, pipeline: Any, arguments: dict, *names: str, must: str | None, late: bool = False
) -> None:
    judge(
        tally,
        shown(arguments),
        lambda: draw(pipeline, arguments),
        names=names,
        fault=lambda output: picture_fault(output, {"prompt": "a"} | arguments),
        models={} if late else models(pipeline),
        must=must,
    )


def test_what_the_pipeline_is_called_with(shared_pipeline, tally):
    counted = tally("A1 arguments of the pipeline")
    for arguments in RIGHT:
        try_call(counted, shared_pipeline, arguments, must="right")
    for name, arguments in REFUSED:
        try_call(counted, shared_pipeline, arguments, name, must="refused")
    for name, arguments in LATE:
        try_call(counted, shared_pipeline, arguments, name, must="refused", late=True)
    counted.check(120)


def whole(value: Any, low: int, high: int, multiple: int = 1) -> bool:
    """Whether it is one of our whole numbers, said in another way than `calling` says it."""
    return type(value) is int and value in range(low, high + 1, multiple)


def number(value: Any, high: float) -> bool:
    return type(value) in (int, float) and min(max(value, 0), high) == value


def text(value: Any) -> bool:
    return type(value) is str and value == value.encode("utf-8", "ignore").decode()


#: For each argument what is tried, and whether a picture has to come of it.
CALLS: dict[str, tuple[st.SearchStrategy, Any]] = {
    "prompt": (WORDS | JUNK, lambda v: text(v) or (type(v) is list and v and all(map(text, v)))),
    "height": (st.sampled_from([8, 32, 64, 65]) | JUNK, lambda v: v is None or whole(v, 8, 8192, 8)),
    "width": (st.sampled_from([8, 32, 64, 65]) | JUNK, lambda v: v is None or whole(v, 8, 8192, 8)),
    "num_inference_steps": (st.integers(-2, 4) | JUNK, lambda v: whole(v, 1, 1000)),
    "guidance_scale": (st.floats(0, 100) | JUNK, lambda v: number(v, 100)),
    "num_images_per_prompt": (st.integers(-1, 2) | JUNK, lambda v: whole(v, 1, 1000)),
    "eta": (st.floats(0, 1) | JUNK, lambda v: number(v, 1)),
    "guidance_rescale": (st.floats(0, 1) | JUNK, lambda v: number(v, 1)),
    "clip_skip": (st.integers(-1, 3) | JUNK, lambda v: v is None or whole(v, 0, 1)),
    "negative_prompt": (
        WORDS | JUNK,
        lambda v: v is None or text(v) or (type(v) is list and len(v) == 1 and text(v[0])),
    ),
    "generator": (JUNK, lambda v: v is None),
    "latents": (JUNK, lambda v: v is None),
    "prompt_embeds": (JUNK, lambda v: v is None),
    "output_type": (st.sampled_from(["pil", "np", "pt", "latent", "jpeg"]) | JUNK, lambda v: v in KINDS),
    "callback_on_step_end": (JUNK.filter(lambda v: v is not print), lambda v: v is None),
    "timesteps": (JUNK, lambda v: v is None),
}
KINDS = ("pil", "np", "pt", "latent")


def slow(name: str, value: Any) -> bool:
    most = {"height": 128, "width": 128, "num_inference_steps": 4, "num_images_per_prompt": 2}.get(name)
    return most is not None and type(value) is int and most < value <= 8192


@st.composite
def calls(draw_one: Any) -> dict[str, Any]:
    names = draw_one(st.lists(st.sampled_from(sorted(CALLS)), min_size=1, max_size=3, unique=True))
    return {
        name: draw_one(CALLS[name][0].filter(lambda value, name=name: not slow(name, value)))
        for name in names
    }


def is_right(name: str, value: Any) -> bool:
    try:
        return bool(CALLS[name][1](value))
    except (TypeError, ValueError, RuntimeError):  # an array has no truth
        return False


def clash(arguments: dict[str, Any]) -> set[str]:
    """Arguments that are right by themselves but not beside the others."""
    several = type(arguments.get("prompt")) is list and arguments.get("negative_prompt") is not None
    beside = arguments.get("prompt_embeds") is not None
    return ({"negative_prompt"} if several else set()) | ({"prompt"} if beside else set())


def test_whatever_the_pipeline_is_called_with(shared_pipeline, tally, amount):
    counted, tries = tally("A1 arguments of the pipeline"), amount(120, 1200)

    @examples(tries)
    @given(calls())
    def call(arguments: dict[str, Any]) -> None:
        wrong = {name for name, value in arguments.items() if not is_right(name, value)}
        unsure = clash(arguments)
        must = "refused" if wrong else None if unsure else "right"
        try_call(counted, shared_pipeline, arguments, *wrong, *unsure, must=must)

    call()
    counted.check(tries)


#: What `generate` is given beside a request, and what has to be named.
GIVEN: list[tuple[str, dict[str, Any]]] = [
    *[("start", {"start": v}) for v in ("a.png", 5, b"", np.zeros((8, 8, 3)), Image.new("RGB", (0, 5)))],
    *[("mask", {"mask": v, "start": PICTURE}) for v in ("a.png", 5, Image.new("L", (64, 64)))],
    ("mask", {"mask": Image.new("L", (64, 64), 255)}),
    ("start", {"start": Image.open(io.BytesIO(cut("PNG")))}),
    *[("batch_size", {"batch_size": v}) for v in (0, -1)],
]
#: Requests that are right by themselves but not for the tiny model, or not without a picture.
FIELDS: list[tuple[str, dict[str, Any]]] = [
    ("strength", {"strength": 0.5}),
    ("strength", {"strength": 0.01, "image": "start.png"}),
    *[("strength", {"strength": v, "image": "start.png"}) for v in (0, -1, 1.5, NAN, "a")],
    ("clip_skip", {"clip_skip": 2}),
    ("mix_share", {"mix_share": 0.5}),
    ("mix_share", {"mix": "b", "mix_share": NAN}),
    ("prompt", {"prompt": "(a:11)", "weighting": True}),
    ("negative_prompt", {"negative_prompt": "(a:11)", "weighting": True}),
    ("mix", {"mix": "(a:1e5)(b:99)", "weighting": True}),
    ("image", {"image": "none.png"}),
    ("image", {"image": "\0"}),
    ("image", {"image": "."}),
    ("preset", {"preset": "quick"}),
]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    PICTURE.save("start.png")


def pictures_fault(pictures: list, fields: dict[str, Any]) -> str:
    size = (fields.get("width") or 64, fields.get("height") or 64)
    if len(pictures) != fields.get("count", 1):
        return f"{len(pictures)} pictures"
    sizes = {picture.image.size for picture in pictures}
    return "" if sizes == {size} else f"of {sizes}, not {size}"


def try_generate(
    tally: Any, pipeline: Any, fields: dict, *names: str, must: str | None, given: dict | None = None
) -> None:
    asked = {"prompt": "a", "steps": 2, "seed": 7} | fields
    judge(
        tally,
        shown(fields | (given or {})),
        lambda: generate(pipeline, GenerateRequest.build(**asked), **(given or {})),
        names=names,
        fault=lambda pictures: pictures_fault(pictures, asked),
        models=models(pipeline),
        must=must,
    )


@pytest.mark.usefixtures("here")
def test_what_generate_is_asked_for(shared_pipeline, tally):
    counted = tally("A1 arguments of generate")
    for name, value in BAD:
        try_generate(counted, shared_pipeline, {name: value}, name, must="refused")
    for name, fields in FIELDS:
        try_generate(counted, shared_pipeline, fields, name, must="refused")
    for name, given_too in GIVEN:
        try_generate(counted, shared_pipeline, {}, name, must="refused", given=given_too)
    rights: list[dict[str, Any]] = [{}, {"prompt": ""}, {"count": 2}, {"width": 32, "height": 128}]
    rights += [{"scheduler": name} for name in SCHEDULERS] + [{"image": "start.png", "strength": 0.5}]
    rights += [{"guidance_scale": value} for value in (0, 1, 50.0)] + [{"clip_skip": 1}, {"mix": "b"}]
    for fields in rights:
        try_generate(counted, shared_pipeline, fields, must="right")
    counted.check(len(BAD) + len(FIELDS) + len(GIVEN) + len(rights))


#: Fields of a request, and values of which some are right.
REQUESTS: dict[str, st.SearchStrategy] = {
    "prompt": WORDS | JUNK,
    "negative_prompt": WORDS | JUNK,
    "seed": st.integers(-2, 2**65) | JUNK,
    "steps": st.integers(-1, 4) | JUNK.filter(lambda v: type(v) is not int or v > 1000),
    "guidance_scale": st.floats(0, 51) | JUNK,
    "width": st.sampled_from([8, 32, 65]) | JUNK.filter(lambda v: type(v) is not int or v > 2048),
    "count": st.integers(-1, 2) | JUNK.filter(lambda v: type(v) is not int or v > 64),
    "scheduler": st.sampled_from([*SCHEDULERS, "dpm"]) | JUNK,
    "image": st.sampled_from(["start.png", "none.png"]) | JUNK,
    "strength": st.floats(0, 1.1) | JUNK,
    "clip_skip": st.integers(0, 3) | JUNK,
    "weighting": JUNK,
    "mix": WORDS | JUNK,
    "mix_share": st.floats(0, 1) | JUNK,
    "language": st.sampled_from(["zh", "cn", "pt-BR"]) | JUNK,
    "preset": st.sampled_from(["default", "fast", "exact", "slow"]) | JUNK,
}


@pytest.mark.usefixtures("here")
def test_whatever_generate_is_asked_for(shared_pipeline, tally, amount):
    """Which fields are right is for tests/test_requests.py; here each gives a picture or a refusal."""
    counted, tries = tally("A1 arguments of generate"), amount(80, 800)
    fields = st.lists(st.sampled_from(sorted(REQUESTS)), min_size=1, max_size=3, unique=True).flatmap(
        lambda names: st.fixed_dictionaries({name: REQUESTS[name] for name in names})
    )

    @examples(tries)
    @given(fields)
    def ask(fields: dict[str, Any]) -> None:
        try_generate(counted, shared_pipeline, fields, *fields, must=None)

    ask()
    counted.check(tries)
