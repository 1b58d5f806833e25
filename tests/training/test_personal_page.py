"""docs/personal.md is right: its commands train on a folder of pictures, and what they leave is loaded."""

import shlex
from pathlib import Path

import pytest
from diffusers import DiffusionPipeline

from altdiffusion import AltDiffusionPipeline
from tests.test_readme import ROOT, blocks
from tests.training import data_files
from training.config import parse
from training.text_to_image import TextToImageConfig, train

PAGE = ROOT / "docs/personal.md"
SMALL = "--reading.resolution 64 --run.max-train-steps 2 --run.batch-size 4 --run.threads 1 --run.log-steps 1"
PRIOR = "--prior.images 2 --prior.steps 1"

pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:No LoRA keys associated to:UserWarning"),
]


@pytest.fixture
def folder(drawing, tmp_path, monkeypatch) -> Path:
    """A working folder with the tiny model, pictures without captions, and the recipes."""
    data_files.image_folder(tmp_path / "pictures", 3, (70, 64))
    (tmp_path / "pictures/metadata.jsonl").unlink()
    (tmp_path / "MODEL").symlink_to(drawing)
    (tmp_path / "training").symlink_to(ROOT / "training")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def config(command: str, *more: str) -> TextToImageConfig:
    words = shlex.split(command.replace("\\\n", " "))
    assert words[:3] == ["python", "-m", "training.text_to_image"]
    return parse(TextToImageConfig, [*words[3:], *SMALL.split(), *more])


def test_its_commands_train_and_its_python_draws_what_they_left(folder):
    commands = [code for code in blocks("sh", PAGE) if "text_to_image" in code]
    word, lora, dreambooth = (config(code) for code in commands)
    assert [c.trainable for c in (word, lora, dreambooth)] == ["textual_inversion", "lora", "unet"]
    for settings in (word, lora, config(commands[2], *PRIOR.split())):
        train(settings)
    (code,) = blocks("python", PAGE)
    code = code.replace('.from_pretrained("MODEL")', '.from_pretrained("MODEL", device="cpu")')
    names = {"AltDiffusionPipeline": AltDiffusionPipeline}
    exec(compile(code, str(PAGE), "exec"), names)
    assert names["picture"].size == (64, 64)
    names["pipeline"].load_lora_weights("runs/lora/model")
    assert DiffusionPipeline.from_pretrained("runs/dreambooth/model", safety_checker=None)


def test_the_recipe_holds_the_numbers_of_diffusers():
    config = parse(
        TextToImageConfig,
        ["--config", str(ROOT / "training/recipes/dreambooth.yaml"), "--text=a", "--vae=b", "--unet=c"],
    )
    assert (config.optim.learning_rate, config.optim.warmup_steps) == (5e-6, 0)
    assert (config.run.max_train_steps, config.run.batch_size) == (800, 1)
    assert (config.prior.images, config.prior.weight, config.reading.resolution) == (200, 1.0, 512)
