"""What a frozen model says of a text, to the bit the same whatever texts stand beside it.

A product of matrices may round differently when a batch has other rows or more padding. What is remembered of
a text would then depend on the batch in which it first came, and a run that was cut would go on differently.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

#: Texts that are encoded together: all of one length, and always so many.
ROWS = 8


def in_fixed_shapes(
    encode: Callable[[list[str]], Tensor], lengths: list[int], texts: list[str], rows: int = ROWS
) -> Float[Tensor, "texts ..."]:
    """`encode` of each text, given their lengths in tokens; it sees `rows` at a time, of one length."""
    found: list[Tensor] = [torch.empty(0)] * len(texts)
    for length in sorted(set(lengths)):
        places = [place for place, own in enumerate(lengths) if own == length]
        for first in range(0, len(places), rows):
            part = places[first : first + rows]
            filled = [texts[place] for place in part] + [texts[part[-1]]] * (rows - len(part))
            for place, state in zip(part, encode(filled), strict=False):
                found[place] = state
    return torch.stack(found)
