"""AltCLIP: texts and pictures in one space, over the stock `transformers.AltCLIPModel`."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F
from transformers import AltCLIPModel, CLIPImageProcessorPil, XLMRobertaTokenizer

from altdiffusion import bundled, checkpoints
from altdiffusion.conditioning import as_texts, tokenize, tower_length
from altdiffusion.images import _rgb
from altdiffusion.runtime import choose_device, choose_dtype

if TYPE_CHECKING:
    Pictures = Image.Image | Sequence[Image.Image]
    Texts = str | Sequence[str]
else:  # checked here, where the message can say what to do
    Pictures = Texts = Any

_ALLOWED_IMAGES = "allowed: PIL pictures (open files with altdiffusion.images.open_image) or pixel_values"
#: Beyond this a picture is cropped first: resized by its short side, one of 30000 x 1 would take gigabytes.
_MAX_ASPECT = 8
_BATCH = 64


class AltCLIP:
    """A text tower for 18 languages and an image tower that agree on what things are."""

    def __init__(
        self, model: AltCLIPModel, tokenizer: XLMRobertaTokenizer, image_processor: CLIPImageProcessorPil
    ) -> None:
        self.model: Any = model.eval()  # its methods' annotations say less than they do
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self._fingerprint: tuple[object, str] | None = None

    @classmethod
    def from_pretrained(
        cls,
        name_or_folder: str | os.PathLike | None = None,
        *,
        dtype: str | torch.dtype | None = None,
        device: str | torch.device | None = None,
        revision: str | None = None,
    ) -> "AltCLIP":
        """The bundled model, an AltCLIP folder, a pipeline folder that holds one, or a Hub name."""
        device = choose_device(device)
        dtype = choose_dtype(device, dtype)
        folder = checkpoints.resolve(name_or_folder, revision=revision)
        if checkpoints.kind_of(folder) == "pipeline":
            if not (folder / "altclip").is_dir():
                raise ValueError(f"model: {str(folder)!r:.80} has no altclip folder; allowed: one that has")
            folder = folder / "altclip"
        model = checkpoints.load_strict(AltCLIPModel, folder, dtype=dtype)
        tokenizer = checkpoints.load_tokenizer(folder, model.config.text_config.vocab_size)
        processor = CLIPImageProcessorPil.from_pretrained(str(folder), local_files_only=True)
        return cls(model.to(device), tokenizer, processor)

    @torch.no_grad()
    def encode_text(self, text: Texts, normalize: bool = True) -> Float[Tensor, "batch dim"]:
        """One row for each text, in their order; a text beyond the tower's positions is cut."""
        length = min(self.tokenizer.model_max_length, tower_length(self.model.text_model))
        rows = tokenize(self.tokenizer, as_texts(text, "text"), length)
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))  # neighbours need hardly any padding
        batches = [order[at : at + _BATCH] for at in range(0, len(rows), _BATCH)]
        features = torch.cat([self._text_features([rows[i] for i in batch]) for batch in batches])
        features = features[torch.tensor(order).argsort().to(self.device)]
        return F.normalize(features, dim=-1) if normalize else features

    @torch.no_grad()
    def encode_image(self, images: Pictures | Tensor, normalize: bool = True) -> Float[Tensor, "batch dim"]:
        """One row for each picture. A tensor is taken as `pixel_values`, already resized and normalised."""
        if isinstance(images, Tensor):
            batches = self._checked(images).split(_BATCH)
        else:
            pictures = _as_pictures(images)
            batches = (self.preprocess(pictures[at : at + _BATCH]) for at in range(0, len(pictures), _BATCH))
        features = torch.cat([self._image_features(batch) for batch in batches])
        return F.normalize(features, dim=-1) if normalize else features

    @torch.no_grad()
    def logits(self, text: Texts, images: Pictures | Tensor) -> Float[Tensor, "texts images"]:
        """`logits_per_text`: cosine similarity times the learned scale."""
        scale = self.model.logit_scale.exp()
        return scale * self.encode_text(text) @ self.encode_image(images).T

    def preprocess(self, images: Pictures) -> Float[Tensor, "batch channels height width"]:
        """`pixel_values`: upright, transparency on white, short side resized, middle cropped, normalised."""
        pictures = [self._shaped(_rgb(ImageOps.exif_transpose(picture))) for picture in _as_pictures(images)]
        return self.image_processor(pictures, return_tensors="pt").pixel_values

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """An AltCLIP folder that plain transformers opens."""
        with checkpoints.quiet():
            self.model.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)
            self.image_processor.save_pretrained(folder)
        checkpoints.forget_paths(Path(folder))
        bundled.write_manifest(Path(folder))

    @property
    def dim(self) -> int:
        return self.model.config.projection_dim

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def fingerprint(self) -> str:
        """SHA-256 of weights, tokenizer and preprocessing: indexes made with another one do not fit."""
        stamp = checkpoints.stamp(self.model)
        if self._fingerprint is None or self._fingerprint[0] != stamp:
            texts = [self.tokenizer.backend_tokenizer.to_str(), self.image_processor.to_json_string()]
            self._fingerprint = stamp, checkpoints.fingerprint([self.model], texts)
        return self._fingerprint[1]

    def _text_features(self, rows: list[list[int]]) -> Float[Tensor, "batch dim"]:
        inputs = self.tokenizer.pad({"input_ids": rows}, return_tensors="pt").to(self.device)
        return self.model.get_text_features(**inputs).pooler_output

    def _image_features(
        self, pixel_values: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch dim"]:
        return self.model.get_image_features(pixel_values.to(self.device, self.dtype)).pooler_output

    def _checked(self, images: Tensor) -> Tensor:
        size = self.model.config.vision_config.image_size
        if images.ndim != 4 or images.shape[1:] != (3, size, size) or not len(images):
            shape = tuple(images.shape)
            raise ValueError(f"images: a tensor of shape {shape}; allowed: (1 or more, 3, {size}, {size})")
        if not images.is_floating_point() or not images.isfinite().all():
            raise ValueError("images: a tensor of whole, infinite or NaN values; allowed: pixel_values")
        return images

    def _shaped(self, picture: Image.Image) -> Image.Image:
        """Crops long, thin pictures before resizing: the same middle, without the giant in between."""
        width, height = picture.size
        short = min(width, height)
        if max(width, height) <= _MAX_ASPECT * short:
            return picture
        left, top = (width - short) / 2, (height - short) / 2
        crop = self.image_processor.crop_size
        size = (crop["width"], crop["height"])
        return picture.resize(size, Image.Resampling.BICUBIC, box=(left, top, left + short, top + short))


def _as_pictures(images: Pictures) -> list[Image.Image]:
    """Refuses texts above all: transformers would fetch an address and open a path."""
    if isinstance(images, str | bytes | os.PathLike):
        raise TypeError(f"images: {images!r:.80} is {type(images).__name__}; {_ALLOWED_IMAGES}")
    pictures = [images] if isinstance(images, Image.Image) else list(images)
    if not pictures:
        raise ValueError(f"images: an empty list; {_ALLOWED_IMAGES}")
    for number, picture in enumerate(pictures):
        if not isinstance(picture, Image.Image):
            kind = type(picture).__name__
            raise TypeError(f"images: item {number}, {picture!r:.80}, is {kind}; {_ALLOWED_IMAGES}")
        if not all(picture.size):
            raise ValueError(f"images: item {number} has no pixels; allowed: 1 x 1 and up")
    return pictures
