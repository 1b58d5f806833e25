"""Adapter mode at toy size, on real emoji and their names."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers import DDPMScheduler, DiffusionPipeline, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import AltCLIPModel, CLIPTextConfig, CLIPTextModel

from altdiffusion import AltDiffusionPipeline
from altdiffusion.losses import imitation_loss
from tests.fakes import roughen, tiny_altclip_folder, tiny_unet, tiny_vae
from tests.training import data_files
from training import adapter
from training.captions import Captions
from training.config import parse, save
from training.data import open_pictures
from training.emoji import load_emoji
from training.tokenizers import train_clip_tokenizer
from training.unet import SCHEDULE

RUN = "--run.batch-size 4 --run.threads 1 --run.log-steps 1 --optim.warmup-steps 0 --optim.learning-rate 3e-3"
DATA = "--emoji 3 --languages th zh --net.hidden-dim 64 --judged-captions 3"


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A random AltCLIP, and a random Stable Diffusion of another width with CLIP's text encoder."""
    place = tmp_path_factory.mktemp("adapter")
    tiny_altclip_folder(place / "altclip")
    tokenizer = train_clip_tokenizer(Captions(load_emoji()).corpus("en"), 600)
    torch.manual_seed(0)
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=24,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    StableDiffusionPipeline(
        vae=tiny_vae(),
        text_encoder=roughen(CLIPTextModel(text)),
        tokenizer=tokenizer,
        unet=roughen(tiny_unet(24)),
        scheduler=DDPMScheduler(**SCHEDULE, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(place / "sd")
    return place


def config(root: Path, name: str, steps: int, *more: str) -> adapter.AdapterConfig:
    places = ["--output-dir", str(root / name), "--text", str(root / "altclip")]
    places += ["--stable-diffusion", str(root / "sd"), "--run.max-train-steps", str(steps)]
    return parse(adapter.AdapterConfig, [*places, *RUN.split(), *DATA.split(), *more])


def report(root: Path, name: str) -> dict[str, dict[str, float]]:
    return json.loads((root / name / "report.json").read_text())


def test_the_unet_learns_to_follow_other_languages_and_nothing_but_the_adapter_moves(root):
    adapter.train(config(root, "net", 60, "--fitted-captions", "0", "--timestep-bias", "1"))
    figures = report(root, "net")
    for tag in ("th", "zh"):
        assert figures["trained"][tag] < 0.3 * figures["start"][tag], figures
    pipeline = AltDiffusionPipeline.from_pretrained(root / "net/model", device="cpu")
    before = UNet2DConditionModel.from_pretrained(root / "sd/unet").state_dict()
    assert all(value.equal(before[name]) for name, value in pipeline.unet.state_dict().items())
    altclip = AltCLIPModel.from_pretrained(root / "altclip").state_dict()
    saved = AltCLIPModel.from_pretrained(root / "net/model/altclip").state_dict()
    assert all(value.equal(altclip[name]) for name, value in saved.items())
    checkpoint = next((root / "net").glob("checkpoint-*")) / "model.safetensors"
    assert all(name.startswith("adapter.") for name in load_file(checkpoint))


def test_a_linear_adapter_makes_a_stock_model(root):
    adapter.train(config(root, "linear", 2, "--net.hidden-layers", "0"))
    assert not (root / "linear/model/adapter").exists()
    stock = DiffusionPipeline.from_pretrained(root / "linear/model")
    ours = AltDiffusionPipeline.from_pretrained(root / "linear/model", device="cpu")
    arguments = {"num_inference_steps": 2, "output_type": "np", "width": 32, "height": 32}
    drawn = [p("กุ้งมังกร", generator=torch.manual_seed(0), **arguments).images for p in (stock, ours)]
    assert_close(drawn[0], drawn[1], rtol=0, atol=1e-4)
    assert ours.text_encoder.config.project_dim == 24


def test_least_squares_is_a_better_start_than_chance(root):
    for name, captions in (("chance", "0"), ("fitted", "200")):
        adapter.train(config(root, name, 1, "--fitted-captions", captions))
    chance, fitted = (report(root, name)["start"] for name in ("chance", "fitted"))
    assert all(fitted[tag] < chance[tag] for tag in chance), (chance, fitted)


def test_a_cut_run_and_two_processes_give_the_same_adapter(root):
    more = ("--run.gradient-accumulation-steps", "2", "--run.ema-decay", "0.9", "--fitted-captions", "20")
    # Gradients so small that by Adam's epsilon what is but rounding in them moves nothing that counts.
    more += ("--optim.max-grad-norm", "1e-4")
    adapter.train(config(root, "whole", 3, *more))
    adapter.train(config(root, "cut", 2, *more))
    adapter.train(config(root, "cut", 3, *more))
    save(config(root, "two", 3, *more), root / "two.yaml")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    stage = ["-m", "training.adapter", "--config", str(root / "two.yaml")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launch, *stage], capture_output=True, text=True, env=environment, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    file = "model/adapter/diffusion_pytorch_model.safetensors"
    whole, cut, two = (load_file(root / name / file) for name in ("whole", "cut", "two"))
    for name, value in whole.items():
        assert value.equal(cut[name]), name
        # Adam moves a weight whose gradient is but rounding as far as any other: one in a thousand may.
        assert ((two[name] - value).abs() > 1e-5).float().mean() <= 0.001, name


def test_gradient_checkpointing_changes_no_gradient(root):
    gradients = []
    for more in ("False", "True"):
        torch.manual_seed(0)
        stage = adapter.build(config(root, "unused", 1, "--gradient-checkpointing", more))
        noise = torch.randn(2, 4, 16, 16, generator=torch.manual_seed(1))
        drawn, imitated = stage(noise, noise, torch.tensor([100, 900]), ["กุ้งมังกร", ""], ["lobster", ""])
        (drawn + imitated).backward()
        gradients.append(stage.adapter.linear.weight.grad)
    assert gradients[0].abs().max() > 0
    assert_close(gradients[0], gradients[1])


def test_the_imitation_loss_by_hand():
    prediction, goal = torch.zeros(1, 1, 1, 2), torch.tensor([[[[1.0, 3.0]]]])
    assert imitation_loss(prediction, goal).item() == 5
    block = torch.ones(1, 4)
    assert imitation_loss(prediction, goal, [block, block], [3 * block, block], 0.5).item() == 7


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--stable-diffusion", "/nowhere"], r"^stable_diffusion: '/nowhere' does not exist"),
        (["--text", "/nowhere"], r"^text: '/nowhere' does not exist"),
    ],
)
def test_a_mistake_is_one_line_that_begins_with_the_flag(root, flags, message):
    with pytest.raises(ValueError, match=message) as caught:
        adapter.build(config(root, "wrong", 1, *flags))
    assert "\n" not in str(caught.value)


def test_rounded_frozen_weights_train_as_plain_autocast_does_and_are_saved_as_read(root, monkeypatch):
    AcceleratorState._reset_state()  # accelerate keeps the precision of a process's first run
    adapter.train(config(root, "rounded", 2, "--run.mixed-precision", "bf16"))
    monkeypatch.setattr(adapter, "store_rounded", lambda *_: None)
    monkeypatch.setattr(adapter, "with_adapter", lambda stage, _: stage)
    adapter.train(config(root, "plain", 2, "--run.mixed-precision", "bf16"))
    AcceleratorState._reset_state()
    assert report(root, "rounded") == report(root, "plain")
    for file in ("adapter", "unet", "text_encoder"):
        one, other = (
            load_file(next((root / name / "model" / file).glob("*.safetensors")))
            for name in ("rounded", "plain")
        )
        assert all(one[name].equal(other[name]) for name in one) and one.keys() == other.keys()


def own(root: Path, tmp_path: Path, name: str, steps: int, *more: str) -> adapter.AdapterConfig:
    """Pictures with English and one other language each."""
    folder = tmp_path / "pictures"
    if not folder.exists():
        data_files.image_folder(folder, 8, (40, 32))
    flags = ["--data", str(folder), "--reading.resolution", "64", "--reading.flip", "True", "--languages"]
    return config(root, f"{tmp_path.name}/{name}", steps, *flags, "en", "th", "de", *more)


def test_ones_own_pictures_train_the_adapter_and_resume_bit_for_bit(root, tmp_path):
    more = ("--fitted-captions", "0", "--timestep-bias", "1", "--run.checkpointing-steps", "30")
    adapter.train(own(root, tmp_path, "whole", 20, *more))
    for steps in (7, 20):
        adapter.train(own(root, tmp_path, "cut", steps, *more))
    place = root / tmp_path.name
    figures = json.loads((place / "whole/report.json").read_text())
    assert set(figures["trained"]) == {"en", "th", "de"} and figures["texts"] == {"de": 2, "en": 8, "th": 2}
    for tag in figures["trained"]:
        assert figures["trained"][tag] < figures["start"][tag], figures
    file = "model/adapter/diffusion_pytorch_model.safetensors"
    whole, cut = (load_file(place / name / file) for name in ("whole", "cut"))
    assert all(value.equal(cut[name]) for name, value in whole.items())
    assert "- **Data:** pictures\n" in (place / "whole/model/README.md").read_text()


def test_each_caption_of_ones_own_goes_with_its_english_and_its_picture(root, tmp_path):
    settings = own(root, tmp_path, "unused", 1, "--caption-dropout", "0.2")
    opened = open_pictures(settings.data, settings.reading, settings.languages, needed="en")
    stage = adapter.build(settings)
    data, judged = adapter.training_data(settings, stage, opened)
    samples = [data[index] for index in range(40)]
    assert {text for _, text, english in samples if not english} == {""}
    said = {(text, english) for _, text, english in samples if english}
    assert all(text.split()[-1] == english.split()[-1] for text, english in said)
    assert {text.split()[0] for text, _ in said} == {"picture", "th", "de"}
    seen: dict[str, set[bytes]] = {}
    for latents, _, english in samples:
        seen.setdefault(english, set()).add(latents.numpy().tobytes())
    shown = [views for english, views in seen.items() if english]
    assert len(set.union(*shown)) == sum(map(len, shown)) and max(map(len, shown)) == 2  # the mirror image
    assert [english for _, _, english in judged.samples["th"]] == ["picture 1", "picture 6"]
    assert [text for _, text, _ in judged.samples["th"]] == ["th 1", "th 6"]


def test_own_pictures_without_english_or_as_a_stream_are_refused(root, tmp_path, capsys):
    settings = own(root, tmp_path, "wrong", 1)
    rows = [
        {"file_name": "p000.png", "captions": {"th": "ก"}},
        {"file_name": "p001.png", "captions": {"en": "a"}},
    ]
    data_files.write_lines(Path(settings.data) / "metadata.jsonl", rows)
    with pytest.raises(ValueError, match=r"^data: 1 of 2 samples cannot be used.*no text in 'en'"):
        adapter.train(settings)
    with pytest.raises(SystemExit):
        own(root, tmp_path, "wrong", 1, "--reading.streaming", "True")
    said = " ".join(capsys.readouterr().err.replace("│", "").split())
    assert "reading.streaming: True in adapter mode, which reads by place; allowed: False" in said


@pytest.mark.filterwarnings("ignore:labels. no font here:UserWarning")
def test_validation_pictures_leave_no_trace(root):
    shown = ["--validation.prompts", "แมว", "猫", "--validation.steps", "2", "--validation.every", "1"]
    adapter.train(config(root, "unseen", 2, "--fitted-captions", "8"))
    adapter.train(config(root, "shown", 2, "--fitted-captions", "8", *shown))
    grids = sorted((root / "shown/validation").iterdir())
    assert [path.name for path in grids] == [f"step-{step:08d}.png" for step in range(3)]
    assert grids[0].read_bytes() != grids[2].read_bytes()
    lines = [(root / name / "metrics.jsonl").read_text().splitlines() for name in ("unseen", "shown")]
    losses = [[json.loads(line)["loss"] for line in part] for part in lines]
    assert losses[0] == losses[1] and len(losses[0]) == 2
