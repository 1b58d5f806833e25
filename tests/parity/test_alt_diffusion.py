"""Our pipelines against diffusers' deprecated AltDiffusion pipelines, both heads: pixels within 1e-4.

The tower is converted (see test_towers.py); UNet, VAE and scheduler are the same objects.
"""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, PNDMScheduler
from diffusers.pipelines.deprecated.alt_diffusion import AltDiffusionImg2ImgPipeline, AltDiffusionPipeline
from diffusers.pipelines.deprecated.alt_diffusion.modeling_roberta_series import (
    RobertaSeriesConfig,
    RobertaSeriesModelWithTransformation,
)
from PIL import Image
from torch.testing import assert_close
from transformers import AltCLIPTextConfig, AltCLIPTextModel

from altdiffusion import pipelines, towers
from altdiffusion.conditioning import encode_prompts
from tests.fakes import SENTENCES, roughen, tiny_tokenizer

START = Image.effect_mandelbrot((64, 64), (-2, -1.5, 1, 1.5), 50).convert("RGB")
SCHEDULERS = {
    "DDIM": DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, steps_offset=1
    ),
    "PNDM": PNDMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        skip_prk_steps=True,
        steps_offset=1,
    ),
}
TEXTS = [*SENTENCES.values(), ""]


def published_tower(form: str, layers: int, seed: int = 0) -> RobertaSeriesModelWithTransformation:
    config = RobertaSeriesConfig(
        vocab_size=len(tiny_tokenizer()),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=82,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        project_dim=32,
        has_pre_transformation=form == "m18",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return roughen(RobertaSeriesModelWithTransformation(config))


def converted(tower: RobertaSeriesModelWithTransformation, form: str) -> AltCLIPTextModel:
    config = AltCLIPTextConfig(**towers.stock_config(tower.config.to_dict(), form))
    stock = AltCLIPTextModel(config).eval()
    stock.load_state_dict(towers.to_stock(tower.state_dict(), form))
    return stock


@pytest.fixture(scope="module", params=["m9", "m18"])
def form(request):
    return request.param


@pytest.fixture(scope="module", params=SCHEDULERS)
def pairs(request, form, stock_pipeline):
    """(theirs, ours) for text to image and for image to image."""
    parts = stock_pipeline.components | {"scheduler": SCHEDULERS[request.param]}
    tower = published_tower(form, layers=3)
    theirs = parts | {"text_encoder": tower}
    ours = parts | {"text_encoder": converted(tower, form)}
    made = [
        (AltDiffusionPipeline, pipelines.AltDiffusionPipeline),
        (AltDiffusionImg2ImgPipeline, pipelines.AltDiffusionImg2ImgPipeline),
    ]
    pairs = [
        (their(**theirs, requires_safety_checker=False), our(**ours, requires_safety_checker=False))
        for their, our in made
    ]
    for pipeline in (each for pair in pairs for each in pair):
        pipeline.set_progress_bar_config(disable=True)
    return pairs


def draw(pipeline, prompts, **arguments) -> np.ndarray:
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in range(len(prompts))]
    arguments = {"num_inference_steps": 4, "guidance_scale": 7.5, "output_type": "np"} | arguments
    return pipeline(prompts, generator=generators, **arguments).images


def test_text_to_image_draws_the_pixels_of_the_published_pipeline(pairs):
    prompts = [SENTENCES[tag] for tag in ("en", "zh", "th")]
    arguments = {"negative_prompt": ["", SENTENCES["de"], "a dog"]}
    theirs, ours = (draw(pipeline, prompts, **arguments) for pipeline in pairs[0])
    assert theirs.std() > 0.01
    assert np.abs(ours - theirs).max() < 1e-4


def test_image_to_image_draws_the_pixels_of_the_published_pipeline(pairs):
    prompts = [SENTENCES[tag] for tag in ("ru", "ja")]
    theirs, ours = (draw(pipeline, prompts, image=[START] * 2, strength=0.75) for pipeline in pairs[1])
    assert theirs.std() > 0.01
    assert np.abs(ours - theirs).max() < 1e-4


@pytest.mark.parametrize("clip_skip", [1, 2])
@torch.no_grad()
def test_clip_skip_is_the_published_tower_cut_by_hand(form, clip_skip):
    """By a published tower of fewer layers; the m9 form has no LayerNorm before its head."""
    whole, cut = published_tower(form, layers=4), published_tower(form, layers=4 - clip_skip, seed=1)
    cut.load_state_dict({name: whole.state_dict()[name] for name in cut.state_dict()})
    tokenizer = tiny_tokenizer()
    inputs = tokenizer(TEXTS, padding="max_length", max_length=77, return_tensors="pt")
    expected = cut(inputs.input_ids, attention_mask=inputs.attention_mask, return_dict=True)[0]
    stock = converted(whole, form)
    assert_close(encode_prompts(stock, tokenizer, TEXTS, clip_skip=clip_skip), expected, rtol=0, atol=1e-5)
    assert (encode_prompts(stock, tokenizer, TEXTS) - expected).abs().max() > 0.1
