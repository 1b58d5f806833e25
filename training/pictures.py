"""Pictures with captions as a text-to-image stage trains on them: (latents, caption).

Data that is read by place goes through the autoencoder once. The latents lie in the output folder as long as
autoencoder, data and sizes stay, one file per aspect-ratio bucket; what cannot be used is found, counted and
named on the way, before the first step. A stream is encoded while it is read.
"""

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from diffusers import AutoencoderKL
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from altdiffusion.images import ImageError, open_image
from altdiffusion.requests import shorten
from training.buckets import CENTRE, Size, View, Views, bucket_sizes, fitted, nearest
from training.config import RunConfig
from training.multilingual import (
    Captions,
    LanguageOrder,
    SourceConfig,
    Survey,
    caption_reader,
    drawn_from,
    usable,
)
from training.order import Mixed
from training.samples import Bad, BadSample, Row, Rows
from training.streams import Share, Stream, replaced

#: Columns that hold pictures; a webdataset names them by their files' endings.
NAMES = ("image", "file_name", "jpg", "jpeg", "png", "webp", "picture", "img", "0.png", "0.jpg")


class Latents(Protocol):
    """The latents of one bucket, by the number of their record."""

    @property
    def records(self) -> np.ndarray: ...
    @property
    def views(self) -> int: ...
    def seen(self, record: int, view: int) -> Tensor: ...


@dataclass(frozen=True)
class PicturesConfig(SourceConfig):
    """How pictures with captions are read, sized and drawn from."""

    image_column: str = ""
    """Column of the pictures. Empty: the first of image, file_name, jpg, png, webp, …"""
    resolution: int = 512
    """Side of the square that a picture is scaled to cover and cut to; a multiple of 8."""
    buckets: str = ""
    """auto: aspect-ratio buckets of about resolution x resolution pixels; or height,width;height,width;…"""
    crop: Literal["centre", "random"] = "centre"
    """Where a picture is cut that is longer than its size: in the middle, or anywhere."""
    flip: bool = False
    """Mirror half of what is seen, left to right."""
    crops: int = 4
    """Random crops of each picture whose latents are kept; what is not kept is cut anew each time."""

    def __post_init__(self) -> None:
        super().__post_init__()
        bucket_sizes(self.resolution, self.buckets)
        if self.crops < 1:
            raise ValueError(f"crops: {self.crops}; allowed: 1 and up")

    @property
    def views(self) -> Views:
        random = self.crop == "random"
        return Views(random, self.flip, self.crops if random else 1)


def picture_reader(
    folder: Path | None, columns: tuple[str, ...], config: PicturesConfig
) -> Callable[[Row], Any]:
    """What finds the picture of a record: bytes, or the path of a file."""
    if config.image_column and config.image_column not in columns:
        raise ValueError(
            f"image_column: no {shorten(config.image_column, 40)}; allowed: {', '.join(columns)}"
        )
    names = [config.image_column] if config.image_column else [name for name in NAMES if name in columns]
    if not names:
        raise ValueError(f"image_column: none found; allowed: {', '.join(columns)}")

    def source(row: Row) -> Any:
        value = next((row[name] for name in names if row.get(name) is not None), None)
        if isinstance(value, dict):
            value = value.get("bytes") or value.get("path")
        if isinstance(value, str) and folder is not None:
            value = folder / value
        if value is None:
            raise BadSample("no picture")
        return value

    return source


def opened(source: Any) -> Image.Image:
    try:
        return open_image(source)
    except ImageError as error:
        reason = str(error).removeprefix("image: ")
        if isinstance(source, Path):
            reason = reason.replace(shorten(str(source)), source.name)
        raise BadSample(reason) from error


def as_pixels(picture: Image.Image, size: Size, view: View = CENTRE) -> Float[Tensor, "3 height width"]:
    """In [-1, 1], as the autoencoder takes them."""
    array = np.array(fitted(picture, size, view), dtype=np.float32).transpose(2, 0, 1)
    return torch.from_numpy(array) / 127.5 - 1


@torch.no_grad()
def encoded(
    vae: AutoencoderKL, images: Float[Tensor, "batch 3 height width"]
) -> Float[Tensor, "batch channels rows columns"]:
    """Posterior means, scaled to unit variance."""
    latents = vae.encode(images.to(vae.device, vae.dtype)).latent_dist.mean  # pyright: ignore[reportAttributeAccessIssue]
    return latents.float() * vae.config.scaling_factor  # pyright: ignore[reportAttributeAccessIssue]


def latent_shape(vae: AutoencoderKL, height: int, width: int = 0) -> torch.Size:
    """(channels, height, width) of a picture's latents; of a square one's without `width`."""
    fields: Any = vae.config
    shrunk = 2 ** (len(fields.block_out_channels) - 1)
    return torch.Size((fields.latent_channels, height // shrunk, (width or height) // shrunk))


class CachedPictures(torch.utils.data.Dataset):
    """Endless (latents, caption), each a function of (seed, index); a batch lies in one bucket."""

    items = None

    def __init__(
        self,
        rows: Rows,
        read: Callable[[Row], Captions],
        found: Survey,
        buckets: Sequence[Latents],
        config: SourceConfig,
        run: RunConfig,
        dropout: float = 0.0,
        prompt: str = "",
    ) -> None:
        self.rows, self.read, self.run = rows.without_pictures(), read, run
        self.dropout, self.prompt = dropout, prompt
        self.latents = buckets
        if not buckets:
            raise ValueError("data: no sample has both a picture and a caption that can be used")
        sizes = [float(len(bucket.records)) for bucket in buckets]
        self.buckets = Mixed(sizes, run.batch_size, run.seed, 5)
        self.orders = [
            LanguageOrder(found, config.temperature, bucket.records, run.seed, 6, n)
            for n, bucket in enumerate(buckets)
        ]

    def place(self, index: int) -> tuple[int, str, int]:
        """Bucket, language and record of a sample."""
        batch, place = divmod(index, self.run.batch_size)
        bucket, number = self.buckets[batch]
        return bucket, *self.orders[bucket][number * self.run.batch_size + place]

    def __getitem__(self, index: int) -> tuple[Tensor, str]:
        bucket, tag, record = self.place(index)
        random = np.random.default_rng((self.run.seed, index, 3))
        texts = self.read(self.rows[record])[tag]
        text = self.prompt or texts[int(random.integers(len(texts)))]
        dropped = random.random() < self.dropout
        view = int(random.integers(self.latents[bucket].views))
        return self.latents[bucket].seen(record, view), "" if dropped else text

    def collate(self, items: list[tuple[Tensor, str]]) -> tuple[Tensor, list[str]]:
        latents, texts = zip(*items, strict=True)
        return torch.stack(latents), list(texts)


class StreamedPictures(torch.utils.data.Dataset):
    """Endless (pixels, caption) of a stream; `batches` makes latents of them."""

    items = None

    def __init__(
        self,
        stream: Stream,
        source: Any,
        read: Any,
        sizes: list[Size],
        wanted: dict[str, float],
        views: Views,
    ) -> None:
        self.stream, self.source, self.read, self.sizes, self.views = stream, source, read, sizes, views
        self.wanted, self.dropout = wanted, 0.0

    def __getitem__(self, index: int) -> tuple[Tensor, str] | None:
        """None where the picture turns out to be damaged: its batch fills the gap."""
        row, bucket = self.stream[index]
        random = np.random.default_rng((self.stream.share.seed, index, 3))
        captions = self.read(row)
        tag = drawn_from(captions, self.wanted, random)
        text = captions[tag][int(random.integers(len(captions[tag])))]
        dropped = random.random() < self.dropout
        try:
            view = self.views.drawn(self.stream.share.seed, index, 9)
            pixels = as_pixels(opened(self.source(row)), self.sizes[bucket], view)
        except BadSample as error:
            self.stream.bad.add(f"sample {index}", error)
            return None
        return pixels, "" if dropped else text

    def collate(self, items: list[tuple[Tensor, str] | None]) -> tuple[Tensor, list[str]]:
        pixels, texts = zip(*replaced(items), strict=True)
        return torch.stack(pixels), list(texts)


def picture_stream(
    dataset: Any,
    columns: tuple[str, ...],
    wanted: dict[str, float],
    config: PicturesConfig,
    share: Share,
    bad: Bad,
) -> StreamedPictures:
    source = picture_reader(None, columns, config)
    read = caption_reader(columns, config)
    sizes = bucket_sizes(config.resolution, config.buckets)

    def kind(row: Row) -> int | None:
        captions = read(row)
        if not captions:
            raise BadSample("no text")
        width, height = size_of(source(row))
        return nearest(width, height, sizes) if usable(captions, wanted) else None

    stream = Stream(dataset, kind, share, config.shuffle_buffer, bad)
    return StreamedPictures(stream, source, read, sizes, wanted, config.views)


def size_of(source: Any) -> tuple[int, int]:
    """(width, height) as the picture is shown, from its header alone."""
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            # EXIF's orientation: on its side. A PNG would be decoded to look for it.
            turned = image.format != "PNG" and image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
            return (image.height, image.width) if turned else (image.width, image.height)
    except Exception as error:  # Pillow's decoders raise a dozen kinds on damaged files
        raise BadSample("is not a picture") from error


def batches(data: Any, run: Any, vae: AutoencoderKL) -> Iterator[tuple[Tensor, list[str]]]:
    """The run's batches of (latents, captions)."""
    for pictures, texts in run.batches(data):
        yield (encoded(vae, pictures) if isinstance(data, StreamedPictures) else pictures), texts
