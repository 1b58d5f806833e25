"""Texts packed into rows: what the stock tower gives each of them alone, and hardly a pad."""

from itertools import chain

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from altdiffusion import packing
from altdiffusion.packing import CAPACITY, first_states, pack
from tests.fakes import tiny_tower


def ids_of(lengths: list[int], seed: int = 0) -> list[list[int]]:
    random = torch.Generator().manual_seed(seed)
    return [[0, *torch.randint(4, 90, (length - 2,), generator=random).tolist(), 2] for length in lengths]


def alone(tower, text: list[int]) -> torch.Tensor:
    return tower(torch.tensor([text])).pooler_output[0]


@pytest.fixture(scope="module")
def tower():
    return tiny_tower(vocab_size=99, max_position_embeddings=514)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("rows", [1, 3])
@torch.no_grad()
def test_a_packed_text_is_what_it_is_alone(tower, attention, rows, monkeypatch):
    """In float32 both differ by the order of sums alone. Several rows at a time are an accelerator's way."""
    monkeypatch.setattr(tower.config, "_attn_implementation", attention)
    texts = ids_of([3, 77, 13, 20, 3, 300, 50, 41, 128, 9, 200, 2])
    packs = pack([len(text) for text in texts])
    assert len(packs) > 3
    if rows == 1:
        found = first_states(tower, texts)
    else:
        parts = [
            packing._encode(tower, [[texts[n] for n in row] for row in packs[at : at + rows]])
            for at in range(0, len(packs), rows)
        ]
        found = torch.cat(parts)[torch.tensor(list(chain(*packs))).argsort()]
    assert_close(found, torch.stack([alone(tower, text) for text in texts]), rtol=0, atol=1e-5)
    assert found.std(dim=0).min() > 1e-2  # the texts do differ


@torch.no_grad()
def test_a_neighbour_changes_nothing(tower):
    text, other, another = ids_of([13, 30, 30])
    together = [first_states(tower, [text, neighbour])[0] for neighbour in (other, another)]
    assert_close(together[0], together[1], rtol=0, atol=1e-6)


def test_an_attention_that_takes_no_mask_is_refused(tower, monkeypatch):
    monkeypatch.setattr(tower.config, "_attn_implementation", "flash_attention_2")
    with pytest.raises(ValueError, match=r"^text_model: its attention 'flash_attention_2' .*: sdpa, eager$"):
        first_states(tower, ids_of([5]))


@given(st.lists(st.integers(1, 400)))
def test_every_text_is_in_one_row_and_no_row_is_too_long(lengths):
    rows = pack(lengths)
    assert sorted(number for row in rows for number in row) == list(range(len(lengths)))
    assert all(len(row) == 1 or sum(lengths[n] for n in row) <= CAPACITY for row in rows)


def test_a_row_is_filled_before_the_next_one():
    assert pack([6, 2, 3, 5, 4], capacity=10) == [[0], [3, 4], [2, 1]]
    assert pack([13] * 40, capacity=CAPACITY) == [list(range(19)), list(range(19, 38)), [38, 39]]
