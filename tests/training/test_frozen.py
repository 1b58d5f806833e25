"""Frozen weights stored as autocast rounds them: the same training, bit for bit, in half the memory."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file
from torch import nn
from transformers import AltCLIPModel

from altdiffusion.trainable import add_lora, select_parameters
from tests.fakes import roughen
from tests.training.conftest import flags
from training import contrast, distill, text_to_image
from training.config import parse
from training.frozen import store_rounded, unrounded


@pytest.fixture(autouse=True)
def accelerator_of_its_own():
    """accelerate keeps the precision of a process's first run."""
    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()


def places(altclip: Path, drawing: Path, teacher: Path) -> dict[str, tuple[Any, Any, str]]:
    unet = f"--text {drawing / 'altclip'} --vae {drawing / 'vae'} --unet {drawing / 'unet'} --emoji 2"
    return {
        "kv": (text_to_image, text_to_image.TextToImageConfig, f"{unet} --trainable kv"),
        "lora": (text_to_image, text_to_image.TextToImageConfig, f"{unet} --trainable lora"),
        "unet": (text_to_image, text_to_image.TextToImageConfig, unet),
        "distill": (distill, distill.DistillConfig, f"--teacher {teacher} --model {altclip} --form m18"),
        "contrast": (contrast, contrast.ContrastConfig, f"--model {altclip} --size 32"),
    }


def outcome(folder: Path) -> tuple[list[float], dict[str, torch.Tensor]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    files = sorted((folder / "model").rglob("*.safetensors"))
    weights = {
        f"{file.parent.name} {name}": value for file in files for name, value in load_file(file).items()
    }
    return [json.loads(line)["loss"] for line in lines], weights


def assert_same_bits(one: Path, other: Path) -> None:
    (losses, weights), (same_losses, same_weights) = outcome(one), outcome(other)
    assert losses == same_losses and len(losses) == 3
    assert weights.keys() == same_weights.keys()
    assert not [name for name in weights if not weights[name].equal(same_weights[name])]


def rounded_weights(monkeypatch: pytest.MonkeyPatch, stage: Any) -> list[int]:
    """How many weights each call has rounded, once the stage runs."""
    counts, store = [], stage.store_rounded

    def watched(module: nn.Module, mixed_precision: str) -> None:
        store(module, mixed_precision)
        counts.append(sum(value.dtype == torch.bfloat16 for value in module.parameters()))

    monkeypatch.setattr(stage, "store_rounded", watched)
    return counts


def as_before(monkeypatch: pytest.MonkeyPatch, stage: Any) -> None:
    """The stage with nothing rounded and nothing read anew: plain autocast."""
    monkeypatch.setattr(stage, "store_rounded", lambda *_: None)
    if stage is not distill:
        monkeypatch.setattr(stage, "unrounded", lambda trained, *_: trained)


@pytest.mark.parametrize("name", ["kv", "lora", "unet", "distill", "contrast"])
def test_a_stage_trains_as_under_plain_autocast(name, altclip, drawing, teacher, tmp_path, monkeypatch):
    stage, config, more = places(altclip, drawing, teacher)[name]
    more += " --run.mixed-precision bf16 --optim.learning-rate 1e-2"
    counts = rounded_weights(monkeypatch, stage)
    stage.train(parse(config, flags(tmp_path / "rounded", 3, more)))
    assert sum(counts) > 0
    as_before(monkeypatch, stage)
    stage.train(parse(config, flags(tmp_path / "plain", 3, more)))
    assert_same_bits(tmp_path / "rounded", tmp_path / "plain")


def test_a_run_that_was_cut_goes_on_bit_for_bit(drawing, altclip, teacher, tmp_path):
    stage, config, more = places(altclip, drawing, teacher)["kv"]
    more += " --run.mixed-precision bf16 --run.ema-decay 0.9"
    for name, steps in (("whole", 3), ("cut", 1), ("cut", 3)):
        stage.train(parse(config, flags(tmp_path / name, steps, more)))
    assert_same_bits(tmp_path / "whole", tmp_path / "cut")


def test_what_was_frozen_is_saved_as_it_was_read(drawing, altclip, teacher, tmp_path):
    parts = places(altclip, drawing, teacher)
    for name in ("kv", "contrast"):
        stage, config, more = parts[name]
        stage.train(parse(config, flags(tmp_path / name, 1, f"{more} --run.mixed-precision bf16")))
    before = UNet2DConditionModel.from_pretrained(drawing / "unet")
    select_parameters(before, "kv")
    after = UNet2DConditionModel.from_pretrained(tmp_path / "kv/model/unet").state_dict()
    moved = {name for name, value in before.named_parameters() if not value.equal(after[name])}
    assert moved == {name for name, value in before.named_parameters() if value.requires_grad}
    locked, trained = (AltCLIPModel.from_pretrained(path) for path in (altclip, tmp_path / "contrast/model"))
    for name, value in locked.vision_model.state_dict().items():
        assert value.equal(trained.vision_model.state_dict()[name]), name


def layers() -> nn.Sequential:
    """An embedding, a norm, a frozen convolution, a frozen and a trained linear layer."""
    torch.manual_seed(0)
    stack = nn.Sequential(
        nn.Embedding(9, 8), nn.Unflatten(-1, (8, 1)), nn.Conv2d(5, 5, 1), nn.Flatten(1), nn.LayerNorm(40)
    )
    stack += nn.Sequential(nn.Linear(40, 16), nn.GELU(), nn.Linear(16, 4))
    stack.requires_grad_(False)[7].requires_grad_(True)
    return roughen(stack)


def test_only_what_autocast_rounds_and_nobody_trains_is_rounded():
    stack = layers()
    store_rounded(stack, "bf16")
    found = {name for name, value in stack.named_parameters() if value.dtype == torch.bfloat16}
    assert found == {"2.weight", "2.bias", "5.weight", "5.bias"}


def test_without_mixed_precision_nothing_is_touched():
    stack = layers()
    before = [value.data_ptr() for value in stack.parameters()]
    store_rounded(stack, "no")
    assert [value.data_ptr() for value in stack.parameters()] == before
    assert unrounded(stack, "no", layers) is stack


def test_values_and_gradients_are_those_of_plain_autocast():
    plain, rounded = layers(), layers()
    store_rounded(rounded, "bf16")
    found = []
    for stack in (plain, rounded):
        tokens = torch.arange(5).repeat(2, 1)
        states = stack[0](tokens).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            stack[1:](states).square().sum().backward()
        found.append((states.grad, stack[7].weight.grad))
    for ours, theirs in zip(*found, strict=True):
        assert ours is not None and ours.equal(theirs) and ours.any()


@pytest.mark.parametrize("group", ["kv", "lora"])
def test_a_step_keeps_less_than_half_of_a_frozen_unet(group):
    """What the backward pass keeps, and the frozen weights: autocast keeps a rounded copy beside each."""
    kept = {}
    for precision in ("no", "bf16"):
        unet = UNet2DConditionModel(
            block_out_channels=(64, 64),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=32,
        )
        if group == "lora":
            add_lora(unet, 2)
        select_parameters(unet, group)
        store_rounded(unet, precision)
        storages: dict[int, int] = {}

        def keep(tensor: torch.Tensor, storages: dict[int, int] = storages) -> torch.Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        for parameter in unet.parameters():
            if not parameter.requires_grad:
                keep(parameter)
        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            torch.autocast("cpu", torch.bfloat16),
        ):
            unet(torch.randn(1, 4, 4, 4), torch.tensor([500]), torch.randn(1, 7, 32))
        kept[precision] = sum(storages.values())
    assert kept["bf16"] < 0.5 * kept["no"]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_file_that_the_weights_came_from_is_let_go(drawing, tmp_path):
    folder = shutil.copytree(drawing / "unet", tmp_path / "unet")  # other tests may hold the shared one
    file = str(folder / "diffusion_pytorch_model.safetensors")
    unet = UNet2DConditionModel.from_pretrained(folder)
    assert file in Path("/proc/self/maps").read_text()
    select_parameters(unet, "kv")
    store_rounded(unet, "bf16")
    assert file not in Path("/proc/self/maps").read_text()
