"""The converted stock tower against diffusers' `RobertaSeriesModelWithTransformation`, both heads.

Tolerance 1e-5 in float32: an m18 tower differs by nothing, an m9 tower by the rounding of one more LayerNorm.
"""

import pytest
import torch
from diffusers.pipelines.deprecated.alt_diffusion.modeling_roberta_series import (
    RobertaSeriesConfig,
    RobertaSeriesModelWithTransformation,
)
from torch.testing import assert_close
from transformers import AltCLIPTextConfig, AltCLIPTextModel

from altdiffusion import towers
from altdiffusion.conditioning import encode_prompts
from tests.fakes import SENTENCES, roughen, tiny_tokenizer

TEXTS = [*SENTENCES.values(), "", "a " * 200]


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="module", params=["m9", "m18"])
def towers_of_a_form(request, tokenizer):
    """The published class with non-trivial weights, and what we make of its state and configuration."""
    config = RobertaSeriesConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=82,
        layer_norm_eps=1e-5,
        type_vocab_size=1,
        project_dim=48,
        has_pre_transformation=request.param == "m18",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        published = roughen(RobertaSeriesModelWithTransformation(config))
    state, form = published.state_dict(), request.param
    assert towers.form_of(state, config.to_dict()) == form
    stock = AltCLIPTextModel(AltCLIPTextConfig(**towers.stock_config(config.to_dict(), form))).eval()
    stock.load_state_dict(towers.to_stock(state, form), strict=True)
    return published, stock


@torch.no_grad()
def test_the_converted_tower_gives_the_published_conditioning(towers_of_a_form, tokenizer):
    published, stock = towers_of_a_form
    inputs = tokenizer(TEXTS, padding="max_length", truncation=True, max_length=77, return_tensors="pt")
    expected = published(inputs.input_ids, attention_mask=inputs.attention_mask, return_dict=True)[0]
    assert expected.abs().mean() > 0.1
    ours = stock(inputs.input_ids, attention_mask=inputs.attention_mask)[0]
    assert_close(ours, expected, rtol=0, atol=1e-5)
    assert_close(encode_prompts(stock, tokenizer, TEXTS), expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_only_renamed_the_tower_would_give_another_conditioning(towers_of_a_form, tokenizer):
    """Otherwise the test above would pass for a conversion that moves nothing."""
    published, _ = towers_of_a_form
    config = AltCLIPTextConfig(**towers.stock_config(published.config.to_dict(), "own"))
    renamed = roughen(AltCLIPTextModel(config))
    state = towers.to_stock(published.state_dict(), "own")
    renamed.load_state_dict(
        {name: state[name] for name in renamed.state_dict() if name in state}, strict=False
    )
    inputs = tokenizer(TEXTS[:2], padding=True, return_tensors="pt")
    expected = published(**inputs, return_dict=True)[0]
    assert (renamed(**inputs)[0] - expected).abs().max() > 0.05
