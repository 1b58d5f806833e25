"""`AltDiffusionPipeline.from_altclip`: an AltCLIP on AltDiffusion's parts, or on any Stable Diffusion's."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import save_file
from torch.testing import assert_close
from transformers import CLIPTextConfig, CLIPTextModel

from altdiffusion import AltCLIP, AltDiffusionImg2ImgPipeline, AltDiffusionPipeline
from tests.fakes import tiny_tokenizer
from tests.published import write
from tests.published_parts import ldm_tensors

PROMPT = {"num_inference_steps": 2, "guidance_scale": 3.0, "output_type": "np", "width": 16, "height": 16}


def draw(pipeline, prompt="a red cat") -> np.ndarray:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(prompt, generator=torch.Generator().manual_seed(0), **PROMPT).images


@pytest.fixture(scope="module")
def altdiffusion(tmp_path_factory) -> dict[str, Path]:
    """The published folder of each form."""
    place = tmp_path_factory.mktemp("altdiffusion")
    return {form: write("B", place / form, form, safety=False) for form in ("m9", "m18")}


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> dict[str, AltCLIP]:
    """The published AltCLIP of each form; no test changes one."""
    place = tmp_path_factory.mktemp("altclip")
    return {
        form: AltCLIP.from_pretrained(write("A", place / form, form), device="cpu") for form in ("m9", "m18")
    }


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    """A Stable Diffusion with CLIP's text encoder, as plain diffusers saves it."""
    place = tmp_path_factory.mktemp("plain")
    published = write("B", place / "published", "m9")
    parts = AltDiffusionPipeline.from_pretrained(published, device="cpu").components
    config = CLIPTextConfig(
        vocab_size=9, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    names = ("unet", "vae", "scheduler", "safety_checker", "feature_extractor")
    StableDiffusionPipeline(
        text_encoder=CLIPTextModel(config),
        tokenizer=tiny_tokenizer(),
        **{name: parts[name] for name in names},
    ).save_pretrained(place / "plain")
    return place / "plain"


def plain_file(
    folder: Path, form: str = "m9", *, start: str = "transformer.text_model", name="sd.safetensors"
) -> Path:
    """A community file: Stable Diffusion's own tensors, and something of CLIP."""
    tensors = ldm_tensors(form) | {f"cond_stage_model.{start}.final_layer_norm.weight": torch.ones(3)}
    if name.endswith(".ckpt"):
        torch.save({"state_dict": tensors, "global_step": 470000}, folder / name)
    else:
        save_file({key: value.contiguous() for key, value in tensors.items()}, folder / name)
    return folder / name


@pytest.mark.parametrize("form", ["m9", "m18"])
def test_a_published_altclip_on_altdiffusion_draws_what_the_published_model_draws(clips, altdiffusion, form):
    """tests/published.py gives the AltCLIP and the AltDiffusion of a seed the same text tower."""
    assert clips[form].form == form
    pipeline = AltDiffusionPipeline.from_altclip(clips[form], altdiffusion[form])
    expected = draw(AltDiffusionPipeline.from_pretrained(altdiffusion[form], device="cpu"))
    assert expected.std() > 0.01
    assert np.abs(draw(pipeline) - expected).max() < 1e-4


def test_the_pipeline_lies_in_the_storage_of_its_altclip(clips, altdiffusion):
    clip = clips["m9"]
    pipeline = AltDiffusionPipeline.from_altclip(clip, altdiffusion["m9"])
    assert pipeline.altclip is clip
    ours = {parameter.data_ptr() for parameter in clip.model.text_model.parameters()}
    apart = [p for p in pipeline.text_encoder.parameters() if p.data_ptr() not in ours]
    assert sum(p.numel() * p.element_size() for p in apart) < 2**20
    assert len(apart) == 2
    sister = AltDiffusionImg2ImgPipeline.from_pipe(pipeline)
    assert sister.altclip is clip


def test_prompts_are_encoded_to_77_tokens_and_the_altclips_own_limit_stays(clips, altdiffusion):
    pipeline = AltDiffusionPipeline.from_altclip(clips["m9"], altdiffusion["m9"])
    assert clips["m9"].tokenizer.model_max_length == 512
    assert pipeline.encode_prompt("a red cat", "cpu", 1, False)[0].shape[1] == 77


@pytest.mark.parametrize("form", ["m9", "m18"])
def test_a_saved_pipeline_gives_its_altclip_back_on_its_own_parameters(clips, altdiffusion, tmp_path, form):
    clip = clips[form]
    AltDiffusionPipeline.from_altclip(clip, altdiffusion[form]).save_pretrained(tmp_path)
    pipeline = AltDiffusionPipeline.from_pretrained(tmp_path, device="cpu")
    back = pipeline.altclip
    assert back.form == AltCLIP.from_pretrained(tmp_path, device="cpu").form == form
    assert_close(back.encode_text(["a red cat", ""]), clip.encode_text(["a red cat", ""]), rtol=0, atol=1e-6)
    ours = {parameter.data_ptr() for parameter in pipeline.text_encoder.parameters()}
    shared = [name for name, p in back.model.text_model.named_parameters() if p.data_ptr() in ours]
    assert "roberta.embeddings.word_embeddings.weight" in shared
    again = AltDiffusionPipeline.from_altclip(back, pipeline)
    assert np.array_equal(draw(again), draw(pipeline))


def test_a_training_checkpoint_gives_its_altclip_back(tmp_path):
    pipeline = AltDiffusionPipeline.from_pretrained(write("D", tmp_path, "m18"), device="cpu")
    clip = pipeline.altclip
    assert clip.form == "m18"
    assert clip.generation_head["weight"].data_ptr() == pipeline.text_encoder.transformation.weight.data_ptr()


def test_a_model_without_a_vision_tower_has_no_altclip_to_give(altdiffusion):
    pipeline = AltDiffusionPipeline.from_pretrained(altdiffusion["m9"], device="cpu")
    with pytest.raises(ValueError, match=r"^model: .* no vision tower; allowed: "):
        _ = pipeline.altclip


def test_a_pipeline_of_parts_says_that_it_has_no_altclip(shared_pipeline):
    pipeline = AltDiffusionPipeline(**shared_pipeline.components, requires_safety_checker=False)
    with pytest.raises(ValueError, match=r"^altclip: the pipeline was put together from parts; allowed: "):
        _ = pipeline.altclip


def test_a_plain_folder_gives_its_own_parts_and_keeps_its_safety_checker(clips, plain):
    pipeline = AltDiffusionPipeline.from_altclip(clips["m9"], plain)
    unet = UNet2DConditionModel.from_pretrained(plain / "unet")
    for name, value in unet.state_dict().items():
        assert torch.equal(pipeline.unet.state_dict()[name], value), name
    assert type(pipeline.scheduler).__name__ == "PNDMScheduler"
    assert pipeline.safety_checker is not None
    assert draw(pipeline).shape == (1, 16, 16, 3)


@pytest.mark.parametrize("name", ["sd.safetensors", "sd.ckpt"])
def test_a_community_file_gives_the_parts_that_the_same_weights_give_as_altdiffusion(clips, tmp_path, name):
    grafted = AltDiffusionPipeline.from_altclip(clips["m9"], plain_file(tmp_path, name=name))
    ours = AltDiffusionPipeline.from_altclip(clips["m9"], write("C", tmp_path / "c", "m9"))
    assert np.array_equal(draw(grafted), draw(ours))


def test_a_file_of_stable_diffusion_2_is_asked_what_its_unet_predicts(clips, tmp_path):
    file = plain_file(tmp_path, "m18", start="model.ln_final")
    found = "does not say what its UNet predicts; allowed: prediction_type='epsilon'"
    with pytest.raises(ValueError, match=found):
        AltDiffusionPipeline.from_altclip(clips["m18"], file)
    pipeline = AltDiffusionPipeline.from_altclip(clips["m18"], file, prediction_type="v_prediction")
    assert pipeline.scheduler.config.prediction_type == "v_prediction"


def test_the_yaml_beside_a_file_of_stable_diffusion_2_tells(clips, tmp_path):
    file = plain_file(tmp_path, "m18", start="model.ln_final")
    yaml = (
        "model:\n  params:\n    parameterization: v\n    unet_config:\n      params: {num_head_channels: 8}\n"
    )
    file.with_suffix(".yaml").write_text(yaml, encoding="utf-8")
    pipeline = AltDiffusionPipeline.from_altclip(clips["m18"], file)
    assert pipeline.scheduler.config.prediction_type == "v_prediction"


def test_a_loaded_pipeline_shares_its_unet_and_vae(clips, plain):
    stock = StableDiffusionPipeline.from_pretrained(plain)
    pipeline = AltDiffusionPipeline.from_altclip(clips["m9"], stock)
    assert pipeline.unet is stock.unet
    assert pipeline.vae is stock.vae
    with pytest.raises(ValueError, match=r"^prediction_type: 'epsilon' for a loaded pipeline; "):
        AltDiffusionPipeline.from_altclip(clips["m9"], stock, prediction_type="epsilon")


@pytest.mark.parametrize("made_of", ["folder", "file", "altdiffusion", "pipeline"])
def test_another_width_is_refused_in_one_line_with_both_numbers(clips, plain, tmp_path, made_of):
    makers = {
        "folder": lambda: plain,
        "file": lambda: plain_file(tmp_path),
        "altdiffusion": lambda: write("C", tmp_path, "m9"),
        "pipeline": lambda: StableDiffusionPipeline.from_pretrained(plain),
    }
    with pytest.raises(ValueError, match=r"^stable_diffusion: .* takes 24 values a token; .*: 32$"):
        AltDiffusionPipeline.from_altclip(clips["m18"], makers[made_of]())


def test_stable_diffusion_xl_is_refused_by_name(clips, tmp_path):
    index = {"_class_name": "StableDiffusionXLPipeline", "text_encoder_2": ["transformers", "CLIPTextModel"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(ValueError, match="is 'StableDiffusionXLPipeline'; allowed: Stable Diffusion 1 or 2"):
        AltDiffusionPipeline.from_altclip(clips["m9"], tmp_path)
    tensors = ldm_tensors("m9") | {"conditioner.embedders.0.transformer.weight": torch.ones(1)}
    save_file({key: value.contiguous() for key, value in tensors.items()}, tmp_path / "xl.safetensors")
    with pytest.raises(ValueError, match="is Stable Diffusion XL; allowed: Stable Diffusion 1 or 2"):
        AltDiffusionPipeline.from_altclip(clips["m9"], tmp_path / "xl.safetensors")


def test_an_altclip_is_no_stable_diffusion(clips, tmp_path):
    with pytest.raises(ValueError, match="is an AltCLIP model; allowed: Stable Diffusion 1 or 2"):
        AltDiffusionPipeline.from_altclip(clips["m9"], write("A", tmp_path, "m9"))


def test_a_pipeline_of_another_dtype_is_refused_and_not_cast(clips, plain):
    stock = StableDiffusionPipeline.from_pretrained(plain, dtype=torch.bfloat16)
    found = r"^stable_diffusion: its UNet is .*bfloat16.*; allowed with this AltCLIP: "
    with pytest.raises(ValueError, match=found):
        AltDiffusionPipeline.from_altclip(clips["m9"], stock)
    assert stock.unet.dtype is torch.bfloat16


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"prediction_type": "x0"}, "^prediction_type: 'x0' is none; "),
        ({"form": "m2"}, "^form: 'm2' is none; "),
    ],
)
def test_arguments_are_checked_before_anything_is_read(clips, argument, message):
    with pytest.raises(ValueError, match=message):
        AltDiffusionPipeline.from_altclip(clips["m9"], "no/such", **argument)


def test_what_is_saved_names_both_halves_and_the_terms_of_the_weights(clips, altdiffusion, tmp_path):
    pipeline = AltDiffusionPipeline.from_altclip(clips["m18"], altdiffusion["m18"])
    pipeline.save_pretrained(tmp_path / "saved")
    card = (tmp_path / "saved/README.md").read_text(encoding="utf-8")
    assert "license: creativeml-openrail-m" in card
    assert "**Base model:** BAAI/AltCLIP-m18 and m18." in card
