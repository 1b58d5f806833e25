"""Prompts with weights, prompts of any length, and what lies between prompts: all of it as `prompt_embeds`.

    a (red:1.3) cat      (red cat)1.3      a red++ cat      a (red cat)--      ((red)1.2 cat:0.8)

Each `+` is 1.1, each `-` 0.9; marks within marks multiply; a bracket without a number or signs is a bracket,
and so is `\\(` in any case. The marks are taken out before the text is tokenised, so that the tokens of
`一只(红色:1.3)的猫` are those of `一只红色的猫`: compel cuts the text at the marks, which gives other tokens
wherever no spaces are written, and lets the tower read pads as words.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from altdiffusion.conditioning import MAX_LENGTH, as_texts, encode_rows, tower_length

#: What becomes of a prompt beyond 77 tokens: its end is lost; it is read 75 tokens at a time and the parts
#: put side by side; it is read whole, up to the tower's 512, which AltDiffusion was not trained for.
LONG = ("cut", "windows", "whole")

_NUMBER = r"(?P<{}>\d+(?:\.\d+)?|\.\d+)"
#: Where spaces part words, a letter right after it says that it is no mark: `(two)2nd`, `well-known`.
_END = r"(?![\dA-Za-z_\u00c0-\u052f])"
_MARKS = re.compile(
    r"\\(?P<escaped>[()+:\\-])"
    r"|(?P<opening>\()"
    rf"|:\s*{_NUMBER.format('inner')}\s*\)"
    rf"|\)(?:{_NUMBER.format('outer')}|(?P<outer_signs>\++|-+)){_END}"
    r"|(?P<closing>\))"
    # Not after punctuation: a smiley is no mark.
    rf"|(?<=[^\s!-/:-@\[-`{{-~])(?P<signs>\++|-+){_END}"
    r"|(?P<plain>.)",
    re.DOTALL,
)
_STRONGEST = 10.0


@dataclass(frozen=True)
class Weighted:
    """A prompt without its marks, and the weight of each of its characters."""

    text: str
    weights: tuple[float, ...]


def parse(prompt: str) -> Weighted:
    """Takes the marks out of a prompt."""
    letters: list[str] = []
    weights: list[float] = []
    opened: list[int] = []

    def weigh(start: int, weight: float) -> None:
        weights[start:] = [each * weight for each in weights[start:]]

    for mark in _MARKS.finditer(prompt):
        kind, value = str(mark.lastgroup), mark[mark.lastgroup or 0]
        if kind == "signs":
            weigh(_start_of_word(letters), _factor(value))
        elif kind in ("inner", "outer", "outer_signs") and opened:
            start = opened.pop()
            del letters[start], weights[start]
            weigh(start, _factor(value))
        else:
            if kind == "opening":
                opened.append(len(letters))
            elif kind == "closing" and opened:
                opened.pop()
            text = value if kind == "escaped" else mark[0]
            letters += text
            weights += [1.0] * len(text)
    heaviest = max(weights, default=1.0)
    if heaviest > _STRONGEST:
        raise ValueError(f"prompt: {prompt!r:.80} has a weight of {heaviest:g}; allowed: 0 to {_STRONGEST:g}")
    return Weighted("".join(letters), tuple(weights))


def embed(
    text_encoder: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: str | Sequence[str],
    *,
    weights: bool = True,
    long: str = "cut",
    max_length: int = MAX_LENGTH,
    clip_skip: int | None = None,
) -> Float[Tensor, "batch tokens dim"]:
    """`prompt_embeds` of one length for all prompts, with the weights that are marked in them.

    A weight moves a token's row along the line from the empty prompt's row: 0 is that row, 1 the token's own.
    Without marks, and cut, they are `encode_prompts` to the bit.
    """
    if long not in LONG:
        raise ValueError(f"long: {long!r:.80}; allowed: {', '.join(LONG)}")
    texts = as_texts(prompts, "prompt")
    read = [parse(text) if weights else Weighted(text, (1.0,) * len(text)) for text in texts]
    tokens = [_tokens(tokenizer, prompt) for prompt in read]
    if long == "whole":
        longest = max(len(ids) for ids, _ in tokens) + 2
        max_length = min(max(max_length, longest), tower_length(text_encoder))
    room = max_length - 2
    count = max(1, *(-(-len(ids) // room) for ids, _ in tokens)) if long == "windows" else 1
    starts = [number * room for number in range(count)]
    marks = tokenizer.bos_token_id, tokenizer.eos_token_id
    rows = [[marks[0], *ids[start : start + room], marks[1]] for ids, _ in tokens for start in starts]
    states = encode_rows(text_encoder, tokenizer, rows, max_length=max_length, clip_skip=clip_skip)
    values = [[1.0, *each[start : start + room]] for _, each in tokens for start in starts]
    if any(value != 1.0 for row in values for value in row):
        empty = encode_rows(
            text_encoder, tokenizer, [list(marks)], max_length=max_length, clip_skip=clip_skip
        )
        padded = [row + [1.0] * (max_length - len(row)) for row in values]
        scale = torch.tensor(padded, dtype=states.dtype, device=states.device)[..., None]
        states = torch.where(scale == 1, states, empty + scale * (states - empty))
    return states.reshape(len(texts), count * max_length, states.shape[-1])


def blend(
    prompt_embeds: Float[Tensor, "prompts tokens dim"], weights: Sequence[float | int] | None = None
) -> Float[Tensor, "1 tokens dim"]:
    """One prompt between several, be they in one language or in many: their weighted mean."""
    weights = [1.0] * len(prompt_embeds) if weights is None else list(weights)
    if len(weights) != len(prompt_embeds) or not sum(weights):
        raise ValueError(f"weights: {weights!r:.80}; allowed: {len(prompt_embeds)} numbers, their sum not 0")
    shares = torch.tensor(weights, dtype=torch.float32, device=prompt_embeds.device)
    mixed = torch.einsum("n,nld->ld", shares / shares.sum(), prompt_embeds.float())
    return mixed.to(prompt_embeds.dtype)[None]


def interpolate(
    first: Float[Tensor, "1 tokens dim"], second: Float[Tensor, "1 tokens dim"], steps: int
) -> Float[Tensor, "steps tokens dim"]:
    """A batch that goes from one prompt to another in equal steps, both ends included."""
    if steps < 2:
        raise ValueError(f"steps: {steps}; allowed: 2 or more, both ends included")
    shares = torch.linspace(0, 1, steps, dtype=first.dtype, device=first.device)[:, None, None]
    return torch.lerp(first, second, shares)


def _start_of_word(letters: list[str]) -> int:
    start = len(letters)
    while start and not (letters[start - 1].isspace() or letters[start - 1] in "()"):
        start -= 1
    return start


def _factor(value: str) -> float:
    if value[0] in "+-":
        return (1.1 if value[0] == "+" else 0.9) ** len(value)
    return float(value)


def _tokens(tokenizer: PreTrainedTokenizerBase, prompt: Weighted) -> tuple[list[int], list[float]]:
    """Ids without `<s>` and `</s>`; a piece that a mark cuts through has its characters' mean weight."""
    encoded = tokenizer(prompt.text, return_offsets_mapping=True, add_special_tokens=False, verbose=False)
    spans = [prompt.weights[start:end] for start, end in encoded["offset_mapping"]]
    return encoded["input_ids"], [sum(span) / len(span) if span else 1.0 for span in spans]
