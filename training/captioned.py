"""Pictures and captions of one's own for the contrastive stage."""

from typing import Any
from zlib import crc32

import numpy as np
import torch
from torch import Tensor

from training.config import RunConfig
from training.multilingual import LanguageOrder
from training.opened import Opened
from training.picture_features import PictureFeatures
from training.pictures import PicturesConfig, as_pixels, opened, picture_reader
from training.samples import BadSample, Row
from training.streams import replaced


class CaptionedPictures(torch.utils.data.Dataset):
    """Endless (pixels, caption, group), each a function of (seed, index). Equal captions share a group.

    With `features` these come in the place of pixels.
    """

    items = None

    def __init__(
        self, data: Opened, run: RunConfig, size: int, features: PictureFeatures | None = None
    ) -> None:
        assert data.rows is not None and data.found is not None and isinstance(data.config, PicturesConfig)
        self.rows, self.read, self.found, self.run, self.size = data.rows, data.read, data.found, run, size
        self.picture = picture_reader(data.rows.folder, data.rows.columns, data.config)
        self.views = data.config.views
        self.damaged: set[int] = set()
        self.bad = data.found.bad
        self.features = features
        within = None if features is None else features.records
        if within is not None and not len(within):
            raise ValueError("data: no sample has both a picture and a caption that can be used")
        self.order = LanguageOrder(data.found, data.config.temperature, within, run.seed, 8)

    def __getitem__(self, index: int) -> tuple[Tensor, str, int] | None:
        """None where the picture is damaged: its batch fills the gap."""
        tag, record = self.order[index]
        row = self.rows[record]
        captions = self.read(row)
        texts = captions[tag]
        text = texts[int(np.random.default_rng((self.run.seed, index, 1)).integers(len(texts)))]
        try:
            pixels = self.seen(index, record, row)
        except BadSample as error:
            if record not in self.damaged:  # it comes again in every round
                self.damaged.add(record)
                self.bad.add(f"sample {record}", error)
            return None
        # Of two languages the English tells whether they say the same.
        return pixels, text, crc32("\n".join(captions.get("en", texts)).encode())

    def seen(self, index: int, record: int, row: Row) -> Tensor:
        if self.features is not None:
            view = int(np.random.default_rng((self.run.seed, index, 9)).integers(self.views.count))
            return self.features[record, view]
        view = self.views.drawn(self.run.seed, index, 9)
        return as_pixels(opened(self.picture(row)), (self.size, self.size), view)

    def collate(self, items: list[Any]) -> tuple[Tensor, list[str], Tensor]:
        pixels, texts, groups = zip(*replaced(items), strict=True)
        return torch.stack(pixels), list(texts), torch.tensor(groups)
