"""The jobs of `bench.encode`: random models of the published shapes, and ways to encode with them.

The peers' ways, with transformers' own class: captions padded to 77 tokens, as FlagAI's `AltCLIP` and
diffusers' AltDiffusion pad them, and `padding=True`, to the longest of the batch. Both with PyTorch's fused
attention, which is the faster one today (FlagAI's own code has none). Ours: `altdiffusion.AltCLIP`.
"""

import copy
import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from transformers import AltCLIPConfig, AltCLIPModel, CLIPImageProcessorPil, XLMRobertaTokenizer

from altdiffusion.conditioning import MAX_LENGTH
from altdiffusion.model import AltCLIP
from bench.published_sizes import NARROW, TEXT, VISION_L

#: Tokens of the captions, spread evenly, and of the one prompt.
SHORTEST, LONGEST, ONE = 6, 20, 13
WORDS = 1000
#: Encodes once, and returns what it made.
Way = Callable[[], Tensor]


@dataclass(frozen=True)
class Shape:
    text: dict[str, Any]
    vision: dict[str, Any]
    project_dim: int
    texts: int
    pictures: int


SHAPES = {
    "published": Shape(TEXT, {**VISION_L, "patch_size": 14, "image_size": 224}, 768, 32, 4),
    "tiny": Shape({**TEXT, **NARROW, "vocab_size": WORDS + 5}, {**NARROW, "patch_size": 56}, 32, 4, 2),
}


def models(text: dict[str, Any], vision: dict[str, Any], project_dim: int) -> dict[str, AltCLIP]:
    """One model in both precisions."""
    torch.manual_seed(0)
    config = AltCLIPConfig(
        text_config={**text, "project_dim": project_dim}, vision_config=vision, projection_dim=project_dim
    )
    exact = AltCLIPModel(config).eval()
    rounded = copy.deepcopy(exact).to(torch.bfloat16)
    parts = tokenizer(), CLIPImageProcessorPil()
    return {"fp32": AltCLIP(exact, *parts), "bf16": AltCLIP(rounded, *parts)}


def tokenizer() -> XLMRobertaTokenizer:
    """Few words: the size of the vocabulary is the model's, whatever the tokenizer uses of it."""
    special = ("<s>", "<pad>", "</s>", "<unk>")
    words = (*special, *(f"▁w{number}" for number in range(WORDS)), "<mask>")
    return XLMRobertaTokenizer(vocab=[(word, 0.0) for word in words])


def captions(lengths: list[int]) -> list[str]:
    """Of as many tokens, `<s>` and `</s>` with them."""
    random = np.random.default_rng(0)
    return [" ".join(f"w{n}" for n in random.integers(WORDS, size=length - 2)) for length in lengths]


def photos(count: int, width: int, height: int) -> list[bytes]:
    """JPEG files with as much detail as a photograph's."""
    random, files = np.random.default_rng(0), []
    for _ in range(count):
        coarse = random.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
        stream = io.BytesIO()
        picture = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        picture.save(stream, "JPEG", quality=90)
        files.append(stream.getvalue())
    return files


def opened(file: bytes) -> Image.Image:
    return Image.open(io.BytesIO(file)).convert("RGB")


@torch.no_grad()
def their_texts(clip: AltCLIP, texts: list[str], padding: bool | str) -> Tensor:
    inputs = clip.tokenizer(
        texts, padding=padding, max_length=MAX_LENGTH, truncation=True, return_tensors="pt"
    )
    return F.normalize(clip.model.get_text_features(**inputs).pooler_output, dim=-1)


@torch.no_grad()
def their_pictures(clip: AltCLIP, pictures: list[Image.Image]) -> Tensor:
    pixels = clip.image_processor(pictures, return_tensors="pt").pixel_values.to(clip.dtype)
    return F.normalize(clip.model.get_image_features(pixels).pooler_output, dim=-1)


def text_ways(shape: Shape, lengths: list[int]) -> dict[str, Way]:
    clips = models(shape.text, {**NARROW, "patch_size": 56}, shape.project_dim)
    texts = captions(lengths)
    ways: dict[str, Way] = {}
    for name, padding in (("padded to 77", "max_length"), ("padding=True", True)):
        for precision, clip in clips.items():
            ways[f"{name}, {precision}"] = partial(their_texts, clip, texts, padding)
    return ways | {f"ours, {p}": partial(clip.encode_text, texts) for p, clip in clips.items()}


def picture_ways(shape: Shape) -> dict[str, Way]:
    """From opened pictures to vectors, preprocessing with it."""
    clips = models({**TEXT, **NARROW, "vocab_size": WORDS + 5}, shape.vision, shape.project_dim)
    pictures = [opened(file) for file in photos(shape.pictures, 640, 480)]
    ways: dict[str, Way] = {
        f"transformers, {p}": partial(their_pictures, c, pictures) for p, c in clips.items()
    }
    return ways | {f"ours, {p}": partial(clip.encode_image, pictures) for p, clip in clips.items()}


def preprocessing_ways(count: int, width: int, height: int) -> dict[str, Way]:
    """From JPEG files to `pixel_values`, or to the whole numbers of which a device makes them."""
    from altdiffusion.images import open_image

    tiny = SHAPES["tiny"]
    clip = models(tiny.text, tiny.vision, tiny.project_dim)["fp32"]
    files = photos(count, width, height)

    def theirs() -> Tensor:
        return clip.image_processor([opened(file) for file in files], return_tensors="pt").pixel_values

    def ours(normalize: bool) -> Tensor:
        return clip.preprocess([open_image(file) for file in files], normalize=normalize)

    return {
        "transformers": theirs,
        "ours, whole numbers": partial(ours, normalize=False),
        "ours": partial(ours, normalize=True),
    }


def jobs(shape: Shape) -> dict[str, tuple[int, Callable[[], dict[str, Way]]]]:
    """How many texts or pictures a call takes, and the ways; ours is the last. Made one job at a time."""
    lengths = np.linspace(SHORTEST, LONGEST, shape.texts).round().astype(int).tolist()
    return {
        "texts": (shape.texts, partial(text_ways, shape, lengths)),
        "one prompt": (1, partial(text_ways, shape, [ONE])),
        "pictures": (shape.pictures, partial(picture_ways, shape)),
        "preprocessing, 640 x 480": (16, partial(preprocessing_ways, 16, 640, 480)),
        "preprocessing, 2048 x 1536": (4, partial(preprocessing_ways, 4, 2048, 1536)),
    }
