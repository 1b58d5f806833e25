"""What diffusers promises of a pipeline holds for ours: its own pipeline tests, on the tiny model."""

import json

import accelerate
import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EulerAncestralDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from PIL import Image
from transformers import CLIPConfig

from altdiffusion.pipelines import AltDiffusionPipeline
from tests.fakes import SENTENCES, tiny_image_processor

SIZE = {"height": 96, "width": 128}


def load(folder, **arguments):
    pipeline = AltDiffusionPipeline.from_pretrained(folder, device="cpu", **arguments)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(pipeline, prompt="a red cat", seeds=(0,), **arguments):
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    arguments = {"num_inference_steps": 3, "guidance_scale": 3.0, "output_type": "np"} | arguments
    return pipeline(prompt, generator=generators, **arguments).images


def apart(first, second) -> float:
    return float(np.abs(np.asarray(first, dtype=float) - np.asarray(second, dtype=float)).max())


@pytest.fixture
def pipeline(shared_folder):
    return load(shared_folder)


def test_a_batch_of_different_languages_negatives_and_lengths_is_their_singles(shared_pipeline):
    tags = ["zh", "ar", "th", "en"]
    prompts = [SENTENCES[tag] for tag in tags[:3]] + ["🦞 " * 36]
    negatives = ["", SENTENCES["de"], "a dog", SENTENCES["ja"]]
    batch = draw(shared_pipeline, prompts, range(4), negative_prompt=negatives)
    for number, (prompt, negative) in enumerate(zip(prompts, negatives, strict=True)):
        single = draw(shared_pipeline, [prompt], (number,), negative_prompt=[negative])
        assert apart(batch[number], single[0]) < 1e-4, tags[number]


def test_several_images_of_a_prompt_are_the_pictures_of_their_seeds(shared_pipeline):
    prompts = ["a red cat", "🦞"]
    images = draw(shared_pipeline, prompts, range(6), num_images_per_prompt=3)
    assert images.shape == (6, 64, 64, 3)
    for number in range(6):
        assert apart(images[number], draw(shared_pipeline, prompts[number // 3], (number,))[0]) < 1e-4


def test_every_kind_of_output_shows_the_same_picture(shared_pipeline):
    array = draw(shared_pipeline)
    tensor = draw(shared_pipeline, output_type="pt")
    assert apart(tensor.permute(0, 2, 3, 1), array) == 0
    (picture,) = draw(shared_pipeline, output_type="pil")
    assert apart(np.asarray(picture) / 255, array[0]) <= 0.5 / 255 + 1e-6
    latents = draw(shared_pipeline, output_type="latent")
    with torch.no_grad():
        decoded = shared_pipeline.vae.decode(latents / shared_pipeline.vae.config.scaling_factor).sample
    assert apart(shared_pipeline.image_processor.postprocess(decoded, output_type="np"), array) < 1e-6
    generator = torch.Generator("cpu").manual_seed(0)
    arguments = {"num_inference_steps": 3, "guidance_scale": 3.0, "output_type": "np"}
    images, nsfw = shared_pipeline("a red cat", generator=generator, return_dict=False, **arguments)
    assert np.array_equal(images, array)
    assert nsfw is None


def test_latents_may_be_given(shared_pipeline):
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    assert np.array_equal(draw(shared_pipeline, latents=latents), draw(shared_pipeline))


def test_guidance_of_one_needs_no_negative_prompt(shared_pipeline):
    plain = draw(shared_pipeline, guidance_scale=1.0)
    assert np.array_equal(draw(shared_pipeline, guidance_scale=1.0, negative_prompt="a dog"), plain)
    assert apart(draw(shared_pipeline, guidance_scale=3.0), plain) > 1e-3


def test_a_callback_sees_every_step_and_may_change_what_comes_next(shared_pipeline):
    seen = []

    def watch(_, step, timestep, tensors):
        seen.append((step, int(timestep), {name: tuple(value.shape) for name, value in tensors.items()}))
        return tensors

    names = shared_pipeline._callback_tensor_inputs
    watched = draw(shared_pipeline, callback_on_step_end=watch, callback_on_step_end_tensor_inputs=names)
    assert [step for step, _, _ in seen] == [0, 1, 2]
    assert seen[0][1] > seen[1][1] > seen[2][1]
    width = shared_pipeline.unet.config.cross_attention_dim
    assert seen[0][2]["prompt_embeds"] == (2, 77, width)
    assert seen[0][2]["latents"] == (1, 4, 16, 16)
    assert np.array_equal(watched, draw(shared_pipeline))
    wiped = draw(shared_pipeline, callback_on_step_end=lambda *_: {"latents": torch.zeros(1, 4, 16, 16)})
    black = shared_pipeline.vae.decode(torch.zeros(1, 4, 16, 16)).sample.detach()
    assert apart(wiped, shared_pipeline.image_processor.postprocess(black, output_type="np")) < 1e-6


def test_guidance_may_be_switched_off_on_the_way(shared_pipeline):
    def switch(pipeline, step, _, tensors):
        if step == 0:
            tensors["prompt_embeds"] = tensors["prompt_embeds"].chunk(2)[-1]
            pipeline._guidance_scale = 0.0
        return tensors

    arguments = {"callback_on_step_end_tensor_inputs": ["prompt_embeds"], "num_inference_steps": 4}
    switched = draw(shared_pipeline, callback_on_step_end=switch, **arguments)
    assert np.isfinite(switched).all()
    assert apart(switched, draw(shared_pipeline, num_inference_steps=4)) > 1e-4


def test_an_interrupted_drawing_ends_with_the_latents_of_that_step(shared_pipeline):
    kept = {}

    def keep(pipeline, step, _, tensors):
        kept[step] = tensors["latents"]
        pipeline._interrupt = stop == step
        return tensors

    stop = 1
    arguments = {"callback_on_step_end": keep, "num_inference_steps": 5, "output_type": "latent"}
    stopped = draw(shared_pipeline, **arguments)
    assert torch.equal(stopped, kept[1])
    assert sorted(kept) == [0, 1]
    stop = None
    whole = draw(shared_pipeline, **arguments)
    assert torch.equal(kept[1], stopped)
    assert torch.equal(whole, kept[4])


@pytest.mark.parametrize(
    "kind",
    [DDIMScheduler, PNDMScheduler, EulerAncestralDiscreteScheduler, UniPCMultistepScheduler, LCMScheduler],
)
def test_any_scheduler_draws_what_it_draws_in_the_stock_pipeline(pipeline, stock_pipeline, kind):
    before = draw(pipeline, num_inference_steps=5)
    pipeline.scheduler = kind.from_config(pipeline.scheduler.config)
    stock = type(stock_pipeline)(**stock_pipeline.components, requires_safety_checker=False)
    stock.scheduler = kind.from_config(stock_pipeline.scheduler.config)
    stock.set_progress_bar_config(disable=True)
    ours = draw(pipeline, num_inference_steps=5)
    assert apart(ours, draw(stock, num_inference_steps=5)) < 1e-4
    assert apart(ours, before) > 1e-5


def test_own_timesteps_are_taken(pipeline):
    pipeline.scheduler = LCMScheduler.from_config(pipeline.scheduler.config)
    seen = []
    draw(
        pipeline,
        timesteps=[901, 501, 101],
        callback_on_step_end=lambda _, i, t, __: seen.append(int(t)) or {},
    )
    assert seen == [901, 501, 101]


def test_a_variant_is_saved_and_loaded(shared_pipeline, tmp_path):
    shared_pipeline.save_pretrained(tmp_path, variant="fp16")
    assert (tmp_path / "unet/diffusion_pytorch_model.fp16.safetensors").is_file()
    assert np.array_equal(draw(load(tmp_path, variant="fp16")), draw(shared_pipeline))
    with pytest.raises(ValueError, match=r"^model: .* holds no weights of the variant 'bf16'"):
        load(tmp_path, variant="bf16")


@pytest.mark.filterwarnings("ignore:dtype")  # a CPU without bfloat16 units says so
def test_bfloat16_draws_nearly_the_same_before_and_after_saving(shared_folder, shared_pipeline, tmp_path):
    half = load(shared_folder, dtype=torch.bfloat16)
    first = draw(half)
    assert np.isfinite(first).all()
    assert apart(first, draw(shared_pipeline)) < 0.2
    half.save_pretrained(tmp_path)
    assert np.array_equal(draw(load(tmp_path, dtype=torch.bfloat16)), first)


def test_vae_slicing_changes_nothing_and_tiling_nothing_up_to_its_tile(pipeline):
    pair = draw(pipeline, ["a red cat", "🦞"], (0, 1))
    large = draw(pipeline, **SIZE)
    pipeline.vae.enable_slicing()
    assert apart(draw(pipeline, ["a red cat", "🦞"], (0, 1)), pair) < 1e-5
    pipeline.vae.enable_tiling()
    assert apart(draw(pipeline, ["a red cat", "🦞"], (0, 1)), pair) < 1e-5
    tiled = draw(pipeline, **SIZE)
    assert tiled.shape == large.shape
    assert 0 < apart(tiled, large) < 0.5
    assert np.abs(tiled - large).mean() < 0.05


def test_offloaded_weights_draw_the_same_with_and_without_clip_skip(pipeline):
    """The hooks of sequential offloading, which leave no weight in place; diffusers wants a GPU for it."""
    expected = [draw(pipeline, clip_skip=clip_skip) for clip_skip in (None, 1)]
    for model in (pipeline.text_encoder, pipeline.unet, pipeline.vae):
        accelerate.cpu_offload(model, torch.device("cpu"))
    assert {parameter.device.type for parameter in pipeline.text_encoder.parameters()} == {"meta"}
    for clip_skip, picture in zip((None, 1), expected, strict=True):
        assert np.array_equal(draw(pipeline, clip_skip=clip_skip), picture)


def test_group_offloading_draws_the_same(pipeline):
    expected = draw(pipeline)
    pipeline.enable_group_offload(torch.device("cpu"), offload_type="leaf_level")
    assert np.array_equal(draw(pipeline), expected)


def test_attention_slicing_and_freeu_go_on_and_off(pipeline):
    plain = draw(pipeline)
    pipeline.enable_attention_slicing()
    assert apart(draw(pipeline), plain) < 1e-4
    pipeline.disable_attention_slicing()
    pipeline.enable_freeu(s1=0.9, s2=0.2, b1=1.5, b2=1.6)
    pipeline.disable_freeu()
    assert apart(draw(pipeline), plain) < 1e-6


def checker(threshold: float) -> StableDiffusionSafetyChecker:
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(vision_config=vision | {"image_size": 32, "patch_size": 16}, projection_dim=8)
    model = StableDiffusionSafetyChecker(config).eval()
    model.concept_embeds_weights.data.fill_(threshold)
    return model


def test_a_safety_checker_blackens_what_it_finds_in_every_task(shared_folder, tmp_path):
    strict = {"feature_extractor": tiny_image_processor(), "requires_safety_checker": True}
    pipeline = load(shared_folder, safety_checker=checker(-2.0), **strict)
    pipeline.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["requires_safety_checker"] is True
    loaded = load(tmp_path)
    assert draw(loaded).max() == 0
    start = Image.new("RGB", (64, 64), "red")
    assert draw(loaded.to_image_to_image(), image=start).max() == 0
    lenient = load(shared_folder, safety_checker=checker(2.0), **strict)
    assert np.array_equal(draw(lenient), draw(load(shared_folder)))
