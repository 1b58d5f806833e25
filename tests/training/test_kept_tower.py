"""Text states on disk: the same training as with the tower at hand, which is then not read at all."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch.testing import assert_close

from altdiffusion.conditioning import MAX_LENGTH
from tests.fakes import SENTENCES
from tests.training import data_files
from tests.training.conftest import flags
from training import text_to_image
from training.config import RunConfig, parse, save
from training.data import open_pictures
from training.emoji_latents import CaptionedLatents, chosen_scenes
from training.kept_tower import KeptTower
from training.known import emoji_texts, texts_of
from training.lazy import LazyAutoencoder, model_key
from training.text_to_image import TextToImageConfig, train
from training.tower import TextTower

PLAIN, ROUNDED = RunConfig(), RunConfig(mixed_precision="bf16")


@pytest.fixture(autouse=True)
def own_precision():
    """accelerate keeps the first run's for all that follow in one process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    return data_files.image_folder(tmp_path_factory.mktemp("data") / "pictures", 7)


def config(folder, steps, models, more="") -> TextToImageConfig:
    altclip, drawing = models
    places = f"--text {altclip} --vae {drawing / 'vae'} --unet {drawing / 'unet'}"
    return parse(TextToImageConfig, flags(folder, steps, f"{places} {more}"))


def losses(folder) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(folder) -> dict:
    return UNet2DConditionModel.from_pretrained(folder / "model/unet").state_dict()


def unreadable(monkeypatch):
    """Neither the tower nor the autoencoder can be read any more."""

    def fail(*_args, **_kwargs):
        raise AssertionError("a frozen model was read")

    monkeypatch.setattr(TextTower, "__init__", fail)
    monkeypatch.setattr(AutoencoderKL, "from_pretrained", fail)


@pytest.mark.parametrize("english", [False, True])
def test_kept_states_are_the_towers(altclip, teacher, tmp_path, english):
    folder = teacher if english else altclip
    texts = ["", *SENTENCES.values(), "a " * 200]
    tower, kept = TextTower(folder), KeptTower(folder, tmp_path)
    kept.kept.keep(texts, PLAIN)
    assert kept.width == tower.width
    assert_close(kept.encode(texts), tower.encode(texts), rtol=0, atol=2e-6)  # neighbours round differently
    assert "model" not in vars(kept.kept)
    for text, rows in zip(texts, kept.kept(texts), strict=True):
        length = len(tower.tokenizer(text, verbose=False).input_ids)
        assert len(rows) == (MAX_LENGTH if english else min(length + 1, MAX_LENGTH))
    assert_close(kept.encode(["not kept"]), tower.encode(["not kept"]))


def test_a_model_a_precision_or_a_layout_of_its_own_has_a_store_of_its_own(altclip, tmp_path, monkeypatch):
    other = Path(shutil.copytree(altclip, tmp_path / "other"))
    kept = KeptTower(altclip, tmp_path / "cache")
    kept.kept.keep(["a cat"], PLAIN)
    kept.kept.keep(["a cat"], ROUNDED)
    assert len(list((tmp_path / "cache").iterdir())) == 2
    assert {store.dtype for store in kept.kept.stores.values()} == {torch.float32, torch.bfloat16}
    assert model_key(other) == model_key(altclip)
    weights = other / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    changed = KeptTower(other, tmp_path / "cache")
    assert "a cat" in kept.kept.store and "a cat" not in changed.kept.store


def test_only_what_is_missing_is_encoded(altclip, tmp_path, monkeypatch):
    asked = []
    real = TextTower.trimmed
    monkeypatch.setattr(TextTower, "trimmed", lambda self, texts: asked.extend(texts) or real(self, texts))
    for texts in (["a", "b"], ["b", "c", "c"], ["a", "b", "c"]):
        KeptTower(altclip, tmp_path).kept.keep(texts, PLAIN)
    assert sorted(asked) == ["a", "b", "c"]


@pytest.mark.parametrize("source, precision, tolerance", [("data", "no", 1e-5), ("emoji", "bf16", 2e-3)])
def test_a_kept_tower_trains_as_one_at_hand(
    altclip, drawing, pictures, tmp_path, monkeypatch, source, precision, tolerance
):
    more = f"--trainable lora --run.mixed-precision {precision} --caption-dropout 0.3"
    more += f" --data {pictures} --reading.resolution 32" if source == "data" else " --emoji 2 --variants 1"
    models, cache = (altclip, drawing), f"{more} --cache {tmp_path / 'cache'}"
    train(config(tmp_path / "at-hand", 4, models, more))
    train(config(tmp_path / "kept", 2, models, cache))
    unreadable(monkeypatch)
    train(config(tmp_path / "kept", 4, models, cache))
    assert_close(losses(tmp_path / "kept"), losses(tmp_path / "at-hand"), rtol=0, atol=tolerance)


def test_a_cut_run_with_a_cache_goes_on_bit_for_bit(altclip, drawing, tmp_path):
    more = f"--trainable kv --emoji 2 --cache {tmp_path / 'cache'} --run.mixed-precision bf16"
    models = (altclip, drawing)
    train(config(tmp_path / "whole", 3, models, more))
    for steps in (1, 3):
        train(config(tmp_path / "cut", steps, models, more))
    assert losses(tmp_path / "whole") == losses(tmp_path / "cut")
    whole, cut = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(whole[name].equal(cut[name]) for name in whole)


def test_a_swap_maps_kept_states_and_reads_no_tower_again(altclip, drawing, tmp_path, monkeypatch):
    swap = f"--swapped-from {altclip} --trainable lora --emoji 2 --variants 1"
    models = (drawing / "altclip", drawing)
    train(config(tmp_path / "at-hand", 1, models, swap))
    train(config(tmp_path / "kept", 1, models, f"{swap} --cache {tmp_path / 'cache'}"))
    assert_close(losses(tmp_path / "kept"), losses(tmp_path / "at-hand"), rtol=0, atol=1e-4)
    unreadable(monkeypatch)
    train(config(tmp_path / "kept", 2, models, f"{swap} --cache {tmp_path / 'cache'}"))


@pytest.mark.slow
def test_two_processes_fill_one_cache_and_train_as_one(altclip, drawing, pictures, tmp_path):
    more = f"--trainable kv --data {pictures} --reading.resolution 32 --cache"
    train(config(tmp_path / "one", 2, (altclip, drawing), f"{more} {tmp_path / 'cache-1'}"))
    settings = config(tmp_path / "two", 2, (altclip, drawing), f"{more} {tmp_path / 'cache-2'}")
    save(settings, tmp_path / "two.yaml")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    stage = ["-m", "training.text_to_image", "--config", str(tmp_path / "two.yaml")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launch, *stage], capture_output=True, text=True, env=environment, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(list((tmp_path / "cache-2").glob("text-states-*/part-*"))) == 2
    for name, value in weights(tmp_path / "one").items():
        assert_close(weights(tmp_path / "two")[name], value, rtol=0, atol=1e-5, msg=name)


@pytest.mark.parametrize("languages", [(), ("de", "zh")])
def test_every_caption_that_can_come_is_known(drawing, tmp_path, languages):
    tags = f"--languages {' '.join(languages)}" if languages else ""
    settings = config(tmp_path, 1, (drawing, drawing), f"--emoji 30 --variants 1 {tags}")
    scenes = chosen_scenes(settings)
    known = {"", *emoji_texts((c for scene in scenes for c in scene.characters), languages)}
    data = CaptionedLatents(settings, torch.zeros(len(scenes), 1), scenes)
    drawn = {data[number][1] for number in range(4000)}
    assert drawn <= known and len(drawn) > len(known) / 4


def test_the_texts_of_ones_own_data_are_those_of_the_wanted_languages(pictures, tmp_path):
    opened = open_pictures(str(pictures), text_to_image.PicturesConfig(), ("de", "th"))
    assert sorted(texts_of(opened)) == ["de 0", "de 5", "th 1", "th 6"]


def test_a_stream_with_a_cache_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        config(tmp_path, 1, (tmp_path, tmp_path), "--reading.streaming True --cache x")
    message = "cache: with reading.streaming, whose texts are not known beforehand; allowed: without"
    assert message in " ".join(capsys.readouterr().err.replace("│", "").split())


def test_an_autoencoder_that_is_not_read_knows_its_configuration(drawing):
    lazy, real = LazyAutoencoder(drawing / "vae"), AutoencoderKL.from_pretrained(drawing / "vae")
    state = torch.get_rng_state()
    assert {k: v for k, v in lazy.config.items() if k[0] != "_"} == {
        k: v for k, v in real.config.items() if k[0] != "_"
    }
    assert "model" not in vars(lazy)
    images = torch.rand(1, 3, 32, 32)
    torch.set_rng_state(state)
    assert lazy.encode(images).latent_dist.mean.equal(real.encode(images).latent_dist.mean)
    lazy.release()
    assert "model" not in vars(lazy)


def test_too_little_room_is_refused_before_the_tower_is_read(altclip, drawing, tmp_path, monkeypatch):
    unreadable(monkeypatch)
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert PartialState().num_processes == 1
    with pytest.raises(
        ValueError, match=r"^cache: .* has 1\.0 kB free of the .* that \d+ text states may take"
    ):
        train(config(tmp_path, 1, (altclip, drawing), f"--emoji 2 --cache {tmp_path / 'cache'}"))
