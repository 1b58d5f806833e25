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
from training.emoji import centred, load_emoji

#: Names encoded at a time.
CHUNK = 256
Pooled = Callable[[list[str]], Float[Tensor, "texts dim"]]


def first_states(tower: AltCLIPTextModel, tokenizer: Any) -> Pooled:
    """What makes an AltCLIP's pooled states, before the projection."""
    tower.eval()
    return lambda texts: encode_trimmed(tower, tokenizer, texts)[0][:, 0]


@torch.no_grad()
def name_retrieval(pooled: Pooled) -> dict[str, float]:
    """R@1 by cosine; `unseen` are the names that training never showed in their language."""
    emoji = load_emoji()
    captions = Captions(emoji)

    def directions(tag: str) -> Tensor:
        names = [captions.name(centred(c), tag) for c in emoji.characters]
        parts = [pooled(names[first : first + CHUNK]) for first in range(0, len(names), CHUNK)]
        return F.normalize(torch.cat(parts), dim=-1)

    english, figures, unseen = directions("en"), {}, []
    for tag in LANGUAGES:
        hits = (directions(tag) @ english.T).argmax(1).cpu() == torch.arange(len(english))
        held = torch.tensor([captions.unseen_name(tag, c) for c in emoji.characters])
        figures[tag] = hits[~held].float().mean().item()
        unseen += hits[held].tolist()
    return figures | {"unseen": sum(unseen) / max(1, len(unseen)), "unseen_names": len(unseen)}
