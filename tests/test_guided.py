"""Inpainting, outpainting, ControlNet and PAG on the tiny model: what each keeps, what each changes."""

import io
import json

import numpy as np
import pytest
import torch
from diffusers import (
    AutoPipelineForInpainting,
    AutoPipelineForText2Image,
    DiffusionPipeline,
    StableDiffusionControlNetPAGPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPAGPipeline,
)
from PIL import Image

import altdiffusion
from altdiffusion import AltDiffusionImg2ImgPipeline, AltDiffusionPipeline, guided
from altdiffusion.checkpoints import quiet
from altdiffusion.guided import (
    AltDiffusionControlNetImg2ImgPipeline,
    AltDiffusionControlNetInpaintPipeline,
    AltDiffusionControlNetPAGInpaintPipeline,
    AltDiffusionControlNetPAGPipeline,
    AltDiffusionControlNetPipeline,
    AltDiffusionInpaintPipeline,
    AltDiffusionPAGImg2ImgPipeline,
    AltDiffusionPAGInpaintPipeline,
    AltDiffusionPAGPipeline,
)
from tests.fakes import SENTENCES, tiny_controlnet, tiny_unet

START = Image.effect_mandelbrot((64, 64), (-2, -1.5, 1, 1.5), 50).convert("RGB")
RIGHT_HALF = Image.fromarray(np.repeat([[0] * 32 + [255] * 32], 64, axis=0).astype(np.uint8))
EDGES = Image.radial_gradient("L").resize((64, 64)).convert("RGB")
KINDS = [name for name in vars(guided) if name.startswith("AltDiffusion")]


def draw(pipeline, prompt="a red cat", seed=0, **arguments):
    arguments = {"num_inference_steps": 3, "guidance_scale": 3.0, "output_type": "np"} | arguments
    return pipeline(prompt, generator=torch.Generator("cpu").manual_seed(seed), **arguments).images


def silent(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def apart(first, second) -> float:
    return float(np.abs(np.asarray(first, dtype=float) - np.asarray(second, dtype=float)).max())


@pytest.fixture(scope="module")
def inpaint(shared_pipeline):
    return AltDiffusionInpaintPipeline.from_pipe(shared_pipeline)


@pytest.fixture(scope="module")
def shown(shared_pipeline):
    """An inpainting model proper: its UNet is shown the mask and the masked picture."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AltDiffusionInpaintPipeline.from_pipe(shared_pipeline, unet=tiny_unet(in_channels=9))


@pytest.fixture(scope="module")
def nets(shared_pipeline):
    return [tiny_controlnet(shared_pipeline.unet, seed) for seed in (1, 2)]


@pytest.fixture(scope="module")
def controlled(shared_pipeline, nets):
    return AltDiffusionControlNetPipeline.from_pipe(shared_pipeline, controlnet=nets[0])


@pytest.fixture(scope="module")
def perturbed(shared_pipeline):
    return AltDiffusionPAGPipeline.from_pipe(shared_pipeline)


def test_every_pipeline_of_the_library_is_public_and_carries_its_stock_name():
    assert len(KINDS) == 9
    for name in KINDS:
        assert name in altdiffusion.__all__
        assert getattr(altdiffusion, name).__name__ == name.replace("Alt", "Stable")


def test_inpainting_keeps_the_latents_outside_the_mask_and_changes_those_inside(inpaint):
    arguments = {"image": START, "mask_image": RIGHT_HALF}
    latents = draw(inpaint, output_type="latent", **arguments)
    pixels = inpaint.image_processor.preprocess(START)
    posterior = inpaint.vae.encode(pixels).latent_dist
    kept = posterior.sample(torch.Generator("cpu").manual_seed(0)) * inpaint.vae.config.scaling_factor
    assert torch.equal(latents[..., :8], kept[..., :8])
    assert (latents[..., 8:] - kept[..., 8:]).abs().max() > 0.1


def test_what_the_mask_covers_does_not_reach_a_full_repainting(inpaint):
    other = START.copy()
    other.paste("red", (32, 0, 64, 64))
    arguments = {"mask_image": RIGHT_HALF, "output_type": "latent"}
    same, moved = (draw(inpaint, image=image, **arguments) for image in (START, other))
    assert (same - moved)[..., :4].abs().max() < 0.2  # the encoder sees a few pixels across the border
    assert (draw(inpaint, image=other, strength=0.5, **arguments) - same).abs().max() > 0.2


def test_a_cropped_inpainting_keeps_the_pixels_outside_the_mask(inpaint):
    mask = Image.new("L", (64, 64))
    mask.paste(255, (40, 40, 56, 56))
    arguments = {"image": START, "mask_image": mask, "padding_mask_crop": 8, "output_type": "pil"}
    (picture,) = draw(inpaint, **arguments)
    changed = np.abs(np.asarray(picture, dtype=int) - np.asarray(START, dtype=int)).max(axis=2)
    changed[40:56, 40:56] = 0
    assert changed.max() == 0
    assert apart(picture, START) > 10


def test_inpainting_draws_the_pixels_of_the_stock_pipeline(inpaint, shown, stock_pipeline):
    for ours in (inpaint, shown):
        parts = stock_pipeline.components | {"unet": ours.unet}
        stock = silent(StableDiffusionInpaintPipeline(**parts, requires_safety_checker=False))
        arguments = {"image": START, "mask_image": RIGHT_HALF, "negative_prompt": "a dog"}
        assert apart(draw(ours, **arguments), draw(stock, **arguments)) < 1e-4


def test_a_unet_of_nine_channels_is_shown_the_mask_and_what_it_leaves(shown):
    first = draw(shown, image=START, mask_image=RIGHT_HALF)
    assert apart(first, draw(shown, image=EDGES, mask_image=RIGHT_HALF)) > 0.01
    assert apart(first, draw(shown, image=START, mask_image=Image.new("L", (64, 64), 255))) > 0.01
    hidden = START.copy()
    hidden.paste("red", (32, 0, 64, 64))
    assert apart(first, draw(shown, image=hidden, mask_image=RIGHT_HALF)) < 1e-6


def test_a_unet_of_nine_channels_is_refused_by_the_other_tasks(shown):
    with pytest.raises(ValueError, match=r"^unet: it takes 9 channels; allowed in AltDiffusionPipeline: 4$"):
        AltDiffusionPipeline.from_pipe(shown)
    with pytest.raises(
        ValueError, match=r"^unet: it takes 5 channels; allowed in .*InpaintPipeline: 4 or 9$"
    ):
        AltDiffusionInpaintPipeline.from_pipe(shown, unet=tiny_unet(in_channels=5))


@pytest.mark.parametrize("kind", ["inpaint", "shown"])
def test_outpainting_widens_the_picture_and_keeps_its_pixels(kind, request):
    pipeline = request.getfixturevalue(kind)
    drawn = pipeline.outpaint(SENTENCES["th"], START, left=8, top=16, right=24, num_inference_steps=2).images[
        0
    ]
    assert drawn.size == (96, 80)
    assert np.array_equal(np.asarray(drawn.crop((8, 16, 72, 80))), np.asarray(START))
    border = np.asarray(drawn)[:, 80:]
    assert border.std() > 1


def test_outpainting_takes_a_picture_upright_and_on_white(inpaint):
    exif = Image.Exif()
    exif[0x0112] = 6  # held on its side
    file = io.BytesIO()
    START.resize((32, 64)).transpose(Image.Transpose.ROTATE_90).save(file, "PNG", exif=exif)
    drawn = inpaint.outpaint("a cat", Image.open(file), left=32, num_inference_steps=1).images[0]
    assert np.array_equal(np.asarray(drawn.crop((32, 0, 64, 64))), np.asarray(START.resize((32, 64))))
    clear = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    drawn = inpaint.outpaint("a cat", clear, left=32, num_inference_steps=1).images[0]
    assert drawn.crop((32, 0, 96, 64)).getextrema() == ((255, 255),) * 3


@pytest.mark.parametrize(
    ("sides", "message"),
    [
        ({}, r"^left, top, right, bottom: \(0, 0, 0, 0\); allowed: 0 and up, not all 0$"),
        ({"left": -8}, r"^left, top, right, bottom: \(-8, 0, 0, 0\); allowed: 0 and up, not all 0$"),
        ({"left": 7}, r"^image: \(71, 64\) pixels with its new sides; allowed: multiples of 4$"),
    ],
)
def test_sides_that_cannot_be_are_refused(inpaint, sides, message):
    with pytest.raises(ValueError, match=message):
        inpaint.outpaint("a cat", START, **sides)


def test_a_controlnet_at_scale_nought_is_none(controlled, shared_pipeline):
    plain = draw(shared_pipeline)
    assert np.array_equal(draw(controlled, image=EDGES, controlnet_conditioning_scale=0.0), plain)
    full = draw(controlled, image=EDGES)
    assert apart(full, plain) > 0.01
    assert apart(full, draw(controlled, image=START)) > 0.005


def test_several_controlnets_each_have_their_picture_and_their_scale(shared_pipeline, controlled, nets):
    both = AltDiffusionControlNetPipeline.from_pipe(shared_pipeline, controlnet=nets)
    images = [EDGES, START]
    first = draw(both, image=images, controlnet_conditioning_scale=[1.0, 0.0])
    assert apart(first, draw(controlled, image=EDGES)) < 1e-5
    assert apart(first, draw(both, image=images, controlnet_conditioning_scale=[1.0, 1.0])) > 0.005


def test_controlnets_guide_image_to_image_and_inpainting(shared_pipeline, inpaint, nets):
    to_image = AltDiffusionControlNetImg2ImgPipeline.from_pipe(shared_pipeline, controlnet=nets[0])
    arguments = {"image": START, "control_image": EDGES, "strength": 0.7}
    plain = draw(shared_pipeline.to_image_to_image(), image=START, strength=0.7)
    assert apart(draw(to_image, controlnet_conditioning_scale=0.0, **arguments), plain) < 1e-6
    assert apart(draw(to_image, **arguments), plain) > 0.005
    masked = AltDiffusionControlNetInpaintPipeline.from_pipe(shared_pipeline, controlnet=nets[0])
    arguments = {"image": START, "mask_image": RIGHT_HALF, "output_type": "latent"}
    plain = draw(inpaint, **arguments)
    guided = draw(masked, control_image=EDGES, **arguments)
    assert torch.equal(guided[..., :8], plain[..., :8])
    assert (guided - plain).abs().max() > 0.01


def test_a_controlnet_pipeline_is_saved_with_its_nets_and_opens_again(shared_pipeline, nets, tmp_path):
    for count, place in ((1, tmp_path / "one"), (2, tmp_path / "two")):
        ours = AltDiffusionControlNetPipeline.from_pipe(shared_pipeline, controlnet=nets[:count])
        ours.save_pretrained(place)
        index = json.loads((place / "model_index.json").read_text())
        assert index["_class_name"] == "StableDiffusionControlNetPipeline"
        again = silent(AltDiffusionControlNetPipeline.from_pretrained(place, device="cpu"))
        images = [EDGES, START][:count]
        assert np.array_equal(draw(again, image=images), draw(ours, image=images))
    with quiet():
        stock = silent(DiffusionPipeline.from_pretrained(str(tmp_path / "one")))
    assert (
        apart(draw(stock, image=[EDGES]), draw(ours.from_pipe(ours, controlnet=nets[:1]), image=[EDGES]))
        < 1e-4
    )
    words_alone = silent(AltDiffusionPipeline.from_pretrained(tmp_path / "one", device="cpu"))
    assert np.array_equal(draw(words_alone), draw(shared_pipeline))


def test_a_controlnet_may_be_brought_to_a_model_that_has_none(shared_folder, controlled, nets):
    loaded = silent(
        AltDiffusionControlNetPipeline.from_pretrained(shared_folder, controlnet=nets[0], device="cpu")
    )
    assert np.array_equal(draw(loaded, image=EDGES), draw(controlled, image=EDGES))
    with pytest.raises(ValueError, match=r"^controlnet: .* has none; allowed: controlnet=ControlNetModel"):
        AltDiffusionControlNetPipeline.from_pretrained(shared_folder, device="cpu")


def test_perturbed_attention_at_scale_nought_is_none(perturbed, shared_pipeline):
    plain = draw(shared_pipeline)
    assert apart(draw(perturbed, pag_scale=0.0), plain) < 1e-6
    assert apart(draw(perturbed, pag_scale=5.0), plain) > 1e-3
    assert apart(draw(shared_pipeline), plain) == 0


def test_perturbed_attention_guides_the_other_tasks(shared_pipeline, inpaint, controlled, nets):
    image = {"image": START}
    masked = image | {"mask_image": RIGHT_HALF, "strength": 0.7}
    sketched = {"control_image": EDGES, "controlnet_conditioning_scale": 0.0}
    pairs = [
        (AltDiffusionPAGImg2ImgPipeline, {}, image, shared_pipeline.to_image_to_image(), image),
        (AltDiffusionPAGInpaintPipeline, {}, masked, inpaint, masked),
        (AltDiffusionControlNetPAGPipeline, {"controlnet": nets[0]}, image, controlled, image),
        (
            AltDiffusionControlNetPAGInpaintPipeline,
            {"controlnet": nets[0]},
            masked | sketched,
            inpaint,
            masked,
        ),
    ]
    for kind, parts, arguments, plain, plain_arguments in pairs:
        pipeline = kind.from_pipe(shared_pipeline, **parts)
        expected = draw(plain, **plain_arguments)
        assert apart(draw(pipeline, pag_scale=0.0, **arguments), expected) < 1e-5, kind
        assert apart(draw(pipeline, pag_scale=5.0, **arguments), expected) > 1e-3, kind


def test_auto_pipelines_find_inpainting_and_come_back(shared_pipeline, inpaint):
    arguments = {"image": START, "mask_image": RIGHT_HALF}
    expected = draw(inpaint, **arguments)
    for ours in (shared_pipeline, shared_pipeline.to_image_to_image(), inpaint):
        auto = silent(AutoPipelineForInpainting.from_pipe(ours))
        assert type(auto) is StableDiffusionInpaintPipeline
        assert apart(draw(auto, **arguments), expected) < 1e-4
        assert np.array_equal(draw(AltDiffusionInpaintPipeline.from_pipe(auto), **arguments), expected)
    back = silent(AutoPipelineForText2Image.from_pipe(inpaint))
    assert apart(draw(back), draw(shared_pipeline)) < 1e-4
    assert np.array_equal(
        draw(AltDiffusionImg2ImgPipeline.from_pipe(auto), image=START),
        draw(shared_pipeline.to_image_to_image(), image=START),
    )


def test_auto_pipelines_find_perturbed_attention_and_controlnets(shared_pipeline, perturbed, nets):
    auto = silent(AutoPipelineForText2Image.from_pipe(shared_pipeline, enable_pag=True))
    assert type(auto) is StableDiffusionPAGPipeline
    assert apart(draw(auto, pag_scale=5.0), draw(perturbed, pag_scale=5.0)) < 1e-4
    auto = AutoPipelineForText2Image.from_pipe(perturbed, controlnet=nets[0])
    assert type(auto) is StableDiffusionControlNetPAGPipeline
    ours = AltDiffusionControlNetPAGPipeline.from_pipe(auto)
    assert ours.controlnet is nets[0]
    assert ours.unet is shared_pipeline.unet
