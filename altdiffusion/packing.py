"""Texts end to end in long rows: a text tower's work with hardly a pad, exact.

Every text keeps its own positions and sees itself alone, by a mask that is block-diagonal. Padded to 77, a
caption of 13 tokens costs six times its work; padded to the longest of its batch, still half as much again.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

#: Tokens of a row: enough to keep a CPU's matrix units busy, while the mask's work grows with the square.
CAPACITY = 256
#: Rows that an accelerator takes at a time, padded to the fullest. A CPU takes one, which then has no pads.
ROWS = 16
#: transformers' attentions that take a mask of queries by keys.
MASKED = ("sdpa", "eager")


def first_states(text_model: Any, texts: Sequence[Sequence[int]]) -> Float[Tensor, "batch dim"]:
    """The tower's state of the first token of each text, which is what AltCLIP pools, in their order."""
    attention = text_model.config._attn_implementation
    if attention not in MASKED:
        raise ValueError(
            f"text_model: its attention {attention!r:.80} takes no mask; allowed: {', '.join(MASKED)}"
        )
    rows = pack([len(text) for text in texts])
    several = 1 if text_model.device.type == "cpu" else ROWS
    batches = [rows[at : at + several] for at in range(0, len(rows), several)]
    parts = [_encode(text_model, [[texts[number] for number in row] for row in batch]) for batch in batches]
    order = torch.tensor([number for row in rows for number in row], device=text_model.device)
    return torch.cat(parts)[order.argsort()]


def pack(lengths: Sequence[int], capacity: int = CAPACITY) -> list[list[int]]:
    """Numbers of the texts of each row, by falling length; one beyond the capacity has a row to itself."""
    rows: list[list[int]] = []
    room = 0
    for number in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        if not rows or lengths[number] > room:
            rows.append([])
            room = capacity
        rows[-1].append(number)
        room -= lengths[number]
    return rows


def _encode(text_model: Any, rows: Sequence[Sequence[Sequence[int]]]) -> Float[Tensor, "batch dim"]:
    pad, device = text_model.config.pad_token_id, text_model.device
    width = max(sum(map(len, row)) for row in rows)
    ids, positions, owners, starts = [], [], [], []
    for number, row in enumerate(rows):
        counts = torch.tensor([len(text) for text in row])
        filler = width - int(counts.sum())
        starts.append(number * width + counts.cumsum(0) - counts)
        ids.append([token for text in row for token in text] + [pad] * filler)
        # XLM-R counts positions from the one after its padding index
        positions.append(torch.cat([torch.arange(len(text)) for text in row]) + pad + 1)
        positions[-1] = torch.nn.functional.pad(positions[-1], (0, filler), value=pad)
        owners.append(torch.arange(len(row)).repeat_interleave(counts))
        owners[-1] = torch.nn.functional.pad(owners[-1], (0, filler), value=-1)  # pads see one another
    owner = torch.stack(owners).to(device)
    apart = owner[:, None, :, None] != owner[:, None, None, :]
    mask = torch.zeros(apart.shape, dtype=text_model.dtype, device=device).masked_fill_(apart, -torch.inf)
    states = text_model(
        torch.tensor(ids, device=device), attention_mask=mask, position_ids=torch.stack(positions).to(device)
    ).last_hidden_state
    return states.flatten(0, 1)[torch.cat(starts).to(device)]
