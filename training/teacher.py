"""The teacher of teacher learning: a CLIP at hand, or what it said of texts, kept on disk."""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import AltCLIPModel, AutoConfig, AutoModel, AutoTokenizer, CLIPModel

from training.kept import Kept


class Teacher:
    """The frozen text tower of a CLIP or AltCLIP with its tokenizer."""

    def __init__(self, clip: CLIPModel | AltCLIPModel, tokenizer: Any) -> None:
        self.clip, self.width = clip, clip.text_projection.in_features
        self.tower, self.tokenizer = clip.text_model.eval().requires_grad_(False), tokenizer

    @classmethod
    def read(cls, folder: Path) -> "Teacher":
        clip = AutoModel.from_pretrained(folder, dtype=torch.float32)
        return cls(clip, AutoTokenizer.from_pretrained(folder))

    def lengths(self, texts: list[str]) -> list[int]:
        """Tokens of each text."""
        return [len(ids) for ids in self.tokenizer(texts, truncation=True).input_ids]

    @torch.no_grad()
    def pooled(self, texts: list[str], device: torch.device | str = "cpu") -> Tensor:
        """(texts, dim): the states that its text projection takes."""
        tokens = self.tokenizer(texts, padding=True, truncation=True, return_tensors="pt").to(device)
        tower = self.tower.to(device)
        return tower(tokens.input_ids, attention_mask=tokens.attention_mask).pooler_output.float()

    @torch.no_grad()
    def penultimate(self, texts: list[str], device: torch.device | str = "cpu") -> Tensor:
        """(texts, dim): the same from the layer before the last, what Stable Diffusion 2 conditions on."""
        tokens = self.tokenizer(texts, padding=True, truncation=True, return_tensors="pt").to(device)
        tower = self.tower.to(device)
        output = tower(tokens.input_ids, attention_mask=tokens.attention_mask, output_hidden_states=True)
        end = tokens.attention_mask.sum(1) - 1  # the first end-of-text token: the others are padding
        rows = torch.arange(len(texts), device=end.device)
        return tower.final_layer_norm(output.hidden_states[-2])[rows, end].float()


class KeptTeacher:
    """Stands for a `Teacher`, with an embedding of each English text and head.

    The teacher is read for texts that are not kept, and when its CLIP is asked for.
    """

    def __init__(self, folder: Path, cache: Path, heads: int) -> None:
        config: Any = AutoConfig.from_pretrained(folder)
        text = config.text_config
        self.width: int = text.project_dim if config.model_type == "altclip" else text.hidden_size

        def make(teacher: Teacher, texts: list[str]) -> list[Tensor]:
            said = [teacher.pooled(texts, self.kept.device)]
            if heads > 1:
                said.append(teacher.penultimate(texts, self.kept.device))
            return list(torch.stack(said, dim=1))

        self.kept = Kept(
            "teacher embeddings",
            folder,
            cache,
            lambda: Teacher.read(folder),
            make,
            lambda texts: [heads] * len(texts),
            self.width,
            f"{heads} heads",
            rounded=False,
        )

    @property
    def clip(self) -> Any:
        return self.kept.model.clip

    def lengths(self, texts: list[str]) -> list[int]:
        """0 of what is kept, which does not depend on the texts beside it; tokens of each other text."""
        unknown = [text for text in texts if text not in self.kept.store]
        tokens = dict(zip(unknown, self.kept.model.lengths(unknown), strict=True)) if unknown else {}
        return [tokens.get(text, 0) for text in texts]

    def pooled(self, texts: list[str], device: torch.device | str = "cpu") -> Float[Tensor, "texts dim"]:
        return torch.stack(self.kept(texts))[:, 0].to(device)

    def penultimate(self, texts: list[str], device: torch.device | str = "cpu") -> Float[Tensor, "texts dim"]:
        return torch.stack(self.kept(texts))[:, 1].to(device)
