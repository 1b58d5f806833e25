"""The recipe of the emoji model for a GPU: its stages fit together, its model fits the package."""

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from training import autoencoder, contrast, distill, package, student, text_to_image
from training.config import parse
from training.new_clip import build_clip
from training.unet import build_unet

RECIPE = Path("training/recipes/emoji-gpu")
STAGES: dict[str, Any] = {
    "autoencoder": autoencoder.AutoencoderConfig,
    "teacher": contrast.ContrastConfig,
    "distill": distill.DistillConfig,
    "contrast": contrast.ContrastConfig,
    "names": contrast.ContrastConfig,
    "unet": text_to_image.TextToImageConfig,
}
#: Bytes of fp16 weights that the bundled model may have.
ROOM = 64 * 2**20


@pytest.fixture(scope="module")
def recipe() -> dict[str, Any]:
    return {name: parse(kind, ["--config", str(RECIPE / f"{name}.yaml")]) for name, kind in STAGES.items()}


def test_each_stage_starts_from_what_an_earlier_one_left(recipe):
    packed = parse(package.PackageConfig, ["--config", str(RECIPE / "package.yaml")])
    assert packed.chain == tuple(recipe) and packed.stages == Path("runs", RECIPE.name)
    made: set[Path] = set()
    for name, config in recipe.items():
        assert config.output_dir == packed.stages / name
        sources = {getattr(config, part, None) for part in ("teacher", "model", "text", "vae", "unet")} - {
            None
        }
        assert sources <= made
        made.add(config.output_dir / "model")
    assert len(made - {packed.stages / part / "model" for part in (packed.unet, packed.towers)}) == 4


def test_the_text_tower_that_the_unet_learns_from_is_the_one_that_ships(recipe):
    assert recipe["names"].lock_text and recipe["names"].model == recipe["unet"].text


def test_the_model_fits_into_the_package_with_its_text_tower_stored_twice(recipe):
    with torch.device("meta"):
        vae = autoencoder.build(recipe["autoencoder"])
        of = recipe["teacher"]
        clip = build_clip(of.towers, of.size, of.towers.vocab_size)
        width = clip.config.text_config.hidden_size
        tower = student.build_student(recipe["distill"].student, recipe["distill"].student.vocab_size, width)
        side = recipe["autoencoder"].size // 2 ** (len(vae.config["block_out_channels"]) - 1)
        latents = (recipe["autoencoder"].latent_channels, side)
        unet = build_unet(None, recipe["unet"].architecture, width, latents)
    assert side == 16  # what the bundled model draws as fast
    parts = [vae, clip.vision_model, clip.visual_projection, clip.text_projection, tower, tower, unet]
    size = 2 * sum(parameter.numel() for part in parts for parameter in part.parameters())
    assert 0.8 * ROOM < size < ROOM


def test_train_sh_runs_the_stages_in_order_once_and_passes_flags_on(tmp_path):
    stand_in = tmp_path / "python"
    stand_in.write_text(
        "#!/usr/bin/env bash\n"
        'echo "$*" >> commands\n'
        'name=$(basename "${4%.yaml}")\n'
        'if [ "$2" = "$FAILS" ]; then exit 3; fi\n'
        f'mkdir -p "runs/{RECIPE.name}/$name/model" && touch "runs/{RECIPE.name}/$name/model/manifest.json"\n'
    )
    stand_in.chmod(0o755)

    def run(**more: str) -> tuple[int, list[str]]:
        (tmp_path / "commands").unlink(missing_ok=True)
        settings = {"PYTHON": str(stand_in), "WORK": str(tmp_path), "FAILS": "", **more}
        script = ["bash", str(RECIPE / "train.sh")]
        done = subprocess.run(script, env={**os.environ, **settings}, capture_output=True, check=False)
        return done.returncode, (tmp_path / "commands").read_text().splitlines()

    code, commands = run(FAILS="training.distill", ARGS="--run.seed 7", ARGS_teacher="--size 32")
    assert code == 3 and [line.split()[1] for line in commands] == [
        "training.autoencoder",
        "training.contrast",
        "training.distill",
    ]
    assert commands[0].endswith("autoencoder.yaml --run.seed 7")
    assert commands[1].endswith("teacher.yaml --run.seed 7 --size 32")
    code, commands = run()
    names = [Path(line.split()[3]).stem for line in commands]
    assert code == 0 and names == ["distill", "contrast", "names", "unet", "package"]
