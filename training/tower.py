"""The frozen text tower that conditions a UNet while it is trained."""

from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, CLIPModel

from altdiffusion.backbone import shared_view
from altdiffusion.conditioning import MAX_LENGTH, encode_trimmed, expand
from altdiffusion.model import AltCLIP


class TextTower:
    """A frozen text tower with its tokenizer: AltCLIP's, or for an English UNet CLIP's.

    An AltCLIP conditions in the form it was published in (altdiffusion/towers.py), as the pipelines do.
    """

    def __init__(self, folder: Path) -> None:
        self.multilingual = AutoConfig.from_pretrained(folder).model_type == "altclip"
        if self.multilingual:
            clip = AltCLIP.from_pretrained(str(folder), dtype=torch.float32, device="cpu")
            model, self.tokenizer = shared_view(clip.model, clip.form, clip.generation_head), clip.tokenizer
        else:
            model = CLIPModel.from_pretrained(folder, dtype=torch.float32).text_model
            self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = model.eval().requires_grad_(False)
        self.width = self.encode([""]).shape[-1]

    @torch.no_grad()
    def encode(self, texts: list[str]) -> Tensor:
        """(texts, 77, dim), as the pipelines condition the UNet."""
        return self.states(texts)

    def states(self, texts: list[str]) -> Tensor:
        """The same, with gradients."""
        if self.multilingual:
            states, _ = encode_trimmed(self.model, self.tokenizer, texts)
            return expand(states)
        tokens = self.tokenizer(
            texts, padding="max_length", max_length=MAX_LENGTH, truncation=True, return_tensors="pt"
        ).to(self.model.device)
        return self.model(tokens.input_ids).last_hidden_state

    @torch.no_grad()
    def trimmed(self, texts: list[str]) -> list[Tensor]:
        """(tokens, dim) of each text: its own tokens and one pad, which `expand` repeats. CLIP's pads differ
        from each other, so all of them are here.
        """
        if not self.multilingual:
            return list(self.encode(texts))
        states, counts = encode_trimmed(self.model, self.tokenizer, texts)
        return [rows[: count + 1] for rows, count in zip(states, counts.tolist(), strict=True)]

    def to(self, device: torch.device) -> "TextTower":
        self.model.to(device)
        return self
