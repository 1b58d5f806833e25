"""R@1 of the emoji's names in each language among their English names: what teacher learning is for."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from transformers import AltCLIPTextModel

from altdiffusion.conditioning import encode_trimmed
from altdiffusion.languages import LANGUAGES
from training.captions import Captions
from training.emoji import Emoji, some_emoji

#: Names encoded at a time.
CHUNK = 256
Pooled = Callable[[list[str]], Float[Tensor, "texts dim"]]


def first_states(tower: AltCLIPTextModel, tokenizer: Any) -> Pooled:
    """What makes an AltCLIP's pooled states, before the projection."""
    tower.eval()
    return lambda texts: encode_trimmed(tower, tokenizer, texts)[0][:, 0]


@torch.no_grad()
def directions(pooled: Pooled, emoji: Emoji, tag: str) -> Float[Tensor, "emoji dim"]:
    """Of the emoji's names in a language, of length one."""
    names = [emoji.names[tag][c] for c in emoji.characters]
    parts = [pooled(names[first : first + CHUNK]) for first in range(0, len(names), CHUNK)]
    return F.normalize(torch.cat(parts), dim=-1)


def found_and_seen(
    pooled: Pooled, emoji: Emoji, tag: str, english: Float[Tensor, "emoji dim"]
) -> tuple[list[bool], list[bool]]:
    """Of each emoji's name in the language whether the nearest English one is its own, by cosine; and whether
    training showed it."""
    captions = Captions(emoji)
    nearest = (directions(pooled, emoji, tag) @ english.T).argmax(1).tolist()
    seen = [not captions.unseen_name(tag, c) for c in emoji.characters]
    return [best == own for own, best in enumerate(nearest)], seen


def shares(found: list[bool], seen: list[bool]) -> dict[str, float]:
    """The share found of the names that training showed, and of the others, and how many others there are."""
    known = [hit for hit, one in zip(found, seen, strict=True) if one]
    unseen = [hit for hit, one in zip(found, seen, strict=True) if not one]
    return {
        "seen": sum(known) / max(1, len(known)),
        "unseen": sum(unseen) / max(1, len(unseen)),
        "unseen_names": len(unseen),
    }


def name_retrieval(pooled: Pooled, number: int = 0) -> dict[str, float]:
    """R@1 in each language among the names of all emoji, or of so many of them; `unseen` are the names that
    training never showed in their language."""
    emoji = some_emoji(number)
    english = directions(pooled, emoji, "en")
    results = {tag: found_and_seen(pooled, emoji, tag, english) for tag in LANGUAGES}
    figures = {tag: shares(*result)["seen"] for tag, result in results.items()}
    found, seen = ([one for result in results.values() for one in result[n]] for n in (0, 1))
    return figures | {name: value for name, value in shares(found, seen).items() if name != "seen"}
