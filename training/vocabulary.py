"""New words for a trained text tower: pieces for signs that its tokenizer does not know, and their rows.

A piece is added only if it holds a sign that no piece of the tokenizer holds, and no new score lies below the
old ones, from which the unknown token's is reckoned. So every text without such a sign is cut as it was, and
all old pieces keep their numbers.
"""

import copy
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from tokenizers import models
from torch import Tensor, nn

from training.tokenizers import learn_unigram

#: <unk>, <s> and </s>, which sentencepiece counts among its pieces.
ITS_OWN = 3


def unknown_words(tokenizer: Any, texts: Sequence[str]) -> list[str]:
    """Of each text the words with a sign that no piece holds, as the tokenizer normalises them."""
    known, normalizer = signs(vocabulary(tokenizer)["vocab"]), tokenizer.backend_tokenizer.normalizer
    lines = []
    for text in texts:
        words = (normalizer.normalize_str(text) if normalizer else text).split()
        if unknown := [word for word in words if not known.issuperset(word)]:
            lines.append(" ".join(unknown))
    return lines


def new_pieces(tokenizer: Any, texts: Sequence[str], size: int) -> list[tuple[str, float]]:
    """Up to `size` pieces with their scores for the words of `texts` that the tokenizer cannot read."""
    lines = unknown_words(tokenizer, texts)
    if not lines or not size:
        return []
    needed = len(set("".join(lines)))
    if size < needed:
        raise ValueError(f"vocabulary: {size} for texts of {needed} signs; allowed: 0, or {needed} and up")
    old = vocabulary(tokenizer)["vocab"]
    known, floor = signs(old), min(score for _, score in old)
    learnt = learn_unigram(lines, size + ITS_OWN, "identity").pieces
    pieces = [(p.piece, max(p.score, floor)) for p in learnt if p.type == p.NORMAL]
    return [(piece, score) for piece, score in pieces if not known.issuperset(piece)]


def extended(tokenizer: Any, pieces: Sequence[tuple[str, float]]) -> Any:
    """A tokenizer with `pieces` behind those of `tokenizer`, which stays as it is."""
    model, grown = vocabulary(tokenizer), copy.deepcopy(tokenizer)
    old = [(piece, score) for piece, score in model["vocab"]]
    beyond = [word for word, number in tokenizer.get_added_vocab().items() if number >= len(old)]
    if beyond and pieces:
        raise ValueError(f"model: {beyond[0]!r:.80} was added behind its tokenizer's pieces; allowed: none")
    grown.backend_tokenizer.model = models.Unigram(
        [*old, *pieces], unk_id=model["unk_id"], byte_fallback=model["byte_fallback"]
    )
    return grown


def vocabulary(tokenizer: Any) -> dict[str, Any]:
    """The tokenizer's model: `vocab` is a list of (piece, score), a piece's number is its place."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    if model["type"] != "Unigram":
        raise ValueError(f"model: its tokenizer is {model['type']!r:.80}; allowed: Unigram, as XLM-R's is")
    return model


def signs(vocab: Sequence[tuple[str, float]]) -> set[str]:
    return set().union(*(piece for piece, _ in vocab))


class GrownEmbedding(nn.Module):
    """Word embeddings whose first rows stay as they are; the `new` ones behind them are trained."""

    def __init__(self, old: Float[Tensor, "rows dim"], new: Float[Tensor, "new dim"]) -> None:
        super().__init__()
        self.old = nn.Parameter(old, requires_grad=False)
        self.new = nn.Parameter(new)

    def forward(self, input_ids: Int[Tensor, "batch tokens"]) -> Float[Tensor, "batch tokens dim"]:
        if not len(self.new):
            return F.embedding(input_ids, self.old)
        number = input_ids - len(self.old)
        known = F.embedding(input_ids.clamp(max=len(self.old) - 1), self.old)
        return torch.where(number[..., None] >= 0, F.embedding(number.clamp(min=0), self.new), known)

    def merged(self) -> nn.Embedding:
        return nn.Embedding.from_pretrained(torch.cat([self.old, self.new]).detach(), freeze=False)


def starting_rows(
    rows: Float[Tensor, "rows dim"],
    texts: Sequence[Sequence[int]],
    english: Sequence[Sequence[int]],
    new: int,
) -> Float[Tensor, "new dim"]:
    """Where the `new` pieces' rows start: among the rows of the English pieces that they come with.

    `texts` and `english` are the numbers of parallel texts' pieces. Each English piece weighs by how much the
    two keep together (squared cosine of their occurrences), and the mean gets the length of an old row.
    """
    first, width = len(rows), len(rows)
    together = [
        np.unique(np.add.outer((own - first) * width, np.unique(other)))
        for text, other in zip(texts, english, strict=True)
        if len(own := np.unique(np.asarray(text)[np.asarray(text) >= first])) and len(other)
    ]
    found = rows.mean(0, keepdim=True).repeat(new, 1)
    if not together:
        return found
    pairs, both = np.unique(np.concatenate(together), return_counts=True)
    piece, word = np.divmod(pairs, width)
    alone, beside = occurrences(texts, first + new)[first:], occurrences(english, width)
    weight = both**2 / (alone[piece] * beside[word])
    sums = np.zeros((new, rows.shape[1]))
    np.add.at(sums, piece, weight[:, None] * rows[torch.from_numpy(word)].double().numpy())
    met = torch.from_numpy(np.bincount(piece, minlength=new) > 0)
    length = rows.norm(dim=1).median()
    found[met] = F.normalize(torch.from_numpy(sums)[met], dim=1).to(rows) * length
    return found


def occurrences(texts: Sequence[Sequence[int]], size: int) -> np.ndarray:
    """In how many of the texts each number occurs."""
    return np.bincount(np.concatenate([np.unique(text) for text in texts]), minlength=size)
