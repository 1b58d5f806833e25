"""The presets of the published models: each is read, and holds the numbers that were published.

The rehearsal's recipes start from each other, and its script runs them in their order.
"""

import json
import os
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from bench.rehearsal import DRAWING, TOWERS
from training import adapter, autoencoder, contrast, distill, text_to_image
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
#: The rehearsal's stages that are no text_to_image.
OTHERS: dict[str, Any] = {
    "teacher": contrast.ContrastConfig,
    "contrast": contrast.ContrastConfig,
    "contrast_second": contrast.ContrastConfig,
    "adapter": adapter.AdapterConfig,
    **dict.fromkeys(
        ("student_english", "student_parallel", "student_both", "student_both_second"), distill.DistillConfig
    ),
}
REHEARSAL = {path.stem: path for path in sorted(RECIPES.glob("rehearsal/*.yaml"))}
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


def rehearsed(name: str) -> Any:
    kind = OTHERS.get(name, text_to_image.TextToImageConfig)
    return parse(kind, ["--config", str(REHEARSAL[name])])


def needed(config: Any) -> set[str]:
    """The stages of the rehearsal that a stage starts from."""
    values = [
        getattr(config, name, None)
        for name in ("teacher", "model", "text", "unet", "swapped_from", "stable_diffusion")
    ]
    paths = [Path(value) for value in values if value is not None]
    return {path.parts[2] for path in paths if path.parts[:2] == ("runs", "rehearsal")}


def test_each_stage_of_the_rehearsal_starts_from_others_and_is_measured():
    for name in REHEARSAL:
        config = rehearsed(name)
        assert config.output_dir == Path("runs/rehearsal", name)
        assert needed(config) <= REHEARSAL.keys()
        assert config.run.threads == 1  # two of them run side by side
    stages = {row.removesuffix("_guided") for row in (*DRAWING, *TOWERS)}
    assert stages == REHEARSAL.keys() - {"english_unet_second"}


def test_the_ways_to_follow_the_swap_differ_in_the_way_alone():
    ways = ("kv", "kv_mapped", "cross_attention", "lora")
    configs = [rehearsed(name) for name in (*ways, "swap")]
    assert {(c.text, c.unet, c.emoji, c.caption_dropout) for c in configs} == {
        (Path("runs/rehearsal/contrast/model"), Path("runs/rehearsal/english_unet/model/unet"), 136, 0.0)
    }
    assert [c.trainable for c in configs[:-1]] == ["kv", "kv", "cross_attention", "lora"]
    assert configs[-1].run.max_train_steps == 0
    dropped = {name for name in REHEARSAL if getattr(rehearsed(name), "caption_dropout", 0.0) > 0}
    assert dropped == {"guidance"}


def test_the_rehearsals_script_trains_each_stage_once_after_what_it_starts_from(tmp_path):
    place = tmp_path / "training/recipes/rehearsal"
    shutil.copytree(RECIPES / "rehearsal", place)
    shutil.copy(RECIPES / "stage.sh", place.parent)
    stand_in, log = tmp_path / "python", tmp_path / "log"
    stand_in.write_text(STAND_IN)
    stand_in.chmod(0o755)
    environment = {**os.environ, "PYTHON": str(stand_in), "REAL": sys.executable, "LOG": str(log)}
    environment["SECONDS_EACH"] = "60"

    def run() -> list[str]:
        log.write_text("")
        subprocess.run(
            ["bash", place / "run.sh"], env=environment, check=True, capture_output=True, timeout=60
        )
        return log.read_text().splitlines()

    lines = run()
    ended = [Path(line.split()[1]) for line in lines if line.startswith("ended")]
    trained = [folder.name for folder in ended if folder.parts == ("runs", "rehearsal", folder.name)]
    assert sorted(trained) == sorted(REHEARSAL)
    for name in trained:
        begun = lines.index(f"begun runs/rehearsal/{name}")
        before = {line.rsplit("/", 1)[-1] for line in lines[:begun] if line.startswith("ended")}
        assert needed(rehearsed(name)) <= before
    # Ten steps took 20 s, so that 30 of them take 60.
    assert json.loads((tmp_path / "runs/rehearsal/kv/flags.json").read_text())[-1] == "30"
    assert [line for line in run() if not line.startswith("measured")] == []


#: Stands for Python: notes the stage, and leaves what a stage leaves.
STAND_IN = """#!/usr/bin/env bash
case " $* " in *" bench.rehearsal "*) echo "measured ${*:3}" >> "$LOG"; exit;; esac
if [ "$1" = -c ]; then exec "$REAL" "$@"; fi
folder=runs/rehearsal/$(basename "$(sed 's/.*--config \\([^ ]*\\).*/\\1/' <<< "$*")" .yaml)
case "$*" in *--output-dir*) folder=$(sed 's/.*--output-dir \\([^ ]*\\).*/\\1/' <<< "$*");; esac
echo "begun $folder" >> "$LOG"
mkdir -p "$folder/model"
printf '{"seconds": 10.0}\\n{"seconds": 20.0}\\n' > "$folder/metrics.jsonl"
printf '["%s"]' "${*: -1}" > "$folder/flags.json"
touch "$folder/model/manifest.json"
echo "ended $folder" >> "$LOG"
"""
