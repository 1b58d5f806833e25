import json
import logging
import shutil
import warnings

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, EulerDiscreteScheduler
from PIL import Image

from altdiffusion import bundled
from altdiffusion.checkpoints import quiet
from altdiffusion.generation import generate
from altdiffusion.model import AltCLIP
from altdiffusion.pipelines import AltDiffusionImg2ImgPipeline, AltDiffusionPipeline, GenerationDefaults
from altdiffusion.requests import Addition, GenerateRequest
from tests.fakes import COVERED, SENTENCES, tiny_unet, tiny_vae

START = Image.effect_mandelbrot((64, 64), (-2, -1.5, 1, 1.5), 50).convert("RGB")


def load(folder, kind=AltDiffusionPipeline, **arguments):
    pipeline = kind.from_pretrained(folder, device="cpu", **arguments)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator("cpu").manual_seed(seed) for seed in seeds]


def draw(pipeline, prompt="a red cat", seeds=(0,), **arguments) -> np.ndarray:
    arguments = {"num_inference_steps": 4, "guidance_scale": 3.0, "output_type": "np"} | arguments
    return pipeline(prompt, generator=seeded(*seeds), **arguments).images


def test_the_same_seed_draws_the_same_bits(shared_pipeline, shared_folder):
    first = draw(shared_pipeline)
    assert np.array_equal(draw(shared_pipeline), first)
    assert np.array_equal(draw(load(shared_folder)), first)
    assert not np.array_equal(draw(shared_pipeline, seeds=(1,)), first)


def test_a_batch_of_four_is_four_singles(shared_pipeline):
    prompts = [SENTENCES[tag] for tag in ("en", "ja", "th", "ar")]
    batch = draw(shared_pipeline, prompts, seeds=range(4))
    singles = [draw(shared_pipeline, [prompt], (seed,))[0] for seed, prompt in enumerate(prompts)]
    assert np.abs(batch - np.stack(singles)).max() < 1e-4


def test_image_to_image_in_a_batch_of_four_is_four_singles(shared_pipeline):
    pipeline = shared_pipeline.to_image_to_image()
    prompts = [SENTENCES[tag] for tag in ("en", "ja", "th", "ar")]
    batch = draw(pipeline, prompts, range(4), image=[START] * 4, strength=0.75)
    singles = [draw(pipeline, [p], (seed,), image=START, strength=0.75)[0] for seed, p in enumerate(prompts)]
    assert np.abs(batch - np.stack(singles)).max() < 1e-4


def test_image_to_image_follows_its_picture_and_its_strength(shared_pipeline):
    pipeline = shared_pipeline.to_image_to_image()
    other = Image.new("RGB", (64, 64), "red")
    weak, strong = (draw(pipeline, image=START, strength=strength) for strength in (0.25, 1.0))
    assert np.abs(weak - draw(pipeline, image=other, strength=0.25)).max() > 0.01
    assert np.abs(weak - strong).max() > 0.01


def test_what_is_saved_loads_and_draws_the_same(shared_pipeline, tmp_path):
    shared_pipeline.save_pretrained(tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert np.array_equal(draw(again), draw(shared_pipeline))
    assert again.fingerprint == shared_pipeline.fingerprint
    assert again.generation_defaults == shared_pipeline.generation_defaults
    clips = [AltCLIP.from_pretrained(pipeline.altclip_folder) for pipeline in (again, shared_pipeline)]
    assert clips[0].fingerprint == clips[1].fingerprint


def test_what_is_saved_is_whole_stock_and_tells_no_paths(shared_pipeline, shared_folder, tmp_path):
    shared_pipeline.save_pretrained(tmp_path / "saved", max_shard_size="200KB")
    bundled.verify(tmp_path / "saved")
    assert bundled.card(tmp_path / "saved")["covered"] == COVERED
    index = json.loads((tmp_path / "saved/model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionPipeline"
    assert index["text_encoder"] == ["transformers", "AltCLIPTextModel"]
    assert json.loads((tmp_path / "saved/text_encoder/config.json").read_text())["use_attention_mask"] is True
    assert len(list((tmp_path / "saved/unet").glob("*.safetensors"))) > 1
    texts = [file.read_text("utf-8") for file in (tmp_path / "saved").rglob("*.json")]
    assert not [text for text in texts if str(tmp_path) in text or str(shared_folder) in text]


def test_a_model_that_is_saved_over_another_is_the_one_that_loads(shared_pipeline, tmp_path):
    other = AltDiffusionPipeline.from_pipe(shared_pipeline, unet=tiny_unet())
    other.save_pretrained(tmp_path, max_shard_size="200KB")
    other.save_pretrained(tmp_path, variant="fp16")
    for size in ("10GB", "100KB", "200KB"):  # one file, more shards, fewer
        shared_pipeline.save_pretrained(tmp_path, max_shard_size=size)
        assert load(tmp_path).fingerprint == shared_pipeline.fingerprint
        assert load(tmp_path, variant="fp16").fingerprint == other.fingerprint
        bundled.verify(tmp_path)


def test_saving_leaves_a_readme_and_a_licence_that_lie_there_and_brings_its_own_card(
    model_folder, shared_pipeline, tmp_path
):
    saved = tmp_path / "saved"
    saved.mkdir()
    for folder, text in ((model_folder, "the model's"), (saved, "mine")):
        for name in ("README.md", "LICENSE", bundled.CARD):
            if name != bundled.CARD or folder is saved:
                (folder / name).write_text(text)
    load(model_folder).save_pretrained(saved)
    assert [(saved / name).read_text() for name in ("README.md", "LICENSE")] == ["mine", "mine"]
    assert bundled.card(saved)["covered"] == COVERED


def test_image_to_image_is_saved_under_its_stock_name(shared_pipeline, tmp_path):
    shared_pipeline.to_image_to_image().save_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["_class_name"] == (
        "StableDiffusionImg2ImgPipeline"
    )
    pipeline = load(tmp_path, AltDiffusionImg2ImgPipeline)
    ours = draw(shared_pipeline.to_image_to_image(), image=START)
    assert np.array_equal(draw(pipeline, image=START), ours)
    assert np.array_equal(draw(load(tmp_path)), draw(shared_pipeline))


def test_a_pipeline_built_by_hand_saves_a_card_and_can_be_loaded(shared_pipeline, tmp_path):
    built = AltDiffusionPipeline(**shared_pipeline.components)
    assert built.source == "unsaved"
    assert built.altclip_folder is None
    assert built.generation_defaults == GenerationDefaults(50, 7.5, 64, 64, None)
    built.save_pretrained(tmp_path)
    assert "library_name: diffusers" in (tmp_path / "README.md").read_text()
    assert load(tmp_path).fingerprint == shared_pipeline.fingerprint


def test_defaults_and_source_are_those_of_the_model(shared_pipeline, shared_folder):
    assert shared_pipeline.source == shared_folder
    assert shared_pipeline.altclip_folder == shared_folder / "altclip"
    assert shared_pipeline.generation_defaults == GenerationDefaults(4, 3.0, 64, 64, "dpm++")
    sister = shared_pipeline.to_image_to_image()
    assert sister.generation_defaults == shared_pipeline.generation_defaults
    assert sister.source == shared_folder
    assert sister.to_image_to_image() is sister
    assert isinstance(sister.to_text_to_image(), AltDiffusionPipeline)


def test_sisters_share_every_part(shared_pipeline):
    sister = shared_pipeline.to_image_to_image()
    for name in ("unet", "vae", "text_encoder", "tokenizer", "scheduler"):
        assert getattr(sister, name) is getattr(shared_pipeline, name)


def test_a_sister_s_pictures_tell_what_lies_over_the_model(shared_pipeline):
    pipeline = AltDiffusionPipeline.from_pipe(shared_pipeline)
    pipeline.additions = ((Addition("cats.safetensors", "0" * 64, 0.8),), ())
    for sister in (pipeline.to_image_to_image(), pipeline.to_image_to_image().to_text_to_image()):
        assert sister.additions == pipeline.additions
    request = GenerateRequest.build(prompt="a cat", seed=7, steps=2)
    (picture,) = generate(sister, request)
    assert picture.provenance.loras == pipeline.additions[0]
    assert shared_pipeline.additions == ((), ())


def test_a_sister_of_mixed_formats_leaves_them_as_they_are(shared_folder):
    pipeline = load(shared_folder, vae=tiny_vae().to(torch.float64))
    sister = pipeline.to_image_to_image()
    assert (sister.vae.dtype, sister.unet.dtype) == (torch.float64, torch.float32)


def test_parts_may_be_replaced(shared_folder):
    pipeline = load(shared_folder)
    scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    assert load(shared_folder, scheduler=scheduler).scheduler is scheduler
    other = load(shared_folder, unet=tiny_unet())
    assert other.fingerprint != pipeline.fingerprint
    pipeline.scheduler = EulerDiscreteScheduler.from_config(pipeline.scheduler.config)
    assert np.isfinite(draw(pipeline)).all()


def test_the_fingerprint_follows_the_weights(shared_folder):
    pipeline = load(shared_folder)
    before = pipeline.fingerprint
    with torch.no_grad():
        pipeline.unet.conv_in.bias += 0.01
    assert pipeline.fingerprint != before


def test_a_prompt_that_is_too_long_draws_with_a_warning_that_names_the_lost_words(shared_pipeline):
    message = r"^prompt: too long by 2 tokens, left out: 'red cat'$"
    with pytest.warns(UserWarning, match=message):
        long = draw(shared_pipeline, "a " * 75 + "red cat")
    assert np.array_equal(long, draw(shared_pipeline, "a " * 75))


def test_dtype_may_be_asked_for_under_both_names(shared_folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a CPU without bfloat16 units says so
        for name in ("dtype", "torch_dtype"):
            pipeline = load(shared_folder, **{name: torch.bfloat16})
            assert {pipeline.unet.dtype, pipeline.vae.dtype, pipeline.text_encoder.dtype} == {torch.bfloat16}
    assert np.isfinite(draw(pipeline)).all()


def test_an_unknown_argument_is_refused_by_its_name(shared_folder):
    with pytest.raises(TypeError, match=r"^shceduler: not an argument of from_pretrained; allowed parts: "):
        load(shared_folder, shceduler=None)


def test_negative_prompts_that_do_not_match_are_refused(shared_pipeline):
    with pytest.raises(TypeError, match=r"^negative_prompt: 'no' is one text; allowed: a list"):
        draw(shared_pipeline, ["a", "b"], (0, 1), negative_prompt="no")
    with pytest.raises(ValueError, match=r"^negative_prompt: 1 texts; allowed: 2"):
        draw(shared_pipeline, ["a", "b"], (0, 1), negative_prompt=["no"])


@pytest.mark.parametrize("prompt", [[], [["a", "b"]], [None, "a"], "\ud800"])
def test_prompts_that_are_no_text_are_refused_by_name(shared_pipeline, prompt):
    with pytest.raises((ValueError, TypeError), match=r"^prompt: "):
        draw(shared_pipeline, prompt)


def test_an_altclip_folder_draws_nothing_and_says_so(shared_folder):
    with pytest.raises(ValueError, match=r"^model: .* is an AltCLIP model; allowed: a model that draws"):
        load(shared_folder / "altclip")


def test_parts_that_do_not_fit_together_are_refused(model_folder, tmp_path):
    tiny_unet(cross_attention_dim=48).save_pretrained(tmp_path / "unet")
    shutil.copytree(tmp_path / "unet", model_folder / "unet", dirs_exist_ok=True)
    with pytest.raises(ValueError, match=r"^model: .*gives 32 values a token; allowed by its UNet: 48"):
        load(model_folder)


@pytest.mark.parametrize("defaults", [{}, {"steps": 4}, None])
def test_a_card_without_proper_defaults_is_refused(model_folder, defaults):
    (model_folder / "emoji.json").write_text(json.dumps({"covered": [], "defaults": defaults}))
    with pytest.raises(ValueError, match=r"^model: .*emoji\.json' is damaged"):
        load(model_folder)


def test_loading_and_saving_say_nothing_on_the_terminal(shared_folder, tmp_path, capfd):
    load(shared_folder).save_pretrained(tmp_path)
    assert capfd.readouterr() == ("", "")


def test_loading_leaves_the_loggers_of_the_libraries_as_they_were(shared_folder):
    before = [logging.getLogger(name).level for name in ("diffusers", "transformers")]
    load(shared_folder)
    assert [logging.getLogger(name).level for name in ("diffusers", "transformers")] == before


def test_two_who_are_quiet_at_once_leave_the_loggers_as_they_were():
    from diffusers.utils import logging as library

    before = library.get_verbosity(), library.is_progress_bar_enabled()
    first, second = quiet(), quiet()
    first.__enter__()
    second.__enter__()  # another thread's, say
    first.__exit__(None, None, None)
    assert library.get_verbosity() == logging.ERROR
    second.__exit__(None, None, None)
    assert (library.get_verbosity(), library.is_progress_bar_enabled()) == before


def test_a_safety_checker_that_comes_with_a_model_is_loaded_strictly(model_folder):
    from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
    from transformers import CLIPConfig

    from tests.fakes import tiny_image_processor

    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(vision_config=vision | {"image_size": 32, "patch_size": 16}, projection_dim=8)
    pipeline = DiffusionPipeline.from_pretrained(
        str(model_folder),
        safety_checker=StableDiffusionSafetyChecker(config),
        feature_extractor=tiny_image_processor(),
        requires_safety_checker=True,
    )
    pipeline.save_pretrained(model_folder)
    loaded = load(model_folder)
    assert loaded.safety_checker is not None
    assert load(model_folder, safety_checker=None).safety_checker is None
    config_file = model_folder / "safety_checker/config.json"
    content = json.loads(config_file.read_text())
    content["vision_config"]["num_hidden_layers"] = 2
    config_file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"^model: .*safety_checker.* is missing, expected shape"):
        load(model_folder)
