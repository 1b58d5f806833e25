"""What a text tower learns of a new language, and what it repeats of the old ones."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from altdiffusion.conditioning import MAX_LENGTH, tokenize, tower_length
from altdiffusion.model import AltCLIP
from training.multilingual import LanguageOrder
from training.opened import Opened

#: Texts encoded at a time.
CHUNK = 64


class Texts:
    """An endless order of the texts of a source: (text, its English), each a function of (seed, number)."""

    def __init__(self, opened: Opened, *key: int) -> None:
        assert opened.found is not None and opened.rows is not None
        self.rows, self.read, self.key = opened.rows, opened.read, key
        self.order = LanguageOrder(opened.found, opened.config.temperature, None, *key)

    def __getitem__(self, number: int) -> tuple[str, str]:
        tag, record = self.order[number]
        captions = self.read(self.rows[record])
        place = int(np.random.default_rng((*self.key, number)).integers(len(captions[tag])))
        english = captions.get("en", ("",))  # a replayed text needs none
        return captions[tag][place], english[place % len(english)]


class NewAndOld(torch.utils.data.Dataset):
    """Endless samples (text, its English) of the new languages and (text, None) of the old ones."""

    items = None

    def __init__(self, new: Texts, old: Texts | None, share: float) -> None:
        self.new, self.old, self.share = new, old, share if old is not None else 0.0

    def __getitem__(self, index: int) -> tuple[str, str | None]:
        before = int(index * self.share)
        if self.old is not None and int((index + 1) * self.share) > before:
            return self.old[before][0], None
        return self.new[index - before]

    def collate(self, samples: list[tuple[str, str | None]]) -> tuple[list[str], list[str], list[str]]:
        """New texts, their English, old texts; by length, so that chunks hold little padding."""
        samples = sorted(samples, key=lambda sample: len(sample[0].encode()))
        new = [(text, english) for text, english in samples if english is not None]
        return [t for t, _ in new], [e for _, e in new], [t for t, e in samples if e is None]


class Tower(nn.Module):
    """The text tower of an AltCLIP, with the states of each of its heads in one pass.

    The first head is the pooled one's; in the published forms what conditions a UNet is another
    (altdiffusion/towers.py).
    """

    def __init__(self, clip: AltCLIP, tokenizer: Any) -> None:
        super().__init__()
        self.model, self.form, self.tokenizer = clip.model.text_model, clip.form, tokenizer
        self.head: nn.Linear | None = None
        if clip.generation_head is not None:
            width, hidden = clip.generation_head["weight"].shape
            self.head = nn.Linear(hidden, width).requires_grad_(False)
            self.head.load_state_dict(clip.generation_head)

    def forward(
        self, texts: list[str], tokenizer: Any = None
    ) -> tuple[Float[Tensor, "batch heads tokens dim"], Int[Tensor, "batch 1"]]:
        """States, as many rows as the longest text has and one pad row, and each text's number of tokens."""
        tokenizer, device = tokenizer or self.tokenizer, self.model.device
        rows = tokenize(tokenizer, texts, min(MAX_LENGTH, tower_length(self.model)))
        width = min(max(map(len, rows)) + 1, MAX_LENGTH)
        ids = torch.tensor([row + [tokenizer.pad_token_id] * (width - len(row)) for row in rows])
        counts = torch.tensor([[len(row)] for row in rows])
        mask = (torch.arange(width) < counts).long().to(device)
        output = self.model(ids.to(device), attention_mask=mask, output_hidden_states=self.form != "own")
        heads = [output.last_hidden_state]
        if self.form == "m9":
            heads.append(self.model.transformation(output.hidden_states[-1]))
        elif self.head is not None:
            heads.append(self.head(self.model.pre_LN(output.hidden_states[-2])))
        return torch.stack(heads, dim=1), counts.to(device)


class Learning(nn.Module):
    """The tower that learns, the tower as it was, and the loss."""

    def __init__(self, tower: Tower, old: Tower, sequence_weight: float) -> None:
        super().__init__()
        self.tower, self.sequence_weight = tower, sequence_weight
        # Held outside the module tree: it has nothing to train, save or average.
        self.frozen = (old,)

    @torch.no_grad()
    def said(self, english: list[str]) -> Float[Tensor, "batch kinds heads dim"]:
        """What the old tower says of English texts: its first state, the mean of the others, a pad's."""
        states, counts = self.frozen[0](english)
        states, place = states.float(), torch.arange(states.shape[2], device=states.device)
        inner = ((place > 0) & (place < counts))[:, None, :, None]
        words = (states * inner).sum(2) / inner.sum(2)
        last = counts.clamp(max=len(place) - 1)[:, :, None, None].expand(
            -1, states.shape[1], -1, states.shape[3]
        )
        return torch.stack([states[:, :, 0], words, states.gather(2, last)[:, :, 0]], dim=1)

    def learnt(self, texts: list[str], english: list[str]) -> Tensor:
        states, counts = self.tower(texts)
        first, words, pad = self.said(english).unbind(1)
        is_word = (torch.arange(states.shape[2], device=states.device) < counts)[:, None, :, None]
        goal = torch.where(is_word, words[:, :, None], pad[:, :, None])
        return self.distance(states, counts, torch.cat([first[:, :, None], goal[:, :, 1:]], dim=2))

    def replayed(self, texts: list[str]) -> Tensor:
        """The old tokenizer reads for both: a new piece in an old language's text would move its tokens."""
        old = self.frozen[0]
        with torch.no_grad():
            goal, _ = old(texts)
        states, counts = self.tower(texts, old.tokenizer)
        return self.distance(states, counts, goal)

    def distance(self, states: Tensor, counts: Tensor, goal: Tensor) -> Tensor:
        """The sum over the texts of each one's squared error, whatever it is padded to: at the first state,
        and in the mean of its own states and a pad's.
        """
        errors = (states.float() - goal.float()).square().mean(dim=(1, 3))
        own = torch.arange(errors.shape[1], device=errors.device) <= counts
        return (errors[:, 0] + self.sequence_weight * (errors * own).sum(1) / own.sum(1)).sum()

    def forward(self, texts: list[str], english: list[str], old: list[str]) -> Tensor:
        losses = [
            self.learnt(texts[at : at + CHUNK], english[at : at + CHUNK])
            for at in range(0, len(texts), CHUNK)
        ]
        losses += [self.replayed(old[at : at + CHUNK]) for at in range(0, len(old), CHUNK)]
        return torch.stack(losses).sum() / (len(texts) + len(old))
