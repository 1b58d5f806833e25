"""The chain at toy size: every stage trains, resumes, and leaves a folder that stock libraries open."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from torch.testing import assert_close
from transformers import AltCLIPModel, CLIPModel

from altdiffusion.trainable import select_parameters
from training import autoencoder, contrast, distill, text_to_image
from training.config import parse, save

RUN = ["--run.batch-size", "4", "--run.threads", "1", "--run.log-steps", "1", "--optim.warmup-steps", "0"]


def flags(folder: Path, steps: int, *more: str) -> list[str]:
    return ["--output-dir", str(folder), "--run.max-train-steps", str(steps), *RUN, *more]


@pytest.fixture(scope="module")
def chain(tmp_path_factory) -> Path:
    """A teacher, a student, an autoencoder and an English UNet, all tiny."""
    root = tmp_path_factory.mktemp("chain")
    towers = "--towers.vocab-size 1200 --towers.text-width 16 --towers.text-layers 1 --towers.vision-width 16"
    towers += " --towers.vision-layers 1 --towers.head-width 8 --towers.projection-dim 16 --size 32"
    contrast.train(
        parse(contrast.ContrastConfig, flags(root / "teacher", 2, *towers.split(), "--languages", "en"))
    )
    student = "--student.vocab-size 12000 --student.hidden-size 16 --student.num-hidden-layers 1"
    student += " --student.num-attention-heads 2"
    teacher = ["--teacher", str(root / "teacher/model")]
    distill.train(parse(distill.DistillConfig, flags(root / "distill", 2, *teacher, *student.split())))
    vae = "--size 32 --block-out-channels 8 8 --norm-num-groups 4 --run.ema-decay 0.9"
    autoencoder.train(parse(autoencoder.AutoencoderConfig, flags(root / "vae", 2, *vae.split())))
    text_to_image.train(text_config(root, "english", 2, text="teacher"))
    return root


def text_config(
    root: Path, name: str, steps: int, *more: str, text: str = "distill"
) -> text_to_image.TextToImageConfig:
    tiny = (
        "--architecture.block-out-channels 8 16 --architecture.head-width 8 --architecture.norm-num-groups 4"
    )
    places = [
        "--text",
        str(root / text / "model"),
        "--vae",
        str(root / "vae/model"),
        "--emoji",
        "3",
        "--variants",
        "2",
    ]
    return parse(text_to_image.TextToImageConfig, flags(root / name, steps, *places, *tiny.split(), *more))


def test_every_stage_leaves_a_folder_that_stock_libraries_open(chain):
    CLIPModel.from_pretrained(chain / "teacher/model")
    AltCLIPModel.from_pretrained(chain / "distill/model")
    pipeline = DiffusionPipeline.from_pretrained(chain / "english/model", safety_checker=None)
    picture = pipeline("a lobster", num_inference_steps=2, output_type="np").images[0]
    assert picture.shape == (32, 32, 3)


def test_an_altclip_keeps_the_teachers_image_tower(chain):
    teacher = CLIPModel.from_pretrained(chain / "teacher/model")
    altclip = AltCLIPModel.from_pretrained(chain / "distill/model")
    pixels = torch.rand(2, 3, 32, 32)
    theirs, ours = (
        model.get_image_features(pixel_values=pixels).pooler_output for model in (teacher, altclip)
    )
    assert_close(ours, theirs)


def test_concept_alignment_moves_keys_and_values_alone(chain):
    config = text_config(
        chain, "aligned", 10, "--unet", str(chain / "english/model/unet"), "--trainable", "kv"
    )
    text_to_image.train(config)
    before = UNet2DConditionModel.from_pretrained(chain / "english/model/unet")
    after = UNet2DConditionModel.from_pretrained(chain / "aligned/model/unet")
    moved = {
        n for (n, a), b in zip(before.named_parameters(), after.parameters(), strict=True) if not a.equal(b)
    }
    select_parameters(before, "kv")
    assert moved == {name for name, parameter in before.named_parameters() if parameter.requires_grad}


def test_a_locked_image_tower_stays_as_it_was(chain):
    flags_ = flags(chain / "contrast", 2, "--model", str(chain / "distill/model"), "--size", "32")
    contrast.train(parse(contrast.ContrastConfig, flags_))
    before, after = (AltCLIPModel.from_pretrained(chain / name / "model") for name in ("distill", "contrast"))
    for (name, old), new in zip(before.state_dict().items(), after.state_dict().values(), strict=True):
        if name.startswith(("vision_model.", "visual_projection.")):
            assert old.equal(new), name
    assert not before.text_projection.weight.equal(after.text_projection.weight)


def test_a_clip_of_ones_own_goes_on_with_both_towers(chain):
    flags_ = flags(chain / "teacher-more", 2, "--model", str(chain / "teacher/model"), "--size", "32")
    contrast.train(parse(contrast.ContrastConfig, [*flags_, "--languages", "en"]))
    before, after = (
        CLIPModel.from_pretrained(chain / name / "model") for name in ("teacher", "teacher-more")
    )
    for name in ("visual_projection", "text_projection"):
        assert not getattr(before, name).weight.equal(getattr(after, name).weight)


def test_a_unet_goes_on_with_another_tower(chain):
    teacher = ["--teacher", str(chain / "teacher/model"), "--model", str(chain / "distill/model")]
    distill.train(parse(distill.DistillConfig, flags(chain / "white", 1, *teacher, "--whiten", "0.01")))
    swap = ["--swapped-from", str(chain / "distill/model"), "--timestep-bias", "1"]
    config = text_config(
        chain, "swapped", 1, "--unet", str(chain / "english/model/unet"), *swap, text="white"
    )
    text_to_image.train(config)
    assert (chain / "swapped/model/model_index.json").is_file()


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(chain, cut):
    more = ("--run.ema-decay", "0.9", "--run.gradient-accumulation-steps", "2")
    text_to_image.train(text_config(chain, f"whole-{cut}", 4, *more))
    text_to_image.train(text_config(chain, f"cut-{cut}", cut, *more))
    text_to_image.train(text_config(chain, f"cut-{cut}", 4, *more))
    whole, resumed = (
        UNet2DConditionModel.from_pretrained(chain / f"{name}-{cut}" / "model/unet").state_dict()
        for name in ("whole", "cut")
    )
    assert all(whole[name].equal(resumed[name]) for name in whole)
    losses = [
        [
            json.loads(line)["loss"]
            for line in (chain / f"{name}-{cut}/metrics.jsonl").read_text().splitlines()
        ]
        for name in ("whole", "cut")
    ]
    assert losses[0] == losses[1]


def test_two_processes_train_as_one_with_the_same_batch(chain):
    text_to_image.train(text_config(chain, "one", 3))
    config = text_config(chain, "two", 3)
    save(config, chain / "two.yaml")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    stage = ["-m", "training.text_to_image", "--config", str(chain / "two.yaml")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launch, *stage], capture_output=True, text=True, env=environment, timeout=250)
    assert done.returncode == 0, done.stderr[-2000:]
    one, two = (
        UNet2DConditionModel.from_pretrained(chain / f"{name}/model/unet").state_dict()
        for name in ("one", "two")
    )
    for name in one:  # the mean over the batch is summed in another order
        assert_close(two[name], one[name], rtol=0, atol=1e-5, msg=name)
    assert len((chain / "two/metrics.jsonl").read_text().splitlines()) == 3


def test_a_text_tower_of_another_width_is_refused_by_name(chain):
    config = text_config(chain, "wide", 1, "--unet", str(chain / "english/model/unet"))
    other = UNet2DConditionModel.from_pretrained(
        config.unet, cross_attention_dim=24, low_cpu_mem_usage=False, ignore_mismatched_sizes=True
    )
    other.save_pretrained(chain / "other-unet")
    with pytest.raises(ValueError, match=r"^text: its states are 16 wide; .* takes 24"):
        text_to_image.train(text_config(chain, "wide", 1, "--unet", str(chain / "other-unet")))
