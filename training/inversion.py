"""Textual inversion (Gal et al. 2023): a new word for the text tower, whose vectors alone are trained."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.loaders.textual_inversion import TEXT_INVERSION_NAME_SAFE, TextualInversionLoaderMixin
from jaxtyping import Float, Int
from safetensors.torch import save_file
from torch import Tensor, nn

from altdiffusion.conditioning import MAX_LENGTH
from altdiffusion.requests import shorten
from training.captions import TEMPLATES, fill
from training.processes import state_of_processes
from training.tower import TextTower

#: Captions that say nothing but that it is a picture (Gal et al. 2023, section 4), in each language.
NEUTRAL = {tag: templates[: 2 if tag == "en" else 1] for tag, templates in TEMPLATES.items()}


@dataclass(frozen=True)
class InversionConfig:
    """The new word of textual inversion."""

    token: str = ""
    """How it is written: something that no text has, like "<zorp>"."""
    initial: str = ""
    """What its vectors start from: a word that is near it, in any language."""
    vectors: int = 1
    """Its vectors; each takes one of a prompt's 77 tokens."""

    def __post_init__(self) -> None:
        if not 1 <= self.vectors <= MAX_LENGTH - 2:
            raise ValueError(f"inversion.vectors: {self.vectors}; allowed: 1 to {MAX_LENGTH - 2}")
        if self.token.split() not in ([], [self.token]):
            raise ValueError(f"inversion.token: {shorten(self.token)}; allowed: one word without spaces")

    @property
    def tokens(self) -> list[str]:
        """The names of its vectors, as diffusers' `load_textual_inversion` makes them."""
        return [self.token, *(f"{self.token}_{number}" for number in range(1, self.vectors))]


def check(config: Any) -> None:
    """Refuses what a text-to-image configuration cannot ask of textual inversion."""
    word = config.inversion
    for name in ("token", "initial"):
        if not getattr(word, name).strip():
            raise ValueError(f"inversion.{name}: empty with trainable textual_inversion; allowed: a word")
    if config.instance_prompt and word.token not in config.instance_prompt:
        prompt = shorten(config.instance_prompt)
        raise ValueError(f"instance_prompt: {prompt} is without {word.token!r}; allowed: a prompt with it")
    if config.prior.prompts:
        raise ValueError(
            "prior.prompts: with trainable textual_inversion, which forgets nothing; allowed: none"
        )
    if config.cache is not None:
        raise ValueError("cache: with trainable textual_inversion, which changes the tower; allowed: None")
    if config.reading.streaming:
        raise ValueError("reading.streaming: True with trainable textual_inversion; allowed: False")


class WithWord(torch.utils.data.Dataset):
    """A data set whose every caption has the word: its own where it says more, else a neutral one."""

    def __init__(self, data: Any, word: InversionConfig, languages: tuple[str, ...], seed: int) -> None:
        self.data, self.word, self.seed, self.items = data, word, seed, data.items
        self.languages = [tag for tag in languages or NEUTRAL if tag in NEUTRAL] or ["en"]

    def __getitem__(self, index: int) -> tuple[Tensor, str]:
        latents, text = self.data[index]
        if not text or (self.word.token in text and text != self.word.token):
            return latents, text
        random = np.random.default_rng((self.seed, index, 11))
        templates = NEUTRAL[self.languages[int(random.integers(len(self.languages)))]]
        return latents, fill(templates[int(random.integers(len(templates)))], self.word.token)

    def collate(self, items: list[tuple[Tensor, str]]) -> Any:
        return self.data.collate(items)


class WordEmbedding(nn.Module):
    """The word embedding of a tower, with the vectors of new tokens from `first` on; the others stay."""

    def __init__(self, known: nn.Module, vectors: nn.Parameter, first: int) -> None:
        super().__init__()
        self.known, self.vectors, self.first = known, vectors, first

    def forward(self, input_ids: Int[Tensor, "batch tokens"]) -> Float[Tensor, "batch tokens dim"]:
        places = input_ids - self.first
        new = (places >= 0) & (places < len(self.vectors))
        known = self.known(input_ids.masked_fill(new, 0))
        learned = self.vectors[places.masked_fill(~new, 0)].to(known.dtype)
        return torch.where(new[..., None], learned, known)


class Inversion(nn.Module):
    """The vectors, which alone are trained, saved and averaged; the rest is held outside the module tree."""

    def __init__(self, unet: nn.Module, tower: TextTower, word: InversionConfig) -> None:
        super().__init__()
        tokenizer, embedding = tower.tokenizer, tower.model.get_input_embeddings()
        self.vectors = nn.Parameter(starting_vectors(word, tokenizer, embedding))
        tokenizer.add_tokens(word.tokens)
        first = tokenizer.convert_tokens_to_ids(word.token)
        tower.model.set_input_embeddings(WordEmbedding(embedding, self.vectors, first))
        self.frozen = unet.requires_grad_(False).to(state_of_processes().device), tower
        self.spelling = TextualInversionLoaderMixin()

    def forward(self, noisy: Tensor, timesteps: Tensor, texts: list[str]) -> Any:
        return self.frozen[0](noisy, timesteps, self.states(texts))

    def states(self, texts: list[str]) -> Float[Tensor, "batch tokens dim"]:
        """What the tower says of texts with the new word in them."""
        tower = self.frozen[1]
        spelt: Any = self.spelling.maybe_convert_prompt(texts, tower.tokenizer)
        return tower.states(spelt)


def check_words(word: InversionConfig, tokenizer: Any) -> None:
    """A new token takes no word away from the texts that are there; the initial words are known ones."""
    vocabulary = tokenizer.get_vocab()
    for token in word.tokens:
        if token in vocabulary or len(tokenizer.tokenize(token)) == 1:
            raise ValueError(
                f"inversion.token: the tower knows {shorten(token)}; allowed: a new word, like <zorp>"
            )
    ids = pieces_of(word, tokenizer)
    if not ids or tokenizer.unk_token_id in ids:
        raise ValueError(
            f"inversion.initial: the tower does not know {shorten(word.initial)}; allowed: words of its own"
        )


def pieces_of(word: InversionConfig, tokenizer: Any) -> list[int]:
    pieces = [piece for piece in tokenizer.tokenize(word.initial) if piece != "▁"]
    return tokenizer.convert_tokens_to_ids(pieces)


@torch.no_grad()
def starting_vectors(word: InversionConfig, tokenizer: Any, embedding: Any) -> Float[Tensor, "vectors dim"]:
    """The pieces of the initial words, shared out in their order: means of several, or each several times."""
    ids = pieces_of(word, tokenizer)
    known = embedding.weight[torch.tensor(ids, device=embedding.weight.device)].float()
    if word.vectors >= len(ids):
        return known[torch.arange(word.vectors) % len(ids)].clone()
    return torch.stack([part.mean(0) for part in known.tensor_split(word.vectors)])


def export(model: Inversion, word: InversionConfig, folder: Path) -> None:
    """The file that `load_textual_inversion` of diffusers reads."""
    folder.mkdir(parents=True, exist_ok=True)
    vectors = model.vectors.detach().float().cpu().contiguous()
    save_file({word.token: vectors}, folder / TEXT_INVERSION_NAME_SAFE)
