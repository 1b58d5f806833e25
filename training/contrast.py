"""Contrastive learning (Chen et al. 2022, section 3.3): pictures and their captions meet in one space.

Stage 2 of AltCLIP trains the text tower of an AltCLIP against its locked image tower (LiT). With `model` left
out the same loss trains a small CLIP from nothing on English captions: the teacher of the bundled model.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AltCLIPModel, AutoModel, AutoTokenizer, CLIPConfig, CLIPImageProcessor, CLIPModel

from altdiffusion.losses import contrastive_loss
from training.captions import Captions, training_scene
from training.config import OptimConfig, RunConfig, parse
from training.emoji import load_emoji, pixels
from training.loop import Run
from training.stage import run_stage
from training.tokenizers import train_clip_tokenizer

#: CLIP's own normalisation (openai/clip-vit-large-patch14, preprocessor_config.json); every published AltCLIP
#: has it too.
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class TowersConfig:
    """Shape of a CLIP that starts from nothing."""

    vocab_size: int = 3000
    text_width: int = 256
    text_layers: int = 4
    vision_width: int = 192
    vision_layers: int = 4
    patch_size: int = 8
    head_width: int = 64
    projection_dim: int = 256


@dataclass(frozen=True)
class ContrastConfig:
    """Contrastive stage: AltCLIP's stage 2, or a small English CLIP from nothing."""

    output_dir: Path
    model: Path | None = None
    """AltCLIP folder whose text tower is trained, or CLIP folder that goes on whole. None: a new CLIP."""
    languages: tuple[str, ...] = ()
    """Caption languages; empty means all."""
    size: int = 64
    counts: tuple[int, ...] = (1, 1, 1, 2, 3, 4)
    """Emoji in a scene, drawn evenly from this list."""
    towers: TowersConfig = field(default_factory=TowersConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    run: RunConfig = field(default_factory=RunConfig)


class CaptionedScenes(torch.utils.data.Dataset):
    """Endless scenes with a caption each; none with a pair of emoji that is held out."""

    items = None

    def __init__(self, config: ContrastConfig, tokenizer) -> None:
        self.config, self.tokenizer = config, tokenizer
        self.emoji = load_emoji()
        self.captions = Captions(self.emoji)

    def __getitem__(self, index: int):
        scene = training_scene(
            self.config.run.seed, index, self.emoji.characters, self.config.counts, pastel=0.5
        )
        random = np.random.default_rng((self.config.run.seed, index, 1))
        tag = self.captions.random_language(random, scene.characters, self.config.languages)
        return scene, self.captions.caption(scene, tag, random)

    def collate(self, items: list) -> dict[str, Tensor]:
        scenes, texts = zip(*items, strict=True)
        tokens = self.tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
        groups = [hash(tuple(sorted(map(ord, scene.characters)))) for scene in scenes]
        return {
            "pixel_values": normalised(torch.from_numpy(pixels(list(scenes), self.config.size))),
            "input_ids": tokens.input_ids,
            "attention_mask": tokens.attention_mask,
            "groups": torch.tensor(groups),
        }


def normalised(images: Tensor) -> Tensor:
    """[-1, 1] pixels in CLIP's own scale."""
    mean, std = (torch.tensor(v)[:, None, None] for v in (CLIP_MEAN, CLIP_STD))
    return ((images + 1) / 2 - mean) / std


class Contrast(nn.Module):
    """A CLIP (or AltCLIP) and the loss in one module. A locked image tower is run without gradients."""

    def __init__(self, clip: CLIPModel | AltCLIPModel, locked: bool) -> None:
        super().__init__()
        self.clip, self.locked = clip, locked
        if locked:
            for part in (clip.vision_model, clip.visual_projection):
                part.requires_grad_(False)

    def forward(
        self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor, groups: Tensor
    ) -> Tensor:
        with torch.set_grad_enabled(not self.locked and torch.is_grad_enabled()):
            image = self.clip.get_image_features(pixel_values=pixel_values).pooler_output
        text = self.clip.get_text_features(input_ids=input_ids, attention_mask=attention_mask).pooler_output
        image, text = (F.normalize(features.float(), dim=-1) for features in (image, text))
        scale = self.clip.logit_scale.clamp(max=np.log(100.0))
        return contrastive_loss(image, text, scale, groups)


def build_clip(config: ContrastConfig, vocabulary: int) -> CLIPModel:
    towers = config.towers
    common = {"hidden_act": "gelu", "projection_dim": towers.projection_dim}
    text = {
        "vocab_size": vocabulary,
        "hidden_size": towers.text_width,
        "intermediate_size": 4 * towers.text_width,
        "num_hidden_layers": towers.text_layers,
        "num_attention_heads": towers.text_width // towers.head_width,
        "max_position_embeddings": 77,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 1,
    }
    vision = {
        "hidden_size": towers.vision_width,
        "intermediate_size": 4 * towers.vision_width,
        "num_hidden_layers": towers.vision_layers,
        "num_attention_heads": towers.vision_width // towers.head_width,
        "image_size": config.size,
        "patch_size": towers.patch_size,
    }
    return CLIPModel(
        CLIPConfig(
            text_config=text | common, vision_config=vision | common, projection_dim=towers.projection_dim
        )
    )


def build(config: ContrastConfig):
    """Model and tokenizer: those of `config.model`, or new ones."""
    if config.model is not None:
        clip = AutoModel.from_pretrained(config.model, dtype=torch.float32)
        return clip, AutoTokenizer.from_pretrained(config.model)
    tokenizer = train_clip_tokenizer(
        Captions(load_emoji()).corpus(*config.languages), config.towers.vocab_size
    )
    return build_clip(config, len(tokenizer)), tokenizer


def train(config: ContrastConfig) -> None:
    torch.manual_seed(config.run.seed)
    clip, tokenizer = build(config)
    run = Run.start(config, Contrast(clip, locked=isinstance(clip, AltCLIPModel)))
    if run.accelerator.num_processes > 1:
        raise ValueError(f"processes: {run.accelerator.num_processes}; this stage runs on one")
    for batch in run.batches(CaptionedScenes(config, tokenizer)):
        with run.accelerator.autocast():
            loss = run.model(**{name: part.to(run.accelerator.device) for name, part in batch.items()})
        run.step(loss)
    export(run.trained().clip, tokenizer, config)


def export(clip, tokenizer, config: ContrastConfig) -> None:
    """A plain transformers folder, with the processor that fits the pictures' size."""
    folder = config.output_dir / "model"
    clip.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    processor(config.size).save_pretrained(folder)
    report = {
        "logit_scale": clip.logit_scale.exp().item(),
        "samples": config.run.max_train_steps * config.run.batch_size,
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
