"""Tiny models for the stages' options: stock folders, made in a second."""

from pathlib import Path

import pytest
import torch
from transformers import AltCLIPModel, CLIPConfig, CLIPModel

from tests.fakes import roughen, tiny_altclip, tiny_image_processor, tiny_pipeline_folder, tiny_tokenizer
from training.tokenizers import train_clip_tokenizer


def tiny_clip(vocabulary: int, width: int = 32) -> CLIPModel:
    towers = {"hidden_size": width, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = {"vocab_size": vocabulary, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        config = CLIPConfig(
            text_config=towers | text,
            vision_config=towers | {"image_size": 32, "patch_size": 8},
            projection_dim=16,
        )
        return roughen(CLIPModel(config))


@pytest.fixture(scope="session")
def teacher(tmp_path_factory) -> Path:
    """A CLIP folder."""
    folder = tmp_path_factory.mktemp("teacher")
    tokenizer = train_clip_tokenizer(["a red cat", "a green apple"], 600)
    tiny_clip(len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    tiny_image_processor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def altclip(tmp_path_factory) -> Path:
    """An AltCLIP folder whose tower has no dropout: two ways to train it can be compared."""
    folder = tmp_path_factory.mktemp("altclip")
    model: AltCLIPModel = tiny_altclip()
    for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
        setattr(model.config.text_config, name, 0.0)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    tiny_image_processor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def drawing(tmp_path_factory) -> Path:
    """A pipeline folder with an `altclip/`."""
    return tiny_pipeline_folder(tmp_path_factory.mktemp("drawing") / "tiny")


def flags(folder: Path, steps: int, more: str = "") -> list[str]:
    run = "--run.batch-size 4 --run.threads 1 --run.log-steps 1 --optim.warmup-steps 0"
    return ["--output-dir", str(folder), "--run.max-train-steps", str(steps), *run.split(), *more.split()]
