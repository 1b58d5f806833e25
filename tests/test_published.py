"""`from_pretrained` opens every published layout, and what it opens computes what was published."""

import warnings
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.pipelines.deprecated.alt_diffusion.modeling_roberta_series import (
    RobertaSeriesModelWithTransformation,
)
from PIL import Image
from transformers import AltCLIPModel

from altdiffusion import AltCLIP, AltDiffusionImg2ImgPipeline, AltDiffusionPipeline
from altdiffusion.checkpoints import quiet
from tests.published import write
from tests.published_parts import WIDTH, altclip, roberta_config, text_tower

PROMPTS = ["a red lobster", "海滩上的龙虾", ""]


def pipeline_of(path, **options) -> AltDiffusionPipeline:
    pipeline = AltDiffusionPipeline.from_pretrained(path, device="cpu", **options)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(pipeline, prompt="a red lobster", **options):
    return pipeline(
        prompt,
        height=32,
        width=32,
        num_inference_steps=2,
        generator=torch.manual_seed(5),
        output_type="np",
        **options,
    ).images


def published_conditioning(form: str, tokenizer) -> torch.Tensor:
    """The published class over the published tensors, everything padded to 77."""
    tensors = text_tower(form)
    model = RobertaSeriesModelWithTransformation(roberta_config(form)).eval()
    model.load_state_dict(
        {name: tensors[name] for name in model.state_dict() if name in tensors}, strict=False
    )
    inputs = tokenizer(PROMPTS, padding="max_length", truncation=True, max_length=77, return_tensors="pt")
    with torch.no_grad():
        return model(inputs.input_ids, attention_mask=inputs.attention_mask).projection_state


@pytest.mark.parametrize("form", ["m9", "m18"])
@pytest.mark.parametrize("format", ["B", "C", "D"])
def test_a_published_checkpoint_conditions_as_its_own_class_does(published, format, form):
    pipeline = pipeline_of(published(format, form))
    ours = pipeline.encode_prompt(PROMPTS, "cpu", 1, False)[0]
    assert ours.shape == (3, 77, WIDTH[form])
    torch.testing.assert_close(ours, published_conditioning(form, pipeline.tokenizer), atol=1e-5, rtol=0)


@pytest.mark.parametrize("form", ["m9", "m18"])
@pytest.mark.parametrize("format", ["B", "C", "D"])
def test_a_published_checkpoint_draws_and_what_it_saves_opens_in_plain_diffusers(
    published, tmp_path, format, form
):
    pipeline = pipeline_of(published(format, form))
    image = draw(pipeline)
    pipeline.save_pretrained(tmp_path)
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stock = DiffusionPipeline.from_pretrained(str(tmp_path))
    stock.set_progress_bar_config(disable=True)
    assert type(stock).__name__ == "StableDiffusionPipeline"
    assert abs(draw(stock) - image).max() < 1e-4


def test_image_to_image_opens_published_checkpoints_too(published):
    pipeline = AltDiffusionImg2ImgPipeline.from_pretrained(published("C", "m9"), device="cpu")
    pipeline.set_progress_bar_config(disable=True)
    picture = Image.new("RGB", (32, 32), "red")
    images = pipeline("a lobster", image=picture, num_inference_steps=2, output_type="np").images
    assert images.shape == (1, 32, 32, 3)


def test_a_safety_checker_comes_with_the_checkpoint_and_may_be_left_out(published):
    with_it = pipeline_of(published("B", "m9"))
    without = pipeline_of(published("B", "m9"), safety_checker=None, requires_safety_checker=False)
    assert with_it.safety_checker is not None
    assert with_it.feature_extractor is not None
    assert with_it.config.requires_safety_checker
    assert without.safety_checker is None
    assert pipeline_of(published("C", "m9")).safety_checker is None


@pytest.mark.parametrize("form", ["m9", "m18"])
@pytest.mark.parametrize("format", ["A", "D", "E"])
def test_a_published_altclip_is_transformers_altclip(published, tmp_path, format, form):
    clip = AltCLIP.from_pretrained(published(format, form), device="cpu")
    with quiet():
        reference = AltCLIPModel(clip.model.config).eval()
    expected = {name: tensor for name, tensor in altclip(form).items() if "transformation_pre" not in name}
    reference.load_state_dict(
        {
            name.replace("encoder.layer.", "encoder.layers."): t
            for name, t in expected.items()
            if "_ids" not in name
        }
    )
    inputs = clip.tokenizer(PROMPTS, padding=True, return_tensors="pt")
    pixels = clip.preprocess(Image.new("RGB", (50, 40), "red"))
    with torch.no_grad():
        text = reference.get_text_features(**inputs).pooler_output
        image = reference.get_image_features(pixels).pooler_output
    torch.testing.assert_close(clip.encode_text(PROMPTS, normalize=False), text, atol=1e-5, rtol=0)
    torch.testing.assert_close(clip.encode_image(pixels, normalize=False), image, atol=1e-5, rtol=0)
    assert pixels.shape == (1, 3, 32, 32)
    assert clip.form == form


def test_the_generation_head_of_m18_stays_with_its_altclip(published):
    clip = AltCLIP.from_pretrained(published("A", "m18"), device="cpu")
    for kind in ("weight", "bias"):
        assert torch.equal(
            clip.generation_head[kind], altclip("m18")[f"text_model.transformation_pre.{kind}"]
        )
    assert AltCLIP.from_pretrained(published("A", "m9"), device="cpu").generation_head is None


@pytest.mark.parametrize("format", ["A", "E"])
def test_an_altclip_draws_nothing_and_says_so(published, format):
    with pytest.raises(ValueError, match=r"^model: .* is an AltCLIP model; allowed: a model that draws"):
        pipeline_of(published(format, "m9"))


@pytest.mark.parametrize("format", ["B", "C"])
def test_a_checkpoint_without_a_vision_tower_says_so(published, format):
    with pytest.raises(ValueError, match=r"^model: .* no vision tower; allowed: a model that has"):
        AltCLIP.from_pretrained(published(format, "m9"), device="cpu")


@pytest.mark.parametrize("format", ["C", "D"])
def test_a_missing_tokenizer_is_asked_for_and_taken(published, tmp_path, shared_folder, format):
    file = write(format, tmp_path, "m9", tokenizer=False)
    with pytest.raises(ValueError, match=r"^model: .* brings no tokenizer; allowed: .*tokenizer='FOLDER'"):
        pipeline_of(file)
    given = pipeline_of(file, tokenizer=str(shared_folder / "tokenizer"))
    assert (draw(given) == draw(pipeline_of(published(format, "m9")))).all()
    if format == "D":
        assert AltCLIP.from_pretrained(file, device="cpu", tokenizer=shared_folder / "tokenizer").dim == 20


def test_a_tokenizer_beside_a_single_file_conditions_on_77_tokens_whatever_it_says(published):
    pipeline = pipeline_of(published("C", "m9"))
    assert '"model_max_length": 512' in (published("C", "m9").parent / "tokenizer_config.json").read_text()
    assert pipeline.tokenizer.model_max_length == 77


def test_ema_may_be_chosen_when_a_training_checkpoint_is_opened(published):
    averaged, raw = (pipeline_of(published("D", "m9"), ema=ema) for ema in (True, False))
    assert torch.equal(averaged.unet.conv_in.weight, raw.unet.conv_in.weight * 0.5)
    assert torch.equal(pipeline_of(published("D", "m9")).unet.conv_in.weight, averaged.unet.conv_in.weight)


@pytest.mark.parametrize(("format", "options"), [("B", {"variant": "fp16"}), ("C", {"dtype": torch.float16})])
def test_half_precision_files_open_in_the_precision_asked_for(tmp_path, format, options):
    path = write(format, tmp_path, "m9", **options)
    pipeline = pipeline_of(path, variant="fp16" if format == "B" else None)
    assert {pipeline.unet.dtype, pipeline.vae.dtype, pipeline.text_encoder.dtype} == {torch.float32}
    assert pipeline_of(path, dtype=torch.bfloat16).unet.dtype == torch.bfloat16


def test_a_text_tower_too_narrow_for_the_unet_is_refused_in_one_line(tmp_path):
    write("B", tmp_path / "narrow", "m9")
    write("B", tmp_path / "wide", "m18")
    (tmp_path / "narrow/unet").rename(tmp_path / "unet")
    (tmp_path / "wide/unet").rename(tmp_path / "narrow/unet")
    with pytest.raises(
        ValueError, match=r"^model: .* gives 24 values a token; allowed by its UNet: 32$"
    ) as refusal:
        pipeline_of(tmp_path / "narrow")
    assert "\n" not in str(refusal.value)


def test_weights_in_memory_outlive_their_file(tmp_path):
    """A mapped file that is written again would take the model with it."""
    file = Path(write("C", tmp_path, "m9"))
    pipeline = pipeline_of(file)
    before = draw(pipeline)
    file.write_bytes(bytes(file.stat().st_size))
    assert (draw(pipeline) == before).all()
