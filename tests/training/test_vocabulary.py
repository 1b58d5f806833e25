"""New words for a tokenizer: what it read before it reads the same, and its new rows start where they mean
something.
"""

import pytest
import torch
from tokenizers import Tokenizer, models
from torch.testing import assert_close
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from altdiffusion import bundled
from tests.fakes import SENTENCES, tiny_tokenizer
from training.emoji import annotations, load_emoji
from training.vocabulary import (
    GrownEmbedding,
    extended,
    new_pieces,
    starting_rows,
    unknown_words,
    vocabulary,
)

#: Georgian, which the tiny tokenizer does not know, with English.
PAIRS = {
    "წითელი კატა": "red cat",
    "წითელი ვაშლი": "red apple",
    "კატა და ვაშლი": "cat and apple",
    "კატა": "cat",
}


def test_new_pieces_are_for_unknown_signs_alone():
    tokenizer = tiny_tokenizer()
    texts = [*PAIRS, *SENTENCES.values(), "the კატა Katze"]
    assert unknown_words(tokenizer, texts) == [*PAIRS, "კატა"]
    pieces = new_pieces(tokenizer, texts, 60)
    known = {sign for piece, _ in vocabulary(tokenizer)["vocab"] for sign in piece}
    assert pieces and all(set(piece) - known for piece, _ in pieces)
    grown = extended(tokenizer, pieces)
    assert not unknown_words(grown, texts)
    assert tokenizer.unk_token_id not in grown(list(PAIRS)).input_ids[0]
    assert len(grown(["კატა"]).input_ids[0]) < 2 + len("▁კატა")  # a word that occurs often is a piece


def test_a_tokenizer_that_knows_every_sign_gets_no_pieces():
    assert new_pieces(tiny_tokenizer(), ["en röd katt på stranden"], 100) == []
    assert new_pieces(tiny_tokenizer(), list(PAIRS), 0) == []


@pytest.mark.parametrize("mixed", ["a red კატა", "ÿ☃ ვ ☃☃ß", "x" * 300])
def test_old_pieces_keep_their_numbers_and_what_is_unknown_still_costs_the_same(mixed, tmp_path):
    tokenizer = tiny_tokenizer()
    grown = extended(tokenizer, new_pieces(tokenizer, list(PAIRS), 60))
    grown.save_pretrained(tmp_path)
    opened = AutoTokenizer.from_pretrained(tmp_path)
    assert len(opened) == len(grown) > len(tokenizer)
    for text in (*SENTENCES.values(), "<mask> ☃ and ☃☃"):
        assert opened(text).input_ids == grown(text).input_ids == tokenizer(text).input_ids
    assert opened(mixed).input_ids == grown(mixed).input_ids
    lowest = [min(score for _, score in vocabulary(each)["vocab"]) for each in (tokenizer, grown)]
    assert lowest[0] == lowest[1]


@pytest.mark.weights
def test_greek_changes_no_name_in_the_18_languages_of_the_bundled_tokenizer():
    tokenizer = AutoTokenizer.from_pretrained(bundled.FOLDER / "altclip")
    names = list(annotations("el")[0].values())
    grown = extended(tokenizer, new_pieces(tokenizer, names, 1000))
    for tag, of_language in load_emoji().names.items():
        texts = [*of_language.values()]
        assert grown(texts).input_ids == tokenizer(texts).input_ids, tag
    unknown = sum(tokenizer.unk_token_id in row for row in grown(names).input_ids)
    assert (
        unknown < 0.01 * len(names) < sum(tokenizer.unk_token_id in row for row in tokenizer(names).input_ids)
    )


def test_too_few_pieces_for_the_signs_and_other_kinds_of_tokenizers_are_refused():
    with pytest.raises(
        ValueError, match=r"^vocabulary: 5 for texts of 1\d signs; allowed: 0, or 1\d and up$"
    ):
        new_pieces(tiny_tokenizer(), list(PAIRS), 5)
    bpe = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))
    with pytest.raises(ValueError, match=r"^model: its tokenizer is 'BPE'; allowed: Unigram"):
        new_pieces(bpe, list(PAIRS), 50)
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<felix>"])
    with pytest.raises(ValueError, match=r"^model: '<felix>' was added behind its tokenizer's pieces"):
        extended(tokenizer, [("კ", -1.0)])


def test_a_grown_embedding_is_the_merged_table():
    old, new = torch.randn(5, 3), torch.randn(2, 3)
    grown = GrownEmbedding(old, new)
    ids = torch.tensor([[0, 6, 4], [5, 1, 6]])
    assert_close(grown(ids), torch.cat([old, new])[ids])
    assert_close(grown.merged()(ids), grown(ids))
    grown(ids).sum().backward()
    assert grown.old.grad is None
    assert grown.new.grad is not None
    assert_close(grown.new.grad, torch.tensor([[1.0] * 3, [2.0] * 3]))
    assert_close(GrownEmbedding(old, new[:0])(ids % 5), old[ids % 5])  # nothing new


def test_a_new_row_starts_by_the_english_word_that_it_comes_with():
    rows = torch.eye(4)
    texts, english = [[4, 5], [4, 6], [5]], [[0, 1], [0, 2], [1]]
    start = starting_rows(rows, texts, english, 4)
    assert start[:3].argmax(1).tolist() == [0, 1, 2]
    assert_close(start[:3].norm(dim=1), torch.ones(3))
    assert_close(start[3], rows.mean(0))  # a piece of no text
    assert starting_rows(rows, [[0]], [[1]], 0).shape == (0, 4)
