"""Contrastive learning (Chen et al. 2022, section 3.3): pictures and their captions meet in one space.

Stage 2 of AltCLIP trains the text tower of an AltCLIP against its locked image tower (LiT). With `model` left
out the same loss trains a small CLIP from nothing on English captions: the teacher of the bundled model.

Every sample is told from the whole batch's, however many processes and accumulated passes share it.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import (
    AltCLIPModel,
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    CLIPImageProcessor,
    CLIPModel,
)

from altdiffusion import aside, checkpoints
from altdiffusion.losses import contrastive_loss, sigmoid_loss
from altdiffusion.model import AltCLIP
from training.attending import attend_in_clip
from training.captioned import CaptionedPictures
from training.captions import Captions, check_captions
from training.config import OptimConfig, RunConfig, parse
from training.data import open_pictures, say
from training.emoji import load_emoji, some_emoji
from training.export import Made, data_of, finish
from training.frozen import store_rounded, unrounded
from training.image_tower import IMAGE, text_side, whole_again
from training.loop import Run
from training.new_clip import TowersConfig, build_clip
from training.opened import Opened
from training.picture_features import Encode, PictureFeatures
from training.pictures import PicturesConfig
from training.processes import state_of_processes
from training.samples import shorten
from training.scenes import AllNames, CaptionedScenes
from training.stage import run_stage
from training.student import still
from training.teacher import Teacher
from training.tokenizers import train_clip_tokenizer
from training.whole_batch import WholeBatch, whole_batches

#: CLIP's own normalisation (openai/clip-vit-large-patch14, preprocessor_config.json); every published AltCLIP
#: has it too.
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
#: Where SigLIP's factor (as its log) and bias start (Zhai et al. 2023, section 3.2).
SIGLIP_SCALE, SIGLIP_BIAS = np.log(10.0), -10.0


@dataclass(frozen=True)
class ContrastConfig:
    """Contrastive stage: AltCLIP's stage 2, or a small English CLIP from nothing."""

    output_dir: Path
    model: Path | None = None
    """AltCLIP folder whose text tower is trained, or CLIP folder that goes on whole. None: a new CLIP."""
    loss: Literal["infonce", "siglip"] = "infonce"
    """infonce: CLIP's and the paper's. siglip: each pair by itself; scale and bias start anew."""
    lock_image: bool | None = None
    """Keep the image tower as it is. None: an AltCLIP's is locked, as in the paper, a CLIP's is not."""
    lock_text: bool = False
    """Keep the text tower as it is, for a UNet that attends to its states: its projection is trained, and the
    image tower, which is then not locked."""
    all_names: float = 0.0
    """Weight of telling scenes of one emoji from the names of all, in all languages. Needs lock_text."""
    freeze_embeddings: bool = False
    """Leave the word embeddings as they are: half of an XLM-R-large, a fifth of each step's time."""
    data: str = ""
    """Pictures with captions, in the place of the emoji: a folder, a file, or a data set's name."""
    reading: PicturesConfig = field(default_factory=PicturesConfig)
    """How `data` is read. The pictures are scaled to `size`, in no buckets."""
    languages: tuple[str, ...] = ()
    """Caption languages; empty means all."""
    cache: Path | None = None
    """Folder, which runs may share, for the features of `data`'s pictures, so that a locked image tower is
    read only where something is missing, and at the end. None: computed anew in every step."""
    size: int = 64
    """Side of the pictures in pixels; of a `model` it has to be the one that its image tower sees."""
    emoji: int = 0
    """Learn only so many of the emoji, spread evenly; 0: all."""
    counts: tuple[int, ...] = (1, 1, 1, 2, 3, 4)
    """Emoji in a scene, drawn evenly from this list."""
    ordered: bool = False
    """Captions name several emoji in reading order, and a batch holds the same ones in the opposite order."""
    ground_share: float = 0.0
    """Share of the scenes on a ground whose colour the caption names."""
    towers: TowersConfig = field(default_factory=TowersConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        if not self.data:
            check_captions(self.languages, self.counts)
        if self.lock_image and self.model is None:
            raise ValueError(
                "lock_image: True with a new CLIP, whose image tower has learnt nothing; give model"
            )
        if self.lock_text and (self.lock_image or self.model is None):
            raise ValueError("lock_text: True with lock_image, or with a new CLIP; allowed: one, with model")
        if self.all_names and (self.data or not self.lock_text):
            raise ValueError(f"all_names: {self.all_names} without lock_text, or with data; allowed: 0")
        if self.freeze_embeddings and self.model is None:
            raise ValueError("freeze_embeddings: True with a new CLIP, which has learnt no words; give model")
        if self.data and self.model is None:
            raise ValueError(
                f"data: {shorten(self.data)} with a new CLIP, whose tokenizer knows emoji alone; give model"
            )
        if self.cache is not None and not self.data:
            raise ValueError("cache: the emoji's scenes never come twice; allowed: with data")
        for name in ("streaming", "buckets"):
            if value := getattr(self.reading, name):
                raise ValueError(f"reading.{name}: {value!r} is for text_to_image; leave it out")


def inputs(images: Tensor, texts: list[str], groups: Tensor, tokenizer: Any) -> dict[str, Tensor]:
    """What the stage takes."""
    tokens = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    return {
        "pixel_values": normalised(images) if images.ndim == 4 else images,
        "input_ids": tokens.input_ids,
        "attention_mask": tokens.attention_mask,
        "groups": groups,
    }


def normalised(images: Tensor) -> Tensor:
    """[-1, 1] pixels in CLIP's own scale."""
    mean, std = (torch.tensor(v)[:, None, None] for v in (CLIP_MEAN, CLIP_STD))
    return ((images + 1) / 2 - mean) / std


class Contrast(nn.Module):
    """A CLIP (or AltCLIP) and the loss in one module. A locked image tower is run without gradients."""

    def __init__(self, clip: CLIPModel | AltCLIPModel, locked: bool, loss: str = "infonce") -> None:
        super().__init__()
        self.clip, self.locked = clip, locked
        self.accelerator: Accelerator | None = None
        self.names: AllNames | None = None
        self.names_weight = 0.0
        self.logit_bias = None
        if locked:
            for name, part in clip.named_children():
                if name in IMAGE:
                    part.requires_grad_(False)
        if loss == "siglip":
            clip.logit_scale.data.fill_(SIGLIP_SCALE)
            self.logit_bias = nn.Parameter(torch.tensor(SIGLIP_BIAS))

    def image(self, pixel_values: Tensor) -> Tensor:
        """Unit-norm features; those from a cache go through as they are."""
        if pixel_values.ndim == 2:
            return pixel_values
        with torch.set_grad_enabled(not self.locked and torch.is_grad_enabled()):
            features = self.clip.get_image_features(pixel_values=pixel_values).pooler_output
        return F.normalize(features.float(), dim=-1)

    def text(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        features = self.clip.get_text_features(input_ids=input_ids, attention_mask=attention_mask)
        return F.normalize(features.pooler_output.float(), dim=-1)

    def forward(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        groups: Tensor,
        whole: WholeBatch | None = None,
    ) -> Tensor:
        """`whole` is the step's, where this is one of several passes."""
        text = self.text(input_ids, attention_mask)
        image = whole.image if self.locked and whole is not None else self.image(pixel_values)
        if whole is None and self.accelerator is not None and self.accelerator.num_processes > 1:
            (whole,) = whole_batches(self.accelerator, [image], [text], [groups])
        scale = self.clip.logit_scale.clamp(max=np.log(100.0))
        extra = image.new_zeros(())
        if self.names is not None:
            project = self.clip.text_projection
            extra = self.names_weight * self.names.loss(image, groups, project, scale)
        if whole is not None:
            image = whole.image if self.locked else whole.around(whole.image, image)
            text, groups = whole.around(whole.text, text), whole.groups
        if self.logit_bias is not None:
            return sigmoid_loss(image, text, self.clip.logit_scale, self.logit_bias, groups) + extra
        return contrastive_loss(image, text, scale, groups) + extra


def steps(run: Run, dataset: Any, tokenizer: Any) -> Iterator[list[dict[str, Tensor]]]:
    """The passes of each step together: none of them can be trained before all have been embedded."""
    passes = []
    for images, texts, groups in run.batches(dataset):
        batch = inputs(images, texts, groups, tokenizer)
        passes.append({name: part.to(run.accelerator.device) for name, part in batch.items()})
        if len(passes) == run.config.run.gradient_accumulation_steps:
            yield passes
            passes = []


def pass_losses(run: Run, stage: Contrast, passes: list[dict[str, Tensor]]) -> Iterator[Tensor]:
    """The loss of each pass: that of the whole step, with the gradient of its own samples."""
    if len(passes) == 1:
        with run.accelerator.autocast():
            loss = run.model(**passes[0])
        yield loss  # outside: the backward pass runs where this is taken up
        return
    seed, images, texts = torch.initial_seed(), [], []
    with torch.no_grad(), run.accelerator.autocast():
        for number, batch in enumerate(passes):
            torch.manual_seed(seed + number)
            texts.append(stage.text(batch["input_ids"], batch["attention_mask"]))
            images.append(stage.image(batch["pixel_values"]))
    wholes = whole_batches(run.accelerator, images, texts, [batch["groups"] for batch in passes])
    for number, (batch, whole) in enumerate(zip(passes, wholes, strict=True)):
        torch.manual_seed(seed + number)  # dropout has to fall as it fell when the pass was embedded
        with run.accelerator.autocast():
            loss = run.model(**batch, whole=whole)
        yield loss


def check_model(config: ContrastConfig) -> Any:
    """The configuration of `config.model`; refuses what is no CLIP, or sees pictures of another size."""
    found: Any = AutoConfig.from_pretrained(config.model)
    if found.model_type not in ("altclip", "clip"):
        name = f"{str(config.model)!r:.80} is {found.model_type}"
        raise ValueError(f"model: {name}; allowed: an AltCLIP or a CLIP")
    if (size := found.vision_config.image_size) != config.size:
        raise ValueError(f"size: {config.size}; allowed by {str(config.model)!r:.80}: {size}")
    return found


def build(config: ContrastConfig) -> tuple[Any, Any, dict[str, Tensor] | None]:
    """Model and tokenizer: those of `config.model`, or new ones; an m18's generation head goes along."""
    if config.model is not None:
        found = check_model(config)
        if found.model_type == "altclip" and checkpoints.find(str(config.model)).form == "m18":
            whole = AltCLIP.from_pretrained(str(config.model), dtype=torch.float32, device="cpu")
            return whole.model, whole.tokenizer, whole.generation_head
        clip = AutoModel.from_pretrained(config.model, dtype=torch.float32)
        return clip, AutoTokenizer.from_pretrained(config.model), None
    captions = Captions(load_emoji(), all_keywords=True)
    lines = captions.corpus(*config.languages, grounds=config.ground_share > 0)
    tokenizer = train_clip_tokenizer(lines, config.towers.vocab_size)
    return build_clip(config.towers, config.size, len(tokenizer)), tokenizer, None


def kept_features(config: ContrastConfig, opened: Opened, locked: bool) -> PictureFeatures:
    """The features of all pictures; the image tower is read where some are missing."""
    if config.model is None or not locked:
        raise ValueError("cache: with an image tower that is trained; allowed: with lock_image True")
    found = check_model(config)

    def read() -> Encode:
        tower = Contrast(build(config)[0].to(state_of_processes().device), locked).eval()
        return lambda pixels: tower.image(normalised(pixels))

    features = PictureFeatures(opened, config.model, config.size, config.cache or Path(), config.run)
    features.keep(read, found.projection_dim)
    return features


def hold(stage: Contrast, tokenizer: Any, config: ContrastConfig) -> None:
    """Keeps of the text side what is to stay, and what a locked tower says of all names."""
    tower: Any = stage.clip.text_model
    if config.freeze_embeddings:
        tower.get_input_embeddings().requires_grad_(False)
    if config.lock_text:
        still(tower.requires_grad_(False))
    if config.all_names:
        stage.names = AllNames(Teacher(stage.clip, tokenizer), some_emoji(config.emoji), config.languages)
        stage.names_weight = config.all_names


def train(config: ContrastConfig) -> None:
    opened = open_pictures(config.data, config.reading, config.languages) if config.data else None
    dataset: Any = CaptionedScenes(config) if opened is None else None
    torch.manual_seed(config.run.seed)
    locked = bool(config.lock_image)
    if config.lock_image is None and config.model is not None and not config.lock_text:
        locked = check_model(config).model_type == "altclip"
    features = None
    if config.cache is not None and opened is not None:
        features = kept_features(config, opened, locked)
        clip, head = text_side(checkpoints.locate(str(config.model))), None
        tokenizer = AutoTokenizer.from_pretrained(config.model)
    else:
        clip, tokenizer, head = build(config)
    attend_in_clip(clip, config.run.mixed_precision)
    stage = Contrast(clip, locked, config.loss)
    hold(stage, tokenizer, config)
    store_rounded(stage, config.run.mixed_precision)
    run = Run.start(config, stage)
    stage.accelerator = run.accelerator
    if opened is not None:
        say(opened, tokenizer, state_of_processes())
        dataset = CaptionedPictures(opened, config.run, config.size, features)
    for passes in steps(run, dataset, tokenizer):
        for loss in pass_losses(run, stage, passes):
            run.step(loss)
    if run.accelerator.is_main_process:
        trained: Any = run.trained()
        if features is not None:
            whole, tokenizer, head = build(config)
            trained.clip = whole_again(trained.clip, whole)
        export(trained, tokenizer, config, head)
        made = Made(
            title="AltCLIP" if isinstance(clip, AltCLIPModel) else "CLIP",
            stage="contrastive learning (Chen et al. 2022, section 3.3)",
            library="transformers",
            task="zero-shot-image-classification",
            bases={"model": config.model},
            **data_of(opened, config.languages),
        )
        finish(config, made)


def export(trained: Any, tokenizer, config: ContrastConfig, head: dict[str, Tensor] | None) -> None:
    """A plain transformers folder, with the processor that fits the pictures' size."""
    folder = config.output_dir / "model"
    clip = unrounded(trained.clip, config.run.mixed_precision, lambda: build(config)[0])
    if head is not None:
        whole = AltCLIP(clip, tokenizer, processor(config.size), form="m18", generation_head=head)
        whole.save_pretrained(folder)
    else:
        with aside.merged(folder) as place:
            for part in (clip, tokenizer, processor(config.size)):
                part.save_pretrained(place)
    report = {
        "logit_scale": clip.logit_scale.exp().item(),
        "samples": config.run.max_train_steps * config.run.batch_size,
        **({} if trained.logit_bias is None else {"logit_bias": trained.logit_bias.item()}),
    }
    (config.output_dir / "report.json").write_text(json.dumps(report, indent=1))


def processor(size: int) -> CLIPImageProcessor:
    return CLIPImageProcessor(
        size={"shortest_edge": size},
        crop_size={"height": size, "width": size},
        image_mean=CLIP_MEAN,
        image_std=CLIP_STD,
    )


def main() -> None:
    run_stage(parse(ContrastConfig), train)


if __name__ == "__main__":
    main()
