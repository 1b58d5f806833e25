"""`altdiffusion.register()`: plain diffusers opens the published folders, and nothing else changes."""

import json
import sys
from types import ModuleType

import diffusers
import numpy as np
import pytest
import torch
import transformers
from diffusers import DiffusionPipeline
from transformers import AltCLIPTextModel

import altdiffusion
from altdiffusion.compat import RobertaSeriesModelWithTransformation
from tests.published import write

NAME = "RobertaSeriesModelWithTransformation"
PROMPT = {"num_inference_steps": 2, "guidance_scale": 3.0, "output_type": "np", "width": 16, "height": 16}


def forget():
    """Undoes `register`, which lasts as long as the process."""
    for module in (diffusers, sys.modules["transformers"]):
        vars(module).pop(NAME, None)
    sys.modules.pop("alt_diffusion", None)


@pytest.fixture
def registered():
    altdiffusion.register()
    yield
    forget()


def draw(pipeline) -> np.ndarray:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline("a red cat", generator=torch.Generator().manual_seed(0), **PROMPT).images


@pytest.mark.parametrize(
    ("form", "library", "pipeline"),
    [
        ("m9", "alt_diffusion", "AltDiffusionPipeline"),
        ("m18", "diffusers", "AltDiffusionPipeline"),
        ("m9", "transformers", "AltDiffusionImg2ImgPipeline"),
    ],
)
@pytest.mark.usefixtures("registered")
def test_plain_diffusers_opens_a_published_folder_and_saves_stock_classes(tmp_path, form, library, pipeline):
    folder = write("B", tmp_path / "source", form, library=library, pipeline=pipeline)
    opened = DiffusionPipeline.from_pretrained(str(folder))
    assert type(opened).__name__ == pipeline
    assert type(opened.text_encoder) is AltCLIPTextModel
    opened.save_pretrained(tmp_path / "saved")
    index = json.loads((tmp_path / "saved/model_index.json").read_text(encoding="utf-8"))
    assert index["text_encoder"] == ["transformers", "AltCLIPTextModel"]
    forget()
    again = DiffusionPipeline.from_pretrained(str(tmp_path / "saved"))
    assert torch.equal(again.text_encoder.pre_LN.weight, opened.text_encoder.pre_LN.weight)


@pytest.mark.parametrize("form", ["m9", "m18"])
@pytest.mark.usefixtures("registered")
def test_it_draws_what_our_own_pipeline_draws(tmp_path, form):
    folder = write("B", tmp_path, form, safety=False)
    ours = altdiffusion.AltDiffusionPipeline.from_pretrained(folder, device="cpu")
    theirs = DiffusionPipeline.from_pretrained(str(folder))
    assert np.abs(draw(theirs) - draw(ours)).max() < 1e-4


@pytest.mark.usefixtures("registered")
def test_variants_and_dtypes_are_read_as_diffusers_asks_for_them(tmp_path):
    folder = write("B", tmp_path, "m9", variant="fp16", safetensors=True, safety=False)
    opened = DiffusionPipeline.from_pretrained(str(folder), variant="fp16", dtype=torch.bfloat16)
    assert opened.text_encoder.dtype is torch.bfloat16


def test_without_it_plain_diffusers_refuses_the_folder(tmp_path):
    """Otherwise the tests above would pass for a `register` that does nothing."""
    with pytest.raises(ValueError, match="alt_diffusion is not one of the libraries"):
        DiffusionPipeline.from_pretrained(str(write("B", tmp_path, "m9")))


def test_a_second_call_and_names_that_are_taken_change_nothing(monkeypatch):
    taken = ModuleType("alt_diffusion")
    monkeypatch.setattr(taken, NAME, "taken", raising=False)
    monkeypatch.setitem(sys.modules, "alt_diffusion", taken)
    before = vars(diffusers).copy()
    altdiffusion.register()
    once = vars(diffusers).copy()
    altdiffusion.register()
    assert vars(diffusers) == once
    assert sys.modules["alt_diffusion"] is taken
    assert getattr(taken, NAME) == "taken"
    forget()
    assert vars(diffusers) == before
    assert not hasattr(transformers, NAME)


def test_a_tensor_that_is_missing_is_refused_by_name(tmp_path):
    folder = write("B", tmp_path, "m9") / "text_encoder"
    tensors = torch.load(folder / "pytorch_model.bin", weights_only=True)
    del tensors["transformation.bias"]
    torch.save(tensors, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"tensor 'transformation.bias' is missing, expected shape \(24,\)"):
        RobertaSeriesModelWithTransformation.from_pretrained(folder)
