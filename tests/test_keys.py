"""Compact keys: what 77 keys give, from 8 or 16, made once a prompt."""

import math
from itertools import pairwise

import pytest
import torch
from diffusers.models.attention_processor import Attention
from peft import LoraConfig
from torch.testing import assert_close

from altdiffusion.keys import compact_keys, has_keys, keys_once
from altdiffusion.pipelines import AltDiffusionPipeline
from altdiffusion.shortcuts import shortened
from tests.fakes import SENTENCES, roughen, tiny_unet


def padded(*lengths: int, dim: int = 32, seed: int = 0) -> torch.Tensor:
    """(prompts, 77, dim): as many words of each, then one row again and again."""
    states = torch.randn(len(lengths), 77, dim, generator=torch.Generator().manual_seed(seed))
    for row, length in zip(states, lengths, strict=True):
        row[length:] = row[-1].clone()
    return states


@pytest.fixture
def unet():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return roughen(tiny_unet())


def output(unet, states, dtype=torch.float32):
    sample = torch.randn(len(states), 4, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return unet(sample.to(dtype), 500, states.to(dtype)).sample.float()


@pytest.mark.parametrize("lengths", [(3, 13), (2,), (60, 3, 20), (77, 5), (70,), (1,)])
def test_compact_keys_are_the_padded_ones_to_rounding(unet, lengths):
    states = padded(*lengths)
    with keys_once(unet):
        found = output(unet, states)
    assert_close(found, output(unet, states), rtol=0, atol=5e-6)


def test_the_bundled_models_keys_too():
    pipeline = AltDiffusionPipeline.from_pretrained()
    states = torch.cat(pipeline.embed_prompts([SENTENCES["th"], "a (red:1.3) lobster"])[::-1])
    sample = torch.randn(4, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    assert compact_keys(states)[0].shape[1] < 40
    with torch.no_grad():
        expected = pipeline.unet(sample, 500, states).sample
        with keys_once(pipeline.unet):
            found = pipeline.unet(sample, 500, states).sample
    assert (found - expected).abs().max() < 5e-6 * expected.abs().max()  # which is above 3


def test_in_bfloat16_they_are_no_further_from_float32_than_the_padded_ones(unet):
    states = padded(3, 13).bfloat16().float()
    unet.to(torch.bfloat16).float()  # weights that bfloat16 has
    exact = output(unet, states)
    unet.to(torch.bfloat16)
    plain = output(unet, states, torch.bfloat16)
    with keys_once(unet):
        compact = output(unet, states, torch.bfloat16)
    assert (compact - exact).norm() < 1.1 * (plain - exact).norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("length", [1, 6, 13, 61])
def test_the_last_two_keys_count_as_all_padding(length, dtype):
    found = compact_keys(padded(length).to(dtype))
    assert found is not None
    states, bias = found
    assert states.shape[1] % 8 == 0
    assert (states.shape[1] == bias.shape[2]) and length + 2 <= states.shape[1] < length + 10
    padding = 77 - length
    assert math.isclose(bias[0, 0, length:].double().exp().sum(), padding, rel_tol=2e-4)
    assert not bias[0, 0, :length].any()


def test_without_padding_there_is_nothing_to_leave_out():
    assert compact_keys(padded(77)) is None
    assert compact_keys(padded(3, 75)) is None


def test_keys_are_made_once_for_each_prompt(unet, monkeypatch):
    made = []
    for module in unet.modules():
        if isinstance(module, Attention) and module.is_cross_attention:
            forward = module.to_k.forward
            monkeypatch.setattr(
                module.to_k, "forward", lambda x, forward=forward: made.append(len(x[0])) or forward(x)
            )
    states, others = padded(3, 13), padded(3, 13, seed=2)
    with keys_once(unet):
        first = output(unet, states)
        layers = len(made)
        assert torch.equal(output(unet, states), first)
        assert len(made) == layers > 0
        assert not torch.equal(output(unet, others), first)
        assert len(made) == 2 * layers
    assert set(made) == {16}


def test_what_changes_within_a_call_is_seen(unet):
    """A callback may write to a prompt, to the weights, or set the scale of a LoRA."""
    unet.add_adapter(LoraConfig(r=2, target_modules=["attn2.to_k"], init_lora_weights=False))
    states, seen = padded(3, 13), []
    with keys_once(unet), torch.no_grad():
        for change in (
            lambda: None,
            lambda: unet.set_adapters("default", 3.0),
            lambda: states.mul_(2),
            lambda: unet.up_blocks[0].attentions[0].transformer_blocks[0].attn2.to_v.weight.mul_(2),
        ):
            change()
            seen.append(output(unet, states))
    assert all((one - other).abs().max() > 1e-4 for one, other in pairwise(seen))
    assert_close(seen[-1], output(unet, states), rtol=0, atol=1e-5)


def test_nothing_stays_behind(unet):
    before = {name: set(module.__dict__) for name, module in unet.named_modules()}
    with pytest.raises(InterruptedError), keys_once(unet):
        raise InterruptedError
    for name, module in unet.named_modules():
        assert set(module.__dict__) == before[name] and not module._forward_pre_hooks


def test_compiled_modules_are_left_alone(unet):
    assert has_keys(unet)
    unet.mid_block.compile(backend="eager")
    assert not has_keys(unet)
    assert not has_keys(object())


def test_pipelines_use_them_where_they_gain_and_take_no_for_an_answer(shared_folder, stock_pipeline):
    pipeline = AltDiffusionPipeline.from_pretrained(shared_folder, device="cpu")
    pipeline.set_progress_bar_config(disable=True)
    widths: list[int] = []
    attention = pipeline.unet.mid_block.attentions[0].transformer_blocks[0].attn2
    attention.to_k.register_forward_hook(lambda layer, inputs, output: widths.append(output.shape[1]))

    def draw(runner):
        arguments = {"num_inference_steps": 3, "guidance_scale": 3.0, "output_type": "latent"}
        return runner("a red cat", generator=torch.Generator().manual_seed(0), **arguments).images

    expected = draw(stock_pipeline)
    assert (draw(pipeline) - expected).abs().max() < 1e-4
    assert set(widths) == {8}
    with shortened(pipeline, guided=0.5):
        draw(pipeline)
    assert set(widths) == {8}
    pipeline.compact_keys = False
    widths.clear()
    assert (draw(pipeline) - expected).abs().max() < 1e-4
    assert set(widths) == {77}
    assert pipeline.to_image_to_image().compact_keys is False
