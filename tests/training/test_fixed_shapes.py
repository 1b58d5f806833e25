"""What is remembered of a text does not depend on the texts that came with it."""

import torch
from transformers import AutoTokenizer, CLIPModel

from training.distill import Teacher
from training.fixed_shapes import ROWS, in_fixed_shapes

TEXTS = ["a cat", "a red cat and a green apple", "apple", "a green cat", "cat", "a red apple on a cat"]


def test_a_text_is_encoded_to_the_same_bits_in_any_company(teacher):
    guide = Teacher(CLIPModel.from_pretrained(teacher), AutoTokenizer.from_pretrained(teacher))

    def said(texts: list[str]) -> torch.Tensor:
        return in_fixed_shapes(guide.pooled, guide.lengths(texts), texts)

    together = said(TEXTS)
    for text, row in zip(TEXTS, together, strict=True):
        assert said([text])[0].equal(row)
    torch.testing.assert_close(together, guide.pooled(TEXTS))


def test_every_encoding_has_the_same_number_of_rows_and_one_length():
    seen = []

    def encode(texts: list[str]) -> torch.Tensor:
        seen.append([len(text) for text in texts])
        return torch.tensor([[float(len(text))] for text in texts])

    texts = ["x" * (1 + number % 3) for number in range(25)]
    found = in_fixed_shapes(encode, [len(text) for text in texts], texts)
    assert found[:, 0].tolist() == [len(text) for text in texts]
    assert all(len(row) == ROWS and len(set(row)) == 1 for row in seen)
