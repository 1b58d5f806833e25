"""Frozen models that are read only when what they made is not there: known by their files, not by weights."""

import hashlib
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from transformers.utils.hub import cached_file, extract_commit_hash

from altdiffusion.checkpoints import fingerprint
from training.config import RunConfig
from training.frozen import FORMATS

#: Files that decide what a model makes of its input.
DECISIVE = {".safetensors", ".bin", ".json", ".model", ".txt"}


def model_key(model: str | Path) -> str:
    """Changes with any file of a folder; of a model on the Hub it is the commit."""
    folder = Path(model)
    if not folder.is_dir():
        return str(extract_commit_hash(cached_file(str(model), "config.json"), None))
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.suffix in DECISIVE):
        with path.open("rb") as file:
            digest.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


class LazyAutoencoder:
    """Stands for an AutoencoderKL, which is read when it is first asked for more than its configuration."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def key(self) -> str:
        return model_key(self.folder)

    @cached_property
    def config(self) -> Any:
        with torch.device("meta"):
            return AutoencoderKL.from_config(AutoencoderKL.load_config(self.folder)).config

    @cached_property
    def model(self) -> AutoencoderKL:
        return AutoencoderKL.from_pretrained(self.folder).eval()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def release(self) -> None:
        """Lets go of the weights; they are read again when they are asked for."""
        self.__dict__.pop("model", None)


def weights_key(vae: AutoencoderKL | LazyAutoencoder) -> str:
    return vae.key if isinstance(vae, LazyAutoencoder) else fingerprint([vae])


def autocast(run: RunConfig, device: torch.device) -> AbstractContextManager[Any]:
    """The precision that a run trains in, before it has an accelerator."""
    kind = FORMATS.get(run.mixed_precision)
    return torch.autocast(device.type, kind, enabled=kind is not None)


def precision(device: torch.device) -> torch.dtype:
    """What matrix products are computed in here and now."""
    if torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return torch.float32
