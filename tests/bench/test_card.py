"""The pictures of the model card."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from altdiffusion import bundled
from bench import card
from tests.fakes import COVERED
from training.emoji import centred, draw
from training.package import UNET, PackageConfig, model_card


@pytest.fixture
def folder(model_folder: Path) -> Path:
    made = {"languages": ["en"], "defaults": {"width": 64}, "recipe": {UNET: {}}}
    text = model_card({"covered": COVERED, **made}, PackageConfig())
    (model_folder / "README.md").write_text(text, encoding="utf-8")
    return model_folder


def test_pictures_land_in_the_card_and_the_manifest_holds(folder: Path, monkeypatch: pytest.MonkeyPatch):
    asked: list[list[str]] = []

    def drawn(pipeline: Any, prompts: list[str]) -> list[Image.Image]:
        asked.append(prompts)
        right = "🦞" if prompts == ["lobster"] else "🍎"
        return [draw(centred(right), 64) for _ in prompts]

    monkeypatch.setattr(card, "pictures", drawn)
    monkeypatch.setattr(card, "sample", lambda characters, size: ["🦞"])
    card.write(folder, 1, folder.parent / "readme.png")
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert "![The same five names" in text and "(pictures/pairs.webp)" in text
    assert "failures.webp" not in text  # there was none
    assert not (folder / "pictures" / "failures.webp").exists()
    with Image.open(folder / "pictures" / "languages.webp") as grid:
        assert grid.width < grid.height  # five columns, 18 rows
    with Image.open(folder.parent / "readme.png") as some:
        assert some.width == grid.width and some.height < grid.height / 2  # six of the rows
    assert ["lobster", "rainbow", "bicycle", "red apple", "penguin"] in asked
    bundled.verify(folder)


def test_failures_stand_beside_what_was_wanted(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(card, "pictures", lambda _, prompts: [draw(centred("🍎"), 64) for _ in prompts])
    monkeypatch.setattr(card, "sample", lambda characters, size: ["🦞", "🍎"])
    picture, number = card.failures(None, card.Prompts(), 2)
    assert number == 1 and picture is not None
    both = np.asarray(card.beside(draw(centred("🍎"), 64), draw(centred("🦞"), 64)))
    assert both.shape == (64, 128, 3)
    assert (both[:, 64:] == np.asarray(draw(centred("🦞"), 64))).all()
