"""`AltCLIP` against `transformers.AltCLIPModel`, stock tokenizer and processor, on the same random weights.

Tolerance 1e-5 in float32: the text side differs by padding alone, the picture side not at all for the same
`pixel_values`. Ours are resized in one pass, which may round a value to its neighbour: one of 255.
"""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close
from transformers import AltCLIPConfig, AltCLIPModel, AutoTokenizer, CLIPImageProcessorPil

from altdiffusion.checkpoints import quiet
from altdiffusion.model import AltCLIP
from tests.fakes import SENTENCES
from tests.published import write

TEXTS = list(SENTENCES.values())
SIZES = [(32, 32), (64, 48), (31, 57), (200, 30), (9, 70)]


@pytest.fixture(scope="module")
def clip(shared_folder) -> AltCLIP:
    return AltCLIP.from_pretrained(shared_folder, device="cpu")


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    random = np.random.default_rng(0)
    return [Image.fromarray(random.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in SIZES]


@pytest.fixture(scope="module")
def stock(shared_folder, pictures):
    """What the stock model gives for `TEXTS` and `pictures`, padded to the longest text."""
    folder = str(shared_folder / "altclip")
    with quiet():
        model = AltCLIPModel.from_pretrained(folder)
        tokens = AutoTokenizer.from_pretrained(folder)(TEXTS, padding=True, return_tensors="pt")
        pixels = CLIPImageProcessorPil.from_pretrained(folder)(pictures, return_tensors="pt")
    with torch.no_grad():
        return model(**tokens, **pixels), model.get_text_features(**tokens).pooler_output, pixels.pixel_values


def test_text_features_equal_the_stock_ones(clip, stock):
    output, pooled, _ = stock
    assert_close(clip.encode_text(TEXTS, normalize=False), pooled, rtol=0, atol=1e-5)
    assert_close(clip.encode_text(TEXTS), output.text_embeds, rtol=0, atol=1e-5)


def test_one_text_alone_equals_the_stock_batch(clip, stock):
    for text, expected in zip(TEXTS, stock[0].text_embeds, strict=True):
        assert_close(clip.encode_text(text)[0], expected, rtol=0, atol=1e-5)


def test_image_features_equal_the_stock_ones(clip, stock, pictures):
    output, _, pixel_values = stock
    step = 1 / 255 / min(clip.image_processor.image_std)
    assert_close(clip.preprocess(pictures), pixel_values, rtol=0, atol=step + 1e-6)
    assert_close(clip.encode_image(pictures), output.image_embeds, rtol=0, atol=1e-3)
    assert_close(clip.encode_image(pixel_values), output.image_embeds, rtol=0, atol=1e-5)


def test_logits_equal_the_stock_ones(clip, stock):
    assert_close(clip.logits(TEXTS, stock[2]), stock[0].logits_per_text, rtol=0, atol=1e-5)
    assert stock[0].logits_per_text.abs().max() > 1


@pytest.mark.parametrize("form", ["m9", "m18"])
def test_a_published_altclip_gives_the_stock_features_and_logits(form, pictures, tmp_path):
    folder = write("A", tmp_path, form)
    clip = AltCLIP.from_pretrained(folder, device="cpu")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for partial in ("text_config_dict", "vision_config_dict"):  # transformers fills them up at full width
        config.pop(partial, None)
    with quiet():
        model = AltCLIPModel.from_pretrained(str(folder), config=AltCLIPConfig(**config))
    tokens = clip.tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = model(**tokens, pixel_values=clip.preprocess(pictures))
    assert_close(clip.encode_text(TEXTS), expected.text_embeds, rtol=0, atol=1e-5)
    assert_close(clip.encode_image(pictures), expected.image_embeds, rtol=0, atol=1e-5)
    assert_close(clip.logits(TEXTS, pictures), expected.logits_per_text, rtol=0, atol=1e-5)
