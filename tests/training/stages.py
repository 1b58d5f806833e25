"""Every stage at toy size, on data whose epochs are three steps long where a stage has epochs."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline
from safetensors.torch import load_file
from transformers import AutoTokenizer, CLIPTextModel

from tests.fakes import tiny_unet, tiny_vae
from tests.training.conftest import flags
from tests.training.data_files import captions, image_folder, write_lines
from training import adapter, autoencoder, contrast, distill, text_to_image
from training.config import parse
from training.unet import SCHEDULE

#: Samples of an epoch: three steps of the four that `flags` asks for.
EPOCH = 12
OPTIM = "--optim.learning-rate 1e-3 --optim.schedule cosine --run.ema-decay 0.9"


@dataclass(frozen=True)
class Stage:
    """What trains, and its flags but for the output folder and the steps."""

    module: str
    train: Callable[[Any], None]
    config: type
    flags: str

    def parsed(self, folder: Path, steps: int, more: str = "") -> Any:
        return parse(self.config, flags(folder, steps, f"{self.flags} {OPTIM} {more}"))


def make(folder: Path, teacher: Path, altclip: Path, drawing: Path) -> dict[str, Stage]:
    """The stages by name. `altclip` is trained, `drawing` is a pipeline's folder."""
    pictures = image_folder(folder / "pictures", EPOCH)
    text = write_lines(folder / "text.jsonl", [{"captions": captions(number)} for number in range(EPOCH)])
    vae = "--size 16 --block-out-channels 8 8 --norm-num-groups 4"
    unet = f"--text {altclip} --vae {drawing / 'vae'} --unet {drawing / 'unet'} --data {pictures}"
    unet += " --reading.resolution 32 --caption-dropout 0.3"
    english = english_pipeline(folder / "english", teacher)
    net = f"--text {altclip} --stable-diffusion {english} --emoji 3 --languages th --net.hidden-dim 16"
    net += " --judged-captions 1 --fitted-captions 8"
    learnt = f"--teacher {teacher} --model {altclip} --data {text}"
    seen = f"--model {altclip} --size 32 --data {pictures}"
    drawn = (text_to_image.train, text_to_image.TextToImageConfig)
    return {
        "autoencoder": Stage("autoencoder", autoencoder.train, autoencoder.AutoencoderConfig, vae),
        "contrast": Stage("contrast", contrast.train, contrast.ContrastConfig, seen),
        "distill": Stage("distill", distill.train, distill.DistillConfig, learnt),
        "kv": Stage("text_to_image", *drawn, f"{unet} --trainable kv"),
        "unet": Stage("text_to_image", *drawn, f"{unet} --trainable unet"),
        "lora": Stage("text_to_image", *drawn, f"{unet} --trainable lora --lora.rank 2"),
        "adapter": Stage("adapter", adapter.train, adapter.AdapterConfig, net),
    }


def english_pipeline(folder: Path, teacher: Path) -> Path:
    """A Stable Diffusion with CLIP's own text encoder."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        StableDiffusionPipeline(
            vae=tiny_vae(),
            text_encoder=CLIPTextModel.from_pretrained(teacher),
            tokenizer=AutoTokenizer.from_pretrained(teacher),
            unet=tiny_unet(),
            scheduler=DDPMScheduler(**SCHEDULE, steps_offset=1),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        ).save_pretrained(folder)
    return folder


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def state(folder: Path, step: int) -> dict[str, Any]:
    """Losses, weights, optimizer, schedule and moving average that a run has come to."""
    checkpoint = folder / f"checkpoint-{step:08d}"
    parts: dict[str, Any] = {path.stem: load_file(path) for path in checkpoint.glob("*.safetensors")}
    for path in (*checkpoint.glob("optimizer*.bin"), *checkpoint.glob("custom_checkpoint_*.pkl")):
        parts[path.stem] = torch.load(path)
    parts["custom_checkpoint_0"].pop("seconds")  # how long it took
    return {"losses": losses(folder), **parts}


def differences(one: Any, other: Any, place: str = "") -> list[str]:
    """Where two states are not the same, bit for bit."""
    if isinstance(one, torch.Tensor):
        return [] if isinstance(other, torch.Tensor) and one.equal(other) else [place]
    if isinstance(one, dict) and isinstance(other, dict):
        if one.keys() != other.keys():
            return [f"{place}: {sorted(map(str, one))} and {sorted(map(str, other))}"]
        return [found for key in one for found in differences(one[key], other[key], f"{place}/{key}")]
    if isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return [found for n, pair in pairs for found in differences(*pair, f"{place}/{n}")]
    return [] if one == other else [f"{place}: {one} and {other}"]
