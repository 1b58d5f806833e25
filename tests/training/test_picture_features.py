"""Image features on disk: the same training with a locked image tower, which is then not read at all."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close
from transformers import AltCLIPModel, AutoTokenizer

from altdiffusion import AltCLIP
from altdiffusion.images import open_image
from tests.training.conftest import flags
from tests.training.data_files import image_folder, picture
from training import contrast
from training.captioned import CaptionedPictures
from training.config import parse, save
from training.contrast import Contrast, ContrastConfig, kept_features, normalised, train
from training.data import open_pictures
from training.image_tower import text_side
from training.loop import Run
from training.pictures import as_pixels

CROPS = "--reading.crop random --reading.flip True --reading.crops 3"


def config(folder, steps, model, more="") -> ContrastConfig:
    return parse(ContrastConfig, flags(folder, steps, f"--model {model} --size 32 {more}"))


def losses(folder) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def features_of(settings: ContrastConfig):
    opened = open_pictures(settings.data, settings.reading, settings.languages)
    return opened, kept_features(settings, opened, locked=True)


@pytest.fixture
def pictures(tmp_path) -> Path:
    return image_folder(tmp_path / "pictures", 9, (48, 32))


def test_kept_features_are_the_towers_of_each_view(altclip, pictures, tmp_path):
    more = f"--data {pictures} {CROPS} --cache {tmp_path / 'cache'}"
    _, features = features_of(config(tmp_path, 1, altclip, more))
    tower = Contrast(AltCLIPModel.from_pretrained(altclip), locked=True).eval()
    for record in (0, 8):
        seen = [features.views.stored(record, view) for view in range(3)]
        shown = open_image(pictures / f"p{record:03d}.png")
        expected = tower.image(normalised(torch.stack([as_pixels(shown, (32, 32), view) for view in seen])))
        found = torch.stack([features[record, view] for view in range(3)])
        assert_close(found, expected, rtol=0, atol=1e-6)
        assert len({tuple(row.tolist()) for row in found}) == 3


def test_a_sample_shows_one_of_its_records_kept_views(altclip, pictures, tmp_path):
    settings = config(tmp_path, 1, altclip, f"--data {pictures} {CROPS} --cache {tmp_path / 'cache'}")
    opened, features = features_of(settings)
    data = CaptionedPictures(opened, settings.run, 32, features)
    again = CaptionedPictures(opened, settings.run, 32, features)
    shown = {}
    for index in range(200):
        feature, text, group = data[index]
        assert feature.equal(again[index][0]) and text == again[index][1]
        record = int(text.split()[-1])
        assert any(feature.equal(features[record, view]) for view in range(3))
        shown.setdefault(group, set()).add(tuple(feature.tolist()))
    assert len(shown) == 9 and sum(map(len, shown.values())) == 27


@pytest.mark.parametrize("more", ["", "--run.gradient-accumulation-steps 2 --loss siglip"])
def test_kept_features_train_as_the_tower_at_hand_which_is_not_read(
    altclip, pictures, tmp_path, monkeypatch, more
):
    more = f"--data {pictures} {more}"
    cache = f"{more} --cache {tmp_path / 'cache'}"
    train(config(tmp_path / "at-hand", 4, altclip, more))
    train(config(tmp_path / "kept", 2, altclip, cache))
    real_build, real_trained, training = contrast.build, Run.trained, [True]

    def build(settings):
        assert not training, "the image tower was read in training"
        return real_build(settings)

    def trained(run):
        training.clear()
        return real_trained(run)

    monkeypatch.setattr(contrast, "build", build)
    monkeypatch.setattr(Run, "trained", trained)
    train(config(tmp_path / "kept", 4, altclip, cache))
    assert_close(losses(tmp_path / "kept"), losses(tmp_path / "at-hand"), rtol=0, atol=1e-5)
    states = [
        AltCLIPModel.from_pretrained(path).state_dict()
        for path in (altclip, tmp_path / "at-hand/model", tmp_path / "kept/model")
    ]
    for name, (before, at_hand, kept) in {n: [s[n] for s in states] for n in states[0]}.items():
        if name.startswith(("vision_model", "visual_projection")):
            assert kept.equal(before), name
        elif not name.endswith("key.bias"):  # its gradient is rounding
            assert_close(kept, at_hand, rtol=0, atol=1e-5, msg=name)
    assert not states[2]["text_projection.weight"].equal(states[0]["text_projection.weight"])


def test_of_a_model_the_text_side_alone_is_read(altclip, tmp_path):
    weights = altclip / "model.safetensors"
    content = bytearray(weights.read_bytes())
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    start = 8 + int.from_bytes(content[:8], "little")
    for name, entry in header.items():
        if name.startswith(("vision_model", "visual_projection")):
            first, last = entry["data_offsets"]
            content[start + first : start + last] = b"\xff" * (last - first)  # not a number anywhere
    for file in altclip.iterdir():
        (tmp_path / file.name).write_bytes(content if file == weights else file.read_bytes())
    clip, whole = text_side(tmp_path).eval(), AltCLIPModel.from_pretrained(altclip)
    assert not [name for name in clip.state_dict() if name.startswith("vis")]
    tokens = AutoTokenizer.from_pretrained(altclip)(["a cat", "一只猫"], padding=True, return_tensors="pt")
    found, expected = (model.get_text_features(**tokens).pooler_output for model in (clip, whole))
    assert found.equal(expected) and clip.logit_scale.equal(whole.logit_scale)


def test_only_new_and_changed_pictures_are_encoded(altclip, pictures, tmp_path, monkeypatch):
    seen = []
    real = Contrast.image
    monkeypatch.setattr(Contrast, "image", lambda self, rows: seen.append(len(rows)) or real(self, rows))
    settings = config(tmp_path, 1, altclip, f"--data {pictures} --cache {tmp_path / 'cache'}")
    features_of(settings)
    features_of(settings)
    (pictures / "p004.png").write_bytes(picture(99, 48, 32))
    _, features = features_of(settings)
    assert seen == [9, 1] and len(features.records) == 9
    crops = config(tmp_path, 1, altclip, f"--data {pictures} {CROPS} --cache {tmp_path / 'cache'}")
    features_of(crops)
    assert sum(seen) == 10 + 27


def test_damaged_pictures_are_named_and_left_out(altclip, pictures, tmp_path, caplog):
    (pictures / "p002.png").write_bytes(b"damaged")
    more = f"--data {pictures} --reading.max-bad-share 0.2 --cache {tmp_path / 'cache'}"
    for _ in range(2):  # found, and known
        caplog.clear()
        opened, features = features_of(config(tmp_path, 1, altclip, more))
        assert 2 not in features.records and len(features.records) == 8
        assert opened.found.bad.count == 1 and "line 3" in caplog.text
    strict = config(tmp_path, 1, altclip, f"--data {pictures} --cache {tmp_path / 'cache'}")
    with pytest.raises(ValueError, match=r"^data: 1 of 9 samples cannot be used"):
        features_of(strict)


def test_an_m18_keeps_its_generation_head(altclip, pictures, tmp_path):
    clip = AltCLIP.from_pretrained(altclip)
    head = {"weight": torch.ones(32, 32), "bias": torch.ones(32)}
    AltCLIP(
        clip.model, clip.tokenizer, clip.image_processor, form="m18", generation_head=head
    ).save_pretrained(tmp_path / "m18")
    train(config(tmp_path, 1, tmp_path / "m18", f"--data {pictures} --cache {tmp_path / 'cache'}"))
    after = AltCLIP.from_pretrained(tmp_path / "model")
    assert after.form == "m18" and after.generation_head["weight"].equal(head["weight"])
    assert not after.model.text_model.pre_LN.weight.equal(clip.model.text_model.pre_LN.weight)


def test_a_cache_that_could_not_help_is_refused(altclip, pictures, tmp_path, capsys):
    with pytest.raises(SystemExit):
        config(tmp_path, 1, altclip, "--cache x")
    message = "cache: the emoji's scenes never come twice; allowed: with data"
    assert message in " ".join(capsys.readouterr().err.replace("│", "").split())
    more = f"--data {pictures} --cache {tmp_path / 'cache'} --lock-image False"
    with pytest.raises(ValueError, match=r"^cache: with an image tower that is trained; allowed: with lock"):
        train(config(tmp_path, 1, altclip, more))


@pytest.mark.slow
def test_two_processes_fill_one_cache_and_train_as_one(altclip, pictures, tmp_path):
    more = f"--data {pictures} --cache"
    train(config(tmp_path / "one", 2, altclip, f"{more} {tmp_path / 'cache-1'}"))
    save(config(tmp_path / "two", 2, altclip, f"{more} {tmp_path / 'cache-2'}"), tmp_path / "two.yaml")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    stage = ["-m", "training.contrast", "--config", str(tmp_path / "two.yaml")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launch, *stage], capture_output=True, text=True, env=environment, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(list((tmp_path / "cache-2").glob("*/part-*"))) == 2
    assert_close(losses(tmp_path / "two"), losses(tmp_path / "one"), rtol=0, atol=1e-5)
