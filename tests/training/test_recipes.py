"""The presets of the published models: each is read, and holds the numbers that were published."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from training import autoencoder, contrast, distill, text_to_image
from training.config import parse

RECIPES = Path("training/recipes")
STAGES: dict[str, Any] = {
    "distill": distill.DistillConfig,
    "contrast": contrast.ContrastConfig,
    "concept_alignment": text_to_image.TextToImageConfig,
    "quality_improvement": text_to_image.TextToImageConfig,
    "guidance": text_to_image.TextToImageConfig,
    "autoencoder": autoencoder.AutoencoderConfig,
}
PUBLISHED = sorted(path for path in RECIPES.glob("alt*/*.yaml") if path.stem in STAGES)


def read(path: Path) -> Any:
    return parse(STAGES[path.stem], ["--config", str(path)])


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_preset_is_read_and_names_where_its_numbers_come_from(path):
    config = read(path)
    assert config.output_dir == Path("runs", path.parent.name, path.stem)
    assert any(source in path.read_text() for source in ("table 6", "README.md"))


@pytest.mark.parametrize("size", ["m2", "m9", "m18"])
def test_altclips_presets_are_table_6(size):
    first, second = (read(RECIPES / f"altclip-{size}/{stage}.yaml") for stage in ("distill", "contrast"))
    assert (first.optim.learning_rate, first.optim.weight_decay, first.optim.warmup_steps) == (1e-4, 0.1, 500)
    assert (second.optim.learning_rate, second.optim.weight_decay) == (2e-6, 0.05)
    assert (first.optim.max_grad_norm, second.optim.max_grad_norm) == (1.0, 5.0)
    assert (first.optim.beta1, second.optim.beta1) == (0.99, 0.99)
    assert first.run.batch_size == second.run.batch_size == 1024
    assert first.run.max_train_steps == 238_620
    assert second.model == first.output_dir / "model"
    assert first.form == ("m18" if size == "m18" else "own")


def test_altdiffusion_m18s_presets_are_a_chain():
    stages = ("concept_alignment", "quality_improvement", "guidance")
    configs = [read(RECIPES / f"altdiffusion-m18/{stage}.yaml") for stage in stages]
    assert [c.trainable for c in configs] == ["kv", "unet", "unet"]
    assert [c.run.batch_size for c in configs] == [3072, 3840, 3840]
    assert [c.run.max_train_steps for c in configs] == [330_000, 270_000, 150_000]
    assert [c.caption_dropout for c in configs] == [0, 0, 0.1]
    assert [c.reading.resolution for c in configs] == [256, 512, 512]
    for before, after in pairwise(configs):
        assert after.unet == before.output_dir / "model/unet"
