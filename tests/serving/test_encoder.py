"""The service's AltCLIP: none, or a damaged one."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from altdiffusion import layouts
from altdiffusion.requests import BadRequest, GenerateRequest
from altdiffusion.serving import Compared, Service

REQUEST = GenerateRequest(prompt="", seed=7, steps=2)
PICTURE = Image.new("RGB", (32, 32))


def test_a_model_without_an_altclip_is_not_read_again_to_compare(
    shared_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = shutil.copytree(shared_folder, tmp_path / "model", ignore=shutil.ignore_patterns("altclip"))
    read: list[Any] = []
    load = layouts.read
    with Service.load(folder, device="cpu") as service:
        monkeypatch.setattr(layouts, "read", lambda *args, **named: read.append(args) or load(*args, **named))
        for _ in range(2):
            last = list(service.compare({"en": "a cat", "de": "eine Katze"}, REQUEST))[-1]
            assert isinstance(last, Compared) and last.texts == [] and len(last.pictures) == 2
        with pytest.raises(BadRequest, match=r"^encoder: this model holds none; allowed to classify with"):
            service.classify(PICTURE, ["cat"])
    assert read == []


def test_a_damaged_altclip_is_told_as_damaged(shared_folder: Path, tmp_path: Path):
    folder = shutil.copytree(shared_folder, tmp_path / "model")
    with Service.load(folder, device="cpu") as service:
        weights = folder / "altclip/model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1])
        for ask in (
            lambda: list(service.compare({"en": "a cat"}, REQUEST)),
            lambda: service.classify(PICTURE, ["cat"]),
        ):
            with pytest.raises(ValueError, match=r"^model: .*altclip.* is truncated or damaged"):
                ask()
