"""Our pipelines against the stock ones on the same random weights: the same pixels within 1e-4.

They share everything but the text encode, which differs by rounding (see test_conditioning.py).
"""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from diffusers import (
    AutoPipelineForImage2Image,
    AutoPipelineForText2Image,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
)
from PIL import Image
from transformers import AltCLIPTextModel

from altdiffusion.model import AltCLIP
from altdiffusion.pipelines import AltDiffusionImg2ImgPipeline, AltDiffusionPipeline
from tests.fakes import SENTENCES, tiny_text_config

START = Image.effect_mandelbrot((64, 64), (-2, -1.5, 1, 1.5), 50).convert("RGB")


def draw(pipeline, prompt="a red cat", *, seed=0, **arguments) -> np.ndarray:
    generator = torch.Generator("cpu").manual_seed(seed)
    arguments = {"num_inference_steps": 4, "guidance_scale": 3.0, "output_type": "np"} | arguments
    return pipeline(prompt, generator=generator, **arguments).images


def assert_same(ours, stock, tolerance=1e-4):
    assert ours.shape == stock.shape
    assert np.abs(ours - stock).max() < tolerance


@pytest.mark.parametrize("tag", ["en", "zh", "th", "ar"])
def test_text_to_image_draws_the_pixels_of_the_stock_pipeline(shared_pipeline, stock_pipeline, tag):
    assert_same(draw(shared_pipeline, SENTENCES[tag]), draw(stock_pipeline, SENTENCES[tag]))


def test_the_prompt_matters(shared_pipeline):
    """Otherwise these tests would pass for an encode that ignores it."""
    assert np.abs(draw(shared_pipeline, "a red cat") - draw(shared_pipeline, "🦞")).max() > 0.01


@pytest.mark.parametrize(
    "arguments",
    [
        {"prompt": ["a red cat", SENTENCES["ja"]], "negative_prompt": ["rot", ""]},
        {"negative_prompt": SENTENCES["de"], "num_images_per_prompt": 2},
        {"guidance_scale": 1.0},
        {"guidance_scale": 7.5, "guidance_rescale": 0.7},
        {"height": 96, "width": 32},
        {"num_inference_steps": 7, "eta": 0.5},
    ],
    ids=str,
)
def test_every_argument_means_what_it_means_in_the_stock_pipeline(shared_pipeline, stock_pipeline, arguments):
    assert_same(draw(shared_pipeline, **arguments), draw(stock_pipeline, **arguments))


def test_image_to_image_draws_the_pixels_of_the_stock_pipeline(shared_pipeline, stock_pipeline):
    ours = shared_pipeline.to_image_to_image()
    stock = StableDiffusionImg2ImgPipeline(**stock_pipeline.components, requires_safety_checker=False)
    for pipeline in (ours, stock):
        pipeline.set_progress_bar_config(disable=True)
    assert_same(draw(ours, image=START, strength=0.6), draw(stock, image=START, strength=0.6))


def test_clip_skip_draws_the_pixels_of_a_tower_cut_by_hand(shared_pipeline, stock_pipeline):
    tower = shared_pipeline.text_encoder
    cut = AltCLIPTextModel(tiny_text_config(tower.config.vocab_size, num_hidden_layers=1)).eval()
    cut.load_state_dict({name: tower.state_dict()[name] for name in cut.state_dict()})
    parts = stock_pipeline.components | {"text_encoder": cut}
    stock = StableDiffusionPipeline(**parts, requires_safety_checker=False)
    stock.set_progress_bar_config(disable=True)
    ours = draw(shared_pipeline, negative_prompt="a dog", clip_skip=1)
    assert_same(ours, draw(stock, negative_prompt="a dog"))
    assert np.abs(ours - draw(shared_pipeline, negative_prompt="a dog")).max() > 1e-3


def test_prompt_embeds_pass_unchanged(shared_pipeline, stock_pipeline):
    embeds = torch.randn(1, 90, 32, generator=torch.Generator().manual_seed(1))
    arguments = {"prompt": None, "prompt_embeds": embeds, "negative_prompt_embeds": embeds * 0.5}
    assert_same(draw(shared_pipeline, **arguments), draw(stock_pipeline, **arguments), 1e-6)
    arguments = {"prompt": None, "prompt_embeds": embeds[:, :77], "negative_prompt": "a dog"}
    assert_same(draw(shared_pipeline, **arguments), draw(stock_pipeline, **arguments))


def test_a_prompt_given_as_text_and_as_its_embeds_draws_the_same(shared_pipeline):
    positive, negative = shared_pipeline.encode_prompt("a red cat", "cpu", 1, True)
    given = draw(shared_pipeline, None, prompt_embeds=positive, negative_prompt_embeds=negative)
    assert np.array_equal(given, draw(shared_pipeline, "a red cat"))


def test_auto_pipelines_find_their_way_from_ours_and_back(shared_pipeline):
    to_image = AutoPipelineForImage2Image.from_pipe(shared_pipeline)
    assert isinstance(to_image, StableDiffusionImg2ImgPipeline)
    assert to_image.unet is shared_pipeline.unet
    back = AutoPipelineForText2Image.from_pipe(shared_pipeline.to_image_to_image())
    assert isinstance(back, StableDiffusionPipeline)
    for pipeline in (to_image, back):
        pipeline.set_progress_bar_config(disable=True)
    assert_same(draw(back), draw(shared_pipeline))
    ours = draw(shared_pipeline.to_image_to_image(), image=START)
    assert_same(draw(to_image, image=START), ours)
    assert_same(draw(AltDiffusionImg2ImgPipeline.from_pipe(back), image=START), ours)


PLAIN = """
import json, sys
import numpy, torch
from diffusers import DiffusionPipeline
from transformers import AltCLIPModel, AutoTokenizer

folder, picture = sys.argv[1:]
pipeline = DiffusionPipeline.from_pretrained(folder)
generator = torch.Generator("cpu").manual_seed(0)
settings = {"num_inference_steps": 4, "guidance_scale": 3.0, "output_type": "np"}
images = pipeline("a red cat", generator=generator, **settings)
numpy.save(picture, images.images)
clip = AltCLIPModel.from_pretrained(folder + "/altclip")
tokens = AutoTokenizer.from_pretrained(folder + "/altclip")("a red cat", return_tensors="pt")
features = clip.get_text_features(**tokens).pooler_output[0].tolist()
ours = [name for name in sys.modules if name.split(".")[0] == "altdiffusion"]
print(json.dumps({"class": type(pipeline).__module__, "features": features, "ours": ours}))
"""


def test_what_we_save_opens_and_draws_the_same_in_a_process_without_us(shared_folder, tmp_path):
    pipeline = AltDiffusionPipeline.from_pretrained(shared_folder, device="cpu")
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(tmp_path / "saved")
    command = [sys.executable, "-c", PLAIN, str(tmp_path / "saved"), str(tmp_path / "picture.npy")]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr[-2000:]
    told = json.loads(run.stdout.splitlines()[-1])
    assert told["ours"] == []
    assert told["class"].startswith("diffusers.")
    assert_same(draw(pipeline), np.load(tmp_path / "picture.npy"))
    features = AltCLIP.from_pretrained(tmp_path / "saved", device="cpu").encode_text(
        "a red cat", normalize=False
    )
    assert np.abs(features[0].numpy() - told["features"]).max() < 1e-5
