"""What users add to a model: learned words (textual inversion) and pictures as prompts (IP-Adapter)."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.testing import assert_close
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from altdiffusion.pipelines import AltDiffusionPipeline
from tests.fakes import tiny_image_processor

START = Image.effect_mandelbrot((64, 64), (-2, -1.5, 1, 1.5), 50).convert("RGB")
OTHER = Image.radial_gradient("L").resize((64, 64)).convert("RGB")


def load(folder, **parts):
    pipeline = AltDiffusionPipeline.from_pretrained(folder, device="cpu", **parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(pipeline, prompt="a red cat", **arguments) -> np.ndarray:
    arguments = {"num_inference_steps": 3, "guidance_scale": 3.0, "output_type": "np"} | arguments
    return pipeline(prompt, generator=torch.Generator("cpu").manual_seed(0), **arguments).images


def apart(first, second) -> float:
    return float(np.abs(first - second).max())


def vectors(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 32, generator=torch.Generator().manual_seed(seed)) * 0.5


@pytest.fixture
def pipeline(shared_folder):
    return load(shared_folder)


def test_a_learned_word_with_the_vector_of_a_known_one_draws_the_same(pipeline):
    known = pipeline.tokenizer.convert_tokens_to_ids("▁cat")
    vector = pipeline.text_encoder.get_input_embeddings().weight[known].detach().clone()
    plain = draw(pipeline, "a red cat")
    pipeline.load_textual_inversion({"<felix>": vector})
    assert apart(draw(pipeline, "a red <felix>"), plain) < 1e-5
    assert apart(draw(pipeline, "a cat", negative_prompt="<felix>"), plain) > 1e-5
    assert np.array_equal(draw(pipeline, "a red cat"), plain)


def test_a_learned_word_of_several_vectors_takes_several_tokens_and_one_weight(pipeline, tmp_path):
    save_file({"<blob>": vectors(3)}, tmp_path / "learned_embeds.safetensors")
    pipeline.load_textual_inversion(tmp_path)
    spelt = pipeline.tokenizer("a <blob> <blob>_1 <blob>_2", return_tensors="pt")
    assert spelt.input_ids.shape == (1, 6)
    with torch.no_grad():
        states = pipeline.text_encoder(**spelt).last_hidden_state
    plain, _ = pipeline.embed_prompts("a <blob>")
    assert_close(plain[:, :6], states, rtol=0, atol=1e-5)
    heavy, _ = pipeline.embed_prompts("a (<blob>:1.5)")
    assert (heavy - plain).abs().amax(dim=2)[0].nonzero()[:, 0].tolist() == [2, 3, 4]


def test_learned_words_are_saved_with_the_model_and_unloaded(pipeline, tmp_path):
    plain = draw(pipeline)
    pipeline.load_textual_inversion({"<blob>": vectors(2)})
    first = draw(pipeline, "a <blob>")
    assert apart(first, plain) > 1e-4
    pipeline.save_pretrained(tmp_path)
    assert np.array_equal(draw(load(tmp_path), "a <blob>"), first)
    pipeline.unload_textual_inversion()
    assert "<blob>" not in pipeline.tokenizer.get_vocab()
    assert np.array_equal(draw(pipeline), plain)


def test_a_vector_of_another_width_is_refused(pipeline):
    with pytest.raises(ValueError, match="incorrect shape"):
        pipeline.load_textual_inversion({"<blob>": torch.ones(48)})


def tiny_image_encoder() -> CLIPVisionModelWithProjection:
    config = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=16,
        projection_dim=12,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return CLIPVisionModelWithProjection(config).eval()


def tiny_ip_adapter(unet) -> dict:
    """Random, in the published layout: keys and values for each cross-attention, and four image tokens."""
    draws = torch.Generator().manual_seed(1)
    attentions = {}
    for number, name in enumerate(unet.attn_processors):
        if name.endswith("attn2.processor"):
            layer = unet.get_submodule(name.removesuffix(".processor"))
            for kind in ("to_k", "to_v"):
                shape = getattr(layer, kind).weight.shape
                attentions[f"{number}.{kind}_ip.weight"] = torch.randn(shape, generator=draws) * 0.3
    projection = {
        "proj.weight": torch.randn(4 * 32, 12, generator=draws),
        "proj.bias": torch.zeros(4 * 32),
        "norm.weight": torch.ones(32),
        "norm.bias": torch.zeros(32),
    }
    return {"image_proj": projection, "ip_adapter": attentions}


def test_an_ip_adapter_at_scale_nought_is_none_and_follows_its_picture_above(shared_folder, tmp_path):
    plain = draw(load(shared_folder))
    parts = {"image_encoder": tiny_image_encoder(), "feature_extractor": tiny_image_processor()}
    pipeline = load(shared_folder, **parts)
    pipeline.load_ip_adapter(tiny_ip_adapter(pipeline.unet), subfolder="", weight_name="")
    pipeline.set_ip_adapter_scale(0.0)
    # An IP-Adapter keeps all 77 keys, where `plain` has compact ones (altdiffusion.keys): exact to rounding.
    assert apart(draw(pipeline, ip_adapter_image=START), plain) < 1e-5
    pipeline.set_ip_adapter_scale(1.0)
    first = draw(pipeline, ip_adapter_image=START)
    assert apart(first, plain) > 1e-3
    assert apart(first, draw(pipeline, ip_adapter_image=OTHER)) > 1e-5
    assert apart(first, draw(pipeline, "🦞", ip_adapter_image=START)) > 1e-4
    sister = pipeline.to_image_to_image()
    assert (
        apart(
            draw(sister, image=START, ip_adapter_image=START),
            draw(sister, image=START, ip_adapter_image=OTHER),
        )
        > 1e-6
    )
    pipeline.unload_ip_adapter()
    assert apart(draw(pipeline), plain) < 1e-6
