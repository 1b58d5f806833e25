"""Validation pictures: one grid from step 0 on, of the averaged weights, without a trace in the training."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.testing import assert_close

from altdiffusion import AltDiffusionPipeline
from altdiffusion.grids import captioned_grid
from tests.training.conftest import flags
from training import text_to_image
from training.config import parse

PROMPTS = ("a red lobster", "一只猫", "кошка")
SHOWN = ["--validation.prompts", *PROMPTS, "--validation.steps", "2", "--validation.every", "2"]


#: Whether this machine has fonts for the labels is not asked here.
pytestmark = pytest.mark.filterwarnings("ignore:labels. no font here:UserWarning")


def config(folder, steps, drawing, *more: str) -> text_to_image.TextToImageConfig:
    places = f"--text {drawing / 'altclip'} --vae {drawing / 'vae'} --unet {drawing / 'unet'}"
    tiny = f"{places} --emoji 2 --variants 1 --run.gradient-accumulation-steps 2 --run.ema-decay 0.9"
    return parse(text_to_image.TextToImageConfig, [*flags(folder, steps, tiny), *more])


def losses(folder) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(folder) -> dict[str, torch.Tensor]:
    return load_file(folder / "model/unet/diffusion_pytorch_model.safetensors")


def test_pictures_leave_no_trace_in_the_training(drawing, tmp_path):
    rate = ("--optim.learning-rate", "1e-2")
    text_to_image.train(config(tmp_path / "plain", 5, drawing, *rate))
    text_to_image.train(config(tmp_path / "shown", 3, drawing, *rate, *SHOWN))
    text_to_image.train(config(tmp_path / "shown", 5, drawing, *rate, *SHOWN))
    grids = sorted((tmp_path / "shown/validation").iterdir())
    assert [path.name for path in grids] == [f"step-{n:08d}.png" for n in (0, 2, 3, 4, 5)]
    assert losses(tmp_path / "plain") == losses(tmp_path / "shown")
    plain, shown = weights(tmp_path / "plain"), weights(tmp_path / "shown")
    assert all(plain[name].equal(shown[name]) for name in plain)
    first, last = (np.asarray(Image.open(path)) for path in (grids[0], grids[-1]))
    assert first.shape == last.shape and (first != last).any()


def test_the_last_grid_is_what_the_exported_model_draws(drawing, tmp_path):
    text_to_image.train(config(tmp_path, 2, drawing, "--optim.learning-rate", "1e-2", *SHOWN))
    pipeline = AltDiffusionPipeline.from_pretrained(tmp_path / "model", device="cpu")
    pipeline.set_progress_bar_config(disable=True)
    pictures = pipeline(
        list(PROMPTS),
        num_inference_steps=2,
        guidance_scale=3.0,
        height=64,
        width=64,
        generator=[torch.Generator().manual_seed(0) for _ in PROMPTS],
    ).images
    expected = captioned_grid(list(zip(PROMPTS, pictures, strict=True)))
    found = Image.open(tmp_path / "validation/step-00000002.png")
    difference = np.abs(np.asarray(found, np.int16) - np.asarray(expected, np.int16))
    assert difference.max() <= 1  # the same texts, encoded in another batch


def test_every_text_stands_over_its_picture_and_too_long_ones_are_cut():
    pictures = [Image.new("RGB", (64, 64), colour) for colour in ("red", "green", "blue")]
    grid = np.asarray(captioned_grid(list(zip(("a", "b" * 300, "c"), pictures, strict=True))))
    assert_close(torch.from_numpy((grid == (255, 0, 0)).all(-1).sum()[None]), torch.tensor([64 * 64]))
    columns = np.flatnonzero((grid == (0, 0, 255)).all(-1).any(0))
    assert len(columns) == 64 and columns[0] == 8
    dark = (grid.max(-1) < 100).any(0)
    assert not dark[-8:].any()


def test_a_text_without_a_font_gets_its_number_and_one_warning():
    with pytest.warns(UserWarning, match=r"^labels: no font here for texts 2$"):
        captioned_grid([("a", Image.new("RGB", (64, 64))), ("\U0010fffd", Image.new("RGB", (64, 64)))])


@pytest.mark.parametrize("name", ["every", "steps"])
def test_what_makes_no_sense_is_refused(name, capsys):
    with pytest.raises(SystemExit) as stopped:
        parse(
            text_to_image.TextToImageConfig,
            ["--output-dir", "x", "--text", "a", "--vae", "b", f"--validation.{name}", "0"],
        )
    assert stopped.value.code == 2
    assert capsys.readouterr().err == f"validation.{name}: 0; allowed: 1 and up\n"
