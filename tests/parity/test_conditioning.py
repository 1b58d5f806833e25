"""The trimmed encode against the stock tower's padded one, on random weights with non-trivial LayerNorms.

Tolerance 1e-5 in float32: the same sums over fewer zeros, in another order.
"""

import pytest
import torch
from torch.testing import assert_close
from transformers import AltCLIPTextModel

from altdiffusion.conditioning import encode_prompts, encode_trimmed, expand
from tests.fakes import SENTENCES, padded_encode, tiny_text_config, tiny_tokenizer, tiny_tower

WIDE = {"hidden_size": 256, "num_attention_heads": 8, "intermediate_size": 512, "num_hidden_layers": 4}
TEXTS = [*SENTENCES.values(), "", "a " * 200, "🦞" * 74, "🦞" * 73]
EXACT = {"rtol": 0, "atol": 1e-5}


@pytest.fixture(scope="module", params=["tiny", "wide"])
def tower(request) -> AltCLIPTextModel:
    return tiny_tower() if request.param == "tiny" else tiny_tower(**WIDE, project_dim=128)


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def padded(tower, tokenizer):
    return padded_encode(tower, tokenizer, TEXTS)


@pytest.mark.parametrize("tag", SENTENCES)
def test_one_prompt_equals_its_padded_encode_in_every_language(tower, tokenizer, tag):
    expected = padded_encode(tower, tokenizer, [SENTENCES[tag]])
    assert expected.abs().mean() > 0.1
    with torch.no_grad():
        assert_close(encode_prompts(tower, tokenizer, SENTENCES[tag]), expected, **EXACT)
    assert_close(encode_prompts(tower, tokenizer, SENTENCES[tag]).detach(), expected, **EXACT)


def test_a_batch_of_all_languages_lengths_and_the_empty_prompt_equals_its_padded_encode(
    tower, tokenizer, padded
):
    with torch.no_grad():
        assert_close(encode_prompts(tower, tokenizer, TEXTS), padded, **EXACT)
        states, _ = encode_trimmed(tower, tokenizer, TEXTS[:19])
    assert states.shape[1] < 77
    assert_close(expand(states), padded[:19], **EXACT)


def test_pad_rows_are_one_row(tower, tokenizer, padded):
    """What the whole trick rests on."""
    count = len(tokenizer(TEXTS[0]).input_ids)
    assert_close(padded[0, count:], padded[0, -1:].expand(77 - count, -1), **EXACT)


def test_the_mask_matters(tower, tokenizer):
    """Otherwise these tests would pass for an encode that forgets it."""
    inputs = tokenizer(TEXTS[0], padding="max_length", max_length=77, return_tensors="pt")
    with torch.no_grad():
        unmasked = tower(inputs.input_ids, attention_mask=torch.ones_like(inputs.input_ids)).last_hidden_state
    assert (unmasked - padded_encode(tower, tokenizer, [TEXTS[0]])).abs().max() > 0.01


@pytest.mark.parametrize("clip_skip", [1, 2, 3])
def test_clip_skip_equals_a_tower_cut_by_hand(tokenizer, clip_skip):
    tower = tiny_tower(**WIDE)
    cut = AltCLIPTextModel(
        tiny_text_config(len(tokenizer), **WIDE | {"num_hidden_layers": 4 - clip_skip})
    ).eval()
    kept = {name: value for name, value in tower.state_dict().items() if name in cut.state_dict()}
    cut.load_state_dict(kept)
    with torch.no_grad():
        skipped = encode_prompts(tower, tokenizer, TEXTS, clip_skip=clip_skip)
    assert_close(skipped, padded_encode(cut, tokenizer, TEXTS), **EXACT)


@pytest.mark.parametrize("length", [3, 10, 40, 77, 100])
def test_any_length_equals_the_padded_encode_of_that_length(tower, tokenizer, length):
    texts = TEXTS[:19]
    with torch.no_grad():
        ours = encode_prompts(tower, tokenizer, texts, max_length=length)
    assert_close(ours, padded_encode(tower, tokenizer, texts, length), **EXACT)
