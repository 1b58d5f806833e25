"""What the adapter stage learns from and is judged on: latents, a caption in some language, its English."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from training.captions import Captions
from training.emoji import Scene
from training.multilingual import Survey
from training.pictures import CachedPictures


@dataclass(frozen=True)
class Judged:
    """What the report's figures are about."""

    latents: Float[Tensor, "pictures channels height width"]
    samples: Mapping[str, list[tuple[int, str, str]]]
    """In each language (place among the latents, caption, its English)."""


def judged_emoji(
    scenes: list[Scene], latents: Tensor, captions: Captions, tags: tuple[str, ...], count: int
) -> Judged:
    """The plain names of so many emoji, spread evenly."""
    chosen = np.linspace(0, len(scenes) - 1, min(count, len(scenes))).round().astype(int).tolist()
    samples = {
        tag: [(n, captions.name(scenes[n], tag), captions.name(scenes[n])) for n in chosen] for tag in tags
    }
    return Judged(latents, samples)


class ParallelPictures(torch.utils.data.Dataset):
    """Endless (latents, caption in some language, its English) of one's own pictures."""

    items = None

    def __init__(self, pictures: CachedPictures, dropout: float) -> None:
        self.pictures, self.dropout, self.seed = pictures, dropout, pictures.run.seed

    def texts(self, index: int) -> tuple[tuple[int, int], str, str]:
        """Bucket and record, caption, English."""
        bucket, tag, record = self.pictures.place(index)
        captions = self.pictures.read(self.pictures.rows[record])
        # Several texts of a record in both languages are each other's translations in their order.
        place = int(np.random.default_rng((self.seed, index, 4)).integers(len(captions[tag])))
        return (bucket, record), captions[tag][place], captions["en"][place % len(captions["en"])]

    def __getitem__(self, index: int) -> tuple[Tensor, str, str]:
        (bucket, record), text, english = self.texts(index)
        random = np.random.default_rng((self.seed, index, 5))
        dropped = random.random() < self.dropout
        kept = self.pictures.latents[bucket]
        latents = kept.seen(record, int(random.integers(kept.views)))
        return (latents, "", "") if dropped else (latents, text, english)

    def collate(self, items: list[tuple[Tensor, str, str]]) -> tuple[Tensor, list[str], list[str]]:
        latents, texts, english = zip(*items, strict=True)
        return torch.stack(latents), list(texts), list(english)

    def judged(self, found: Survey, count: int) -> Judged:
        """So many records of each language, spread evenly over those of the fullest bucket."""
        kept = max(self.pictures.latents, key=lambda bucket: len(bucket.records))
        samples: dict[str, list[tuple[int, str, str]]] = {}
        latents: list[Tensor] = []
        for tag, records in found.rows.items():
            records = np.intersect1d(records, kept.records)
            for n in np.linspace(0, len(records) - 1, min(count, len(records))).round().astype(int):
                captions = self.pictures.read(self.pictures.rows[int(records[n])])
                samples.setdefault(tag, []).append((len(latents), captions[tag][0], captions["en"][0]))
                latents.append(kept.seen(int(records[n]), 0))
        return Judged(torch.stack(latents), samples)
