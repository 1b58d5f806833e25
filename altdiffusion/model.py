"""AltCLIP: texts and pictures in one space, over the stock `transformers.AltCLIPModel`."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from transformers import AltCLIPModel, CLIPImageProcessorPil, XLMRobertaTokenizer
from transformers.activations import ACT2FN

from altdiffusion import bundled, cards, checkpoints, openvino_parts, towers
from altdiffusion.conditioning import as_texts, tokenize, tower_length
from altdiffusion.images import upright_rgb
from altdiffusion.openvino_cache import choose_runtime
from altdiffusion.packing import first_states
from altdiffusion.preprocessing import normalized, whole_pixels
from altdiffusion.requests import as_list, shorten
from altdiffusion.runtime import choose_device, choose_dtype

if TYPE_CHECKING:
    Pictures = Image.Image | Sequence[Image.Image]
    Texts = str | Sequence[str]
else:  # checked here, where the message can say what to do
    Pictures = Texts = Any

_PICTURES = "PIL pictures (open files with altdiffusion.images.open_image) or pixel_values"
_BATCH = 64
#: The published activation, and the one that the vision tower of m18 was trained with elsewhere.
_VISION_ACTS = ("quick_gelu", "gelu")


class AltCLIP:
    """A text tower for 18 languages and an image tower that agree on what things are.

    `form` says how the text tower conditions a UNet (towers.py). `generation_head` is m18's: the weight and
    bias of `transformation_pre`, which transformers' class has no place for.
    """

    def __init__(
        self,
        model: AltCLIPModel,
        tokenizer: XLMRobertaTokenizer,
        image_processor: CLIPImageProcessorPil,
        *,
        form: str | None = None,
        generation_head: dict[str, Tensor] | None = None,
    ) -> None:
        self.model: Any = model.eval()  # its methods' annotations say less than they do
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self.generation_head = generation_head and {
            kind: tensor.to(self.device, self.dtype) for kind, tensor in generation_head.items()
        }
        config = self.model.config.text_config
        found = towers.form_of(self.model.text_model.state_dict(), config.to_dict())
        self.form = form or ("m18" if generation_head else found)
        if self.form != found:  # written where a later reader could not tell it from the tensors
            setattr(config, towers.FORM_FIELD, self.form)
        self._fingerprint: tuple[object, str] | None = None

    @classmethod
    def from_pretrained(
        cls,
        name_or_folder: str | os.PathLike | None = None,
        *,
        dtype: str | torch.dtype | None = None,
        device: str | torch.device | None = None,
        revision: str | None = None,
        tokenizer: str | os.PathLike | None = None,
        vision_act: str | None = None,
        runtime: str = "torch",
    ) -> "AltCLIP":
        """The bundled model, a Hub name, or what holds an AltCLIP in a published layout (docs/weights.md).

        `tokenizer` is the folder of one, for a checkpoint that brings none.
        `vision_act` replaces the vision tower's activation. AltCLIP-m18 was published with "quick_gelu", the
        ViT-H/14 that it was made from (OpenCLIP, laion2b_s32b_b79k) computes plain "gelu": try both where its
        picture features disappoint. The default is what the model's own configuration says.
        `runtime="openvino"` runs both towers by OpenVINO on the CPU (docs/openvino.md).
        """
        if vision_act is not None and vision_act not in _VISION_ACTS:
            raise ValueError(f"vision_act: {vision_act!r:.80} is none; allowed: {', '.join(_VISION_ACTS)}")
        make = choose_runtime(runtime, device)
        device = choose_device("cpu" if make else device)
        dtype = choose_dtype(device, dtype)
        found = checkpoints.find(name_or_folder, revision=revision)
        with bundled.compared(found.path, "altclip/" if (found.path / "altclip").is_dir() else ""):
            parts = checkpoints.load_altclip(found, dtype=dtype, tokenizer=tokenizer, make=make)
        if make and vision_act is not None:
            raise openvino_parts.refuse("vision_act")
        if vision_act is not None:
            _set_vision_act(parts["model"], vision_act)
        parts["model"].to(device)
        clip = cls(**parts)
        if make:
            assert clip.fingerprint  # for which alone the weights that were converted are still there
            for tower in (clip.model.text_model, clip.model.vision_model):
                tower.weights.clear()
        return clip

    @torch.no_grad()
    def encode_text(self, text: Texts, normalize: bool = True) -> Float[Tensor, "batch dim"]:
        """One row for each text, in their order; a text beyond the tower's positions is cut."""
        length = min(self.tokenizer.model_max_length, tower_length(self.model.text_model))
        rows = tokenize(self.tokenizer, as_texts(text, "text"), length)
        features = self.model.text_projection(first_states(self.model.text_model, rows))
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

    def preprocess(
        self, images: Pictures, normalize: bool = True
    ) -> Float[Tensor, "batch channels height width"] | UInt8[Tensor, "batch channels height width"]:
        """`pixel_values`: upright, transparency on white, short side resized, middle cropped, normalised.

        Without the last they stay whole numbers, a quarter of the size, for `normalize_pixels` to finish.
        """
        pictures = [upright_rgb(one, f"images: item {n}") for n, one in enumerate(_as_pictures(images))]
        pixels = whole_pixels(self.image_processor, pictures)
        return normalized(self.image_processor, pixels) if normalize else pixels

    def normalize_pixels(
        self, pixels: UInt8[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        """`pixel_values` from whole numbers, on the model's device."""
        return normalized(self.image_processor, pixels.to(self.device))

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """An AltCLIP folder that plain transformers opens. m18's generation head goes in as published."""
        if self.runtime == "openvino":
            raise openvino_parts.refuse("saving")
        state = None
        if self.generation_head is not None:
            head = {
                f"text_model.transformation_pre.{k}": tensor for k, tensor in self.generation_head.items()
            }
            state = {**self.model.state_dict(), **head}
        target = Path(folder)
        with checkpoints.saving(target) as place:
            self.model.save_pretrained(place, state_dict=state)
            self.tokenizer.save_pretrained(place)
            self.image_processor.save_pretrained(place)
            if self.form != "own" and not (target / "README.md").exists():
                text_config = self.model.config.text_config.to_dict()
                card = cards.card(
                    self.form, "an AltCLIP", draws=False, text_config=text_config, changes=cards.SAVED
                )
                (place / "README.md").write_text(card, encoding="utf-8")

    @property
    def runtime(self) -> str:
        """What runs the towers: "torch" or "openvino"."""
        return "openvino" if isinstance(self.model.text_model, openvino_parts.Part) else "torch"

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
            texts = [checkpoints.vocabulary(self.tokenizer), self.image_processor.to_json_string()]
            act = self.model.config.vision_config.hidden_act
            texts += [act] if act != _VISION_ACTS[0] else []
            self._fingerprint = stamp, checkpoints.fingerprint([self.model], texts)
        return self._fingerprint[1]

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


def _set_vision_act(model: Any, act: str) -> None:
    model.config.vision_config.hidden_act = act
    for layer in model.vision_model.encoder.layers:
        layer.mlp.activation_fn = ACT2FN[act]


def _as_pictures(images: Pictures) -> list[Image.Image]:
    """Refuses texts above all: transformers would fetch an address and open a path."""
    pictures = as_list(images, "images", Image.Image, _PICTURES)
    if not pictures:
        raise ValueError(f"images: an empty list; allowed: {_PICTURES}")
    for number, picture in enumerate(pictures):
        if not isinstance(picture, Image.Image):
            kind = type(picture).__name__
            raise TypeError(f"images: item {number}, {shorten(picture)}, is {kind}; allowed: {_PICTURES}")
        if not all(picture.size):
            raise ValueError(f"images: item {number} has no pixels; allowed: 1 x 1 and up")
    return pictures
