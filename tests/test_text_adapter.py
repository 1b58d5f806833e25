"""A small net between the text tower and a UNet that stays as it is."""

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from PIL import Image
from torch.testing import assert_close

from altdiffusion import AltCLIP, AltDiffusionControlNetPipeline, AltDiffusionPipeline, text_adapter
from altdiffusion.conditioning import encode_prompts
from altdiffusion.layouts import detect, read
from altdiffusion.text_adapter import TextAdapter
from altdiffusion.writing import save_stock
from tests.fakes import (
    roughen,
    tiny_altclip_folder,
    tiny_controlnet,
    tiny_pipeline_folder,
    tiny_stock_pipeline,
    tiny_unet,
)

FEW = {"num_inference_steps": 2, "output_type": "np", "width": 32, "height": 32}


def adapter(out_dim: int = 32, hidden_layers: int = 2, seed: int = 1) -> TextAdapter:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return roughen(TextAdapter(32, out_dim, 16, hidden_layers))


def draw(pipeline, prompt: str = "a red lobster"):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(prompt, generator=torch.Generator().manual_seed(0), **FEW).images


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> AltCLIP:
    return AltCLIP.from_pretrained(tiny_altclip_folder(tmp_path_factory.mktemp("clip")), device="cpu")


@pytest.fixture(scope="module")
def other(tmp_path_factory) -> Path:
    """A Stable Diffusion whose UNet takes 24 values a token."""
    folder = tiny_pipeline_folder(tmp_path_factory.mktemp("other") / "sd")
    shutil.rmtree(folder / "altclip")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        tiny_unet(24).save_pretrained(folder / "unet")
    index = json.loads((folder / "model_index.json").read_text())
    index["text_encoder"] = ["transformers", "CLIPTextModel"]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def test_a_new_adapter_of_equal_widths_changes_nothing():
    states = torch.randn(2, 5, 32)
    assert_close(TextAdapter(32, 32, 16)(states), states)


def test_least_squares_finds_a_linear_map_and_its_shift():
    states = torch.randn(200, 32)
    matrix, shift = torch.randn(32, 24), torch.randn(24)
    found = TextAdapter(32, 24, hidden_layers=0)
    assert found.fit(states, states @ matrix + shift, ridge=1e-9) > 0.9999
    assert_close(found(states[None])[0], states @ matrix + shift, rtol=0, atol=1e-4)


def test_the_tower_gives_what_the_adapter_makes_of_its_states(clip):
    pipeline = AltDiffusionPipeline.from_altclip(clip, tiny_stock_pipeline())
    prompts = ["a red lobster", "กุ้งมังกร"]
    with torch.no_grad():
        before = encode_prompts(pipeline.text_encoder, pipeline.tokenizer, prompts)
        net = adapter()
        text_adapter.attach(pipeline.text_encoder, net)
        after = encode_prompts(pipeline.text_encoder, pipeline.tokenizer, prompts)
        assert_close(after, net(before))
        skipped = encode_prompts(pipeline.text_encoder, pipeline.tokenizer, prompts, clip_skip=1)
        copied = copy.deepcopy(pipeline.text_encoder)
        assert_close(encode_prompts(copied, pipeline.tokenizer, prompts), after)
        assert text_adapter.detach(pipeline.text_encoder) is net
        assert_close(encode_prompts(pipeline.text_encoder, pipeline.tokenizer, prompts), before)
        plain = encode_prompts(pipeline.text_encoder, pipeline.tokenizer, prompts, clip_skip=1)
        assert_close(skipped, net(plain))


def test_an_adapter_leaves_the_altclip_s_own_features_alone(clip):
    before = clip.encode_text("a lobster")
    pipeline = AltDiffusionPipeline.from_altclip(
        clip, tiny_stock_pipeline(), adapter=adapter(hidden_layers=0)
    )
    assert_close(clip.encode_text("a lobster"), before)
    text_adapter.fold(pipeline.text_encoder)
    assert_close(clip.encode_text("a lobster"), before)


@pytest.mark.parametrize("form", ["m9", "m18", "own"])
@pytest.mark.parametrize("out_dim", [16, 24])
def test_a_linear_adapter_folds_exactly_in_every_form(form, out_dim, published, clip):
    if form == "own":
        pipeline = AltDiffusionPipeline.from_altclip(clip, tiny_stock_pipeline())
    else:
        pipeline = AltDiffusionPipeline.from_pretrained(published("B", form), device="cpu")
    tower = pipeline.text_encoder
    net = roughen(TextAdapter(tower.config.project_dim, out_dim, hidden_layers=0))
    text_adapter.attach(tower, net)
    with torch.no_grad():
        carried = encode_prompts(tower, pipeline.tokenizer, "a red cat")
        text_adapter.fold(tower)
        folded = encode_prompts(tower, pipeline.tokenizer, "a red cat")
    assert text_adapter.adapter_of(tower) is None and tower.config.project_dim == out_dim
    assert_close(folded, carried, rtol=1e-5, atol=1e-5)


def test_a_net_does_not_fold(clip):
    pipeline = AltDiffusionPipeline.from_altclip(clip, tiny_stock_pipeline(), adapter=adapter())
    with pytest.raises(ValueError, match=r"^adapter: the text encoder has an adapter of 2 layers; allowed"):
        text_adapter.fold(pipeline.text_encoder)


def test_an_adapter_of_another_width_is_refused(clip):
    with pytest.raises(ValueError, match=r"^adapter: it takes 31 values a token; allowed .*: 32$"):
        AltDiffusionPipeline.from_altclip(clip, tiny_stock_pipeline(), adapter=TextAdapter(31, 32))
    with pytest.raises(ValueError, match=r"takes 32 values a token; allowed with this AltCLIP: 24$"):
        AltDiffusionPipeline.from_altclip(clip, tiny_stock_pipeline(), adapter=adapter(24))


def test_one_altclip_drives_a_unet_of_another_width(clip, other, tmp_path):
    with pytest.raises(ValueError, match=r"has a UNet that takes 24 values a token"):
        AltDiffusionPipeline.from_altclip(clip, other)
    pipeline = AltDiffusionPipeline.from_altclip(clip, other, adapter=adapter(24))
    drawn = draw(pipeline)
    pipeline.save_pretrained(tmp_path / "model")
    again = AltDiffusionPipeline.from_pretrained(tmp_path / "model", device="cpu")
    assert_close(draw(again), drawn)
    adapter_alone = AltDiffusionPipeline.from_altclip(clip, other, adapter=tmp_path / "model" / "adapter")
    assert_close(draw(adapter_alone), drawn)


@pytest.mark.filterwarnings(
    "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"
)  # peft asks for it
def test_what_was_made_for_the_stable_diffusion_goes_on_fitting(clip, other, tmp_path):
    pipeline = AltDiffusionPipeline.from_altclip(clip, other, adapter=adapter(24))
    plain = draw(pipeline)
    pipeline.unet.add_adapter(LoraConfig(r=2, target_modules=["to_k", "to_v"], init_lora_weights=False))
    layers = get_peft_model_state_dict(pipeline.unet, save_embedding_layers=False)
    pipeline.save_lora_weights(tmp_path, unet_lora_layers=layers)
    pipeline.unet.delete_adapters("default")
    assert_close(draw(pipeline), plain)
    pipeline.load_lora_weights(tmp_path)
    assert not torch.allclose(torch.from_numpy(draw(pipeline)), torch.from_numpy(plain))
    pipeline.unload_lora_weights()
    net = tiny_controlnet(pipeline.unet)
    controlled = AltDiffusionControlNetPipeline.from_pipe(pipeline, controlnet=net)
    controlled.set_progress_bar_config(disable=True)
    guide = {"image": Image.new("RGB", (32, 32), "red"), **FEW}
    first = controlled("a cat", generator=torch.Generator().manual_seed(0), **guide).images
    positive, negative = pipeline.embed_prompts("a cat")
    assert positive.shape[-1] == 24
    embeds = {"prompt_embeds": positive, "negative_prompt_embeds": negative}
    again = controlled(**embeds, generator=torch.Generator().manual_seed(0), **guide).images
    assert_close(again, first, rtol=0, atol=1e-5)


def test_a_saved_pipeline_brings_its_adapter_and_stays_stock_besides(clip, tmp_path):
    pipeline = AltDiffusionPipeline.from_altclip(clip, tiny_stock_pipeline(), adapter=adapter())
    drawn, fingerprint = draw(pipeline), pipeline.fingerprint
    pipeline.save_pretrained(tmp_path / "model")
    assert text_adapter.adapter_of(pipeline.text_encoder) is not None  # taken off for saving alone
    assert (tmp_path / "model/adapter/config.json").is_file()
    manifest = json.loads((tmp_path / "model/manifest.json").read_text())
    assert any(name.startswith("adapter/") for name in manifest)
    again = AltDiffusionPipeline.from_pretrained(tmp_path / "model", device="cpu")
    assert_close(draw(again), drawn)
    assert again.fingerprint == fingerprint
    assert_close(draw(again.to_image_to_image().to_text_to_image()), drawn)
    assert_close(again.altclip.encode_text("a cat"), clip.encode_text("a cat"))
    stock = DiffusionPipeline.from_pretrained(tmp_path / "model")  # without the adapter, as it says there
    assert not torch.allclose(torch.from_numpy(draw(stock)), torch.from_numpy(drawn))
    text_adapter.detach(again.text_encoder)
    again.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model/adapter").exists()


def test_a_folded_pipeline_opens_with_plain_diffusers(clip, tmp_path):
    pipeline = AltDiffusionPipeline.from_altclip(
        clip, tiny_stock_pipeline(), adapter=adapter(hidden_layers=0)
    )
    drawn = draw(pipeline)
    text_adapter.fold(pipeline.text_encoder)
    pipeline.save_pretrained(tmp_path)
    stock = DiffusionPipeline.from_pretrained(tmp_path)
    assert_close(draw(stock), drawn, rtol=0, atol=1e-4)


def test_converting_refuses_to_lose_an_adapter(clip, tmp_path):
    pipeline = AltDiffusionPipeline.from_altclip(clip, tiny_stock_pipeline(), adapter=adapter())
    pipeline.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match=r"^model: .* has an adapter, for which stock models have no place"):
        save_stock(read(detect(tmp_path / "model")), tmp_path / "converted")


def test_a_folder_without_an_adapter_is_refused_as_one(tmp_path):
    with pytest.raises(ValueError, match=r"^model: .* holds no adapter; allowed"):
        text_adapter.load(tmp_path)


def test_an_adapter_with_a_tensor_missing_is_refused_by_name(tmp_path):
    from safetensors.torch import load_file, save_file

    adapter().save_pretrained(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    del tensors["linear.bias"]
    save_file(tensors, file)
    with pytest.raises(ValueError, match=r"linear\.bias"):
        text_adapter.load(tmp_path)
