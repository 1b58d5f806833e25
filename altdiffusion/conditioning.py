"""From prompts to `prompt_embeds`, exactly as the padded encode gives them and several times cheaper.

XLM-R gives every pad token the same position and hides pads from attention, so all pad rows of a prompt are
equal in every layer. Encoding the real tokens and one pad, and repeating that last row, is therefore the
77-token encode: three tokens instead of 77 for the empty prompt that guidance always needs.
"""

import threading
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from altdiffusion.checkpoints import stamp
from altdiffusion.requests import shorten

#: `<s>`, 75 pieces and `</s>`: what AltDiffusion was trained on.
MAX_LENGTH = 77

#: More than any tower reads, which is 512 tokens: the tokenizer would take seconds for a megabyte.
MAX_CHARACTERS = 10_000

_REMEMBERED = 32
_memories: weakref.WeakKeyDictionary[torch.nn.Module, "_Memory"] = weakref.WeakKeyDictionary()
_memories_guard = threading.Lock()


@dataclass(frozen=True)
class Dropped:
    """What of a prompt is too long to be encoded."""

    tokens: int
    text: str


def encode_prompts(
    text_encoder: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: str | Sequence[str],
    *,
    max_length: int = MAX_LENGTH,
    clip_skip: int | None = None,
) -> Float[Tensor, "batch tokens dim"]:
    """`prompt_embeds` of `max_length` rows for each prompt.

    Without gradients and on the CPU each distinct prompt is encoded alone and remembered: its values do not
    depend on its neighbours, and guidance's empty prompt costs nothing after the first time.
    """
    rows = tokenize(tokenizer, prompts, min(max_length, tower_length(text_encoder)))
    return encode_rows(text_encoder, tokenizer, rows, max_length=max_length, clip_skip=clip_skip)


def encode_rows(
    text_encoder: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[list[int]],
    *,
    max_length: int = MAX_LENGTH,
    clip_skip: int | None = None,
) -> Float[Tensor, "batch tokens dim"]:
    """As `encode_prompts`, for ids as `tokenize` gives them."""
    if torch.is_grad_enabled() or text_encoder.training or _device(text_encoder).type != "cpu":
        states, _ = _encode(text_encoder, tokenizer, rows, max_length, clip_skip)
        return expand(states, max_length)
    remember = _memory(text_encoder)
    states = [
        remember(
            (tuple(row), max_length > len(row), clip_skip, torch.is_autocast_enabled("cpu")),
            lambda row=row: _encode(text_encoder, tokenizer, [row], max_length, clip_skip)[0],
        )
        for row in rows
    ]
    return torch.cat([expand(state, max_length) for state in states])


def encode_trimmed(
    text_encoder: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: str | Sequence[str],
    *,
    max_length: int = MAX_LENGTH,
    clip_skip: int | None = None,
) -> tuple[Float[Tensor, "batch tokens dim"], Int[Tensor, " batch"]]:
    """The compact form, for training and caches: (states, number of real tokens of each prompt).

    As many rows as the longest prompt has and one pad row, which `expand` repeats. Differentiable, not
    remembered.
    """
    rows = tokenize(tokenizer, prompts, min(max_length, tower_length(text_encoder)))
    return _encode(text_encoder, tokenizer, rows, max_length, clip_skip)


def expand(
    states: Float[Tensor, "batch tokens dim"], max_length: int = MAX_LENGTH
) -> Float[Tensor, "batch length dim"]:
    """Repeats the last row, a pad, up to `max_length` rows."""
    missing = max_length - states.shape[1]
    if missing <= 0:
        return states
    return torch.cat([states, states[:, -1:].expand(-1, missing, -1)], dim=1)


def dropped(tokenizer: PreTrainedTokenizerBase, prompt: str, max_length: int = MAX_LENGTH) -> Dropped | None:
    """The end of the prompt that `max_length` cuts off, in the prompt's own words; None if all of it fits."""
    (prompt,) = as_texts(prompt, "prompt")
    encoded = tokenizer(prompt, return_offsets_mapping=True, verbose=False)
    surplus = len(encoded["input_ids"]) - max_length
    if surplus <= 0:
        return None
    start = encoded["offset_mapping"][max_length - 1][0]
    return Dropped(surplus, prompt[start:].strip())


def tokenize(
    tokenizer: PreTrainedTokenizerBase, prompts: str | Sequence[str], max_length: int = MAX_LENGTH
) -> list[list[int]]:
    """Ids of each prompt, cut to `max_length`, unpadded.

    Cut here: the tokenizer keeps truncation and padding as state that all threads share.
    """
    if max_length < 3:
        raise ValueError(f"max_length: {max_length} leaves no room for text; allowed: 3 or more")
    rows = tokenizer(as_texts(prompts), verbose=False)["input_ids"]
    return [row if len(row) <= max_length else [*row[: max_length - 1], row[-1]] for row in rows]


def as_texts(value: Any, argument: str = "prompts") -> list[str]:
    """One text or several as a list; refuses what is no text, an empty list and lone surrogates."""
    several = isinstance(value, Sequence) and not isinstance(value, str | bytes)
    texts: list[Any] = list(value) if several else [value]
    if not texts:
        raise ValueError(f"{argument}: {shorten(value)} is empty; allowed: a text, or a list of texts")
    for text in texts:
        if not isinstance(text, str):
            raise TypeError(f"{argument}: {shorten(text)} is {type(text).__name__}; allowed: texts")
        if len(text) > MAX_CHARACTERS:
            raise ValueError(
                f"{argument}: {shorten(text)} has {len(text):,} characters; allowed: up to {MAX_CHARACTERS:,}"
            )
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError(
                f"{argument}: {shorten(text)} holds half a surrogate pair; allowed: text"
            ) from None
    return texts


def tower_length(text_encoder: Any) -> int:
    """The most tokens that the tower has positions for: XLM-R counts them from its padding index on."""
    config = text_encoder.config
    return config.max_position_embeddings - config.pad_token_id - 1


def _encode(
    text_encoder: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[list[int]],
    max_length: int,
    clip_skip: int | None,
) -> tuple[Float[Tensor, "batch tokens dim"], Int[Tensor, " batch"]]:
    device = _device(text_encoder)
    counts = torch.tensor([len(row) for row in rows])
    width = min(int(counts.max()) + 1, max_length)
    pad = tokenizer.pad_token_id
    input_ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows], device=device)
    attention_mask = (torch.arange(width) < counts[:, None]).long().to(device)
    return _states(text_encoder, input_ids, attention_mask, clip_skip), counts.to(device)


def _states(
    text_encoder: Any,
    input_ids: Int[Tensor, "batch tokens"],
    attention_mask: Int[Tensor, "batch tokens"],
    clip_skip: int | None,
) -> Float[Tensor, "batch tokens dim"]:
    """The head on the states before the last `clip_skip` layers: those of a tower built without them."""
    if not hasattr(text_encoder, "transformation"):
        name = type(text_encoder).__name__
        raise TypeError(f"text_encoder: {name} pads in its own way; allowed: AltCLIPTextModel")
    if not clip_skip:
        return text_encoder(input_ids, attention_mask=attention_mask).last_hidden_state
    layers = text_encoder.config.num_hidden_layers
    if not 0 <= clip_skip < layers:
        raise ValueError(f"clip_skip: {clip_skip} of {layers} layers; allowed: 0 to {layers - 1}")
    output = text_encoder.roberta(input_ids, attention_mask=attention_mask, output_hidden_states=True)
    states = output.hidden_states[-(clip_skip + 1)]
    if not _is_plain(text_encoder.roberta.encoder.layers[-1].output.LayerNorm, states):
        states = text_encoder.pre_LN(states)
    return text_encoder.transformation(states)


def _is_plain(norm: torch.nn.LayerNorm, states: Float[Tensor, "batch tokens dim"]) -> bool:
    """Whether the norm's weight is 1 and its bias 0: asked through its forward, as offloading moves them.

    In the last layer it says that the tower had no `pre_LN` (m2, m9): the conversion put the last layer's own
    norm in that place, and a tower without that layer is without that norm.
    """
    plain = F.layer_norm(states, norm.normalized_shape, eps=norm.eps)
    return torch.allclose(norm(states), plain, rtol=0, atol=1e-4)


def _device(text_encoder: torch.nn.Module) -> torch.device:
    """Where the tower runs, which is not where its weights lie while accelerate offloads them."""
    hooks = (getattr(module, "_hf_hook", None) for module in text_encoder.modules())
    places = (getattr(hook, "execution_device", None) for hook in hooks)
    place = next((place for place in places if place is not None), None)
    return next(text_encoder.parameters()).device if place is None else torch.device(place)


class _Memory:
    """The last prompts of one tower, forgotten as soon as its weights change."""

    def __init__(self) -> None:
        self.guard = threading.Lock()
        self.stamp: object = None
        self.entries: OrderedDict[tuple, Tensor] = OrderedDict()

    def renew(self, stamp: object) -> None:
        with self.guard:
            if self.stamp != stamp:
                self.stamp = stamp
                self.entries.clear()

    def __call__(self, key: tuple, compute) -> Tensor:
        with self.guard:
            if key not in self.entries:
                self.entries[key] = compute()
            self.entries.move_to_end(key)
            if len(self.entries) > _REMEMBERED:
                self.entries.popitem(last=False)
            return self.entries[key]


def _memory(text_encoder: torch.nn.Module):
    """The tower's memory; a fresh one each time where a change of its weights could go unnoticed."""
    current = stamp(text_encoder)
    unsafe = (
        current is None or torch.is_inference_mode_enabled() or getattr(text_encoder, "peft_config", None)
    )
    if unsafe:
        return _Memory()
    with _memories_guard:
        memory = _memories.setdefault(text_encoder, _Memory())
    memory.renew(current)
    return memory
