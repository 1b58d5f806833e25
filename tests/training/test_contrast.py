"""The contrastive stage's options, and its promise: a batch is one batch, however it is shared out."""

import json
import os
import subprocess
import sys
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch.testing import assert_close
from transformers import AltCLIPModel, AutoTokenizer, BertConfig

from altdiffusion import AltCLIP
from altdiffusion.losses import contrastive_loss
from tests.training.conftest import flags
from tests.training.data_files import image_folder
from training.captioned import CaptionedPictures
from training.captions import Captions
from training.config import parse, save
from training.contrast import Contrast, ContrastConfig, hold, pass_losses, train
from training.data import open_pictures
from training.emoji import centred, in_a_row, load_emoji
from training.scenes import AllNames, group_of
from training.teacher import Teacher
from training.whole_batch import whole_batches


def config(folder, steps, model, more="") -> ContrastConfig:
    return parse(ContrastConfig, flags(folder, steps, f"--model {model} --size 32 {more}"))


def losses(folder) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_same_training(one, other, tolerance):
    assert_close(losses(one), losses(other), rtol=0, atol=tolerance)
    before, after = (AltCLIPModel.from_pretrained(path / "model").state_dict() for path in (one, other))
    for name in before:
        # A key's bias shifts all logits of a query alike: its gradient is rounding, which Adam blows up.
        if not name.endswith(("key.bias", "k_proj.bias")):
            assert_close(before[name], after[name], rtol=0, atol=tolerance, msg=name)


@pytest.mark.parametrize("loss", ["infonce", "siglip"])
def test_accumulated_passes_train_as_the_one_big_batch(loss, altclip, tmp_path):
    more = f"--run.batch-size 8 --loss {loss}"
    train(config(tmp_path / "one", 3, altclip, more))
    train(config(tmp_path / "four", 3, altclip, f"{more} --run.gradient-accumulation-steps 4"))
    assert_same_training(tmp_path / "one", tmp_path / "four", 1e-5)


@pytest.mark.parametrize("more", ["", "--loss siglip --lock-image False --run.gradient-accumulation-steps 2"])
def test_two_processes_train_as_one_with_the_same_batch(more, altclip, tmp_path):
    train(config(tmp_path / "one", 3, altclip, more))
    save(config(tmp_path / "two", 3, altclip, more), tmp_path / "two.yaml")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    stage = ["-m", "training.contrast", "--config", str(tmp_path / "two.yaml")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launch, *stage], capture_output=True, text=True, env=environment, timeout=250)
    assert done.returncode == 0, done.stderr[-2000:]
    assert_same_training(tmp_path / "one", tmp_path / "two", 1e-5)


def test_the_passes_gradients_average_to_that_of_the_whole_batch():
    torch.manual_seed(0)
    weight = torch.randn(6, 6, requires_grad=True)
    inputs, scale = torch.randn(8, 6), torch.tensor(1.0)
    groups = torch.arange(8) % 7

    def loss(image, text, groups):
        return contrastive_loss(*(F.normalize(rows, dim=-1) for rows in (image, text)), scale, groups)

    loss(inputs @ weight, inputs, groups).backward()
    expected, weight.grad = weight.grad, None
    parts = [slice(first, first + 2) for first in range(0, 8, 2)]
    wholes = whole_batches(
        Accelerator(cpu=True),
        [inputs[part] @ weight for part in parts],
        [inputs[part] for part in parts],
        [groups[part] for part in parts],
    )
    for part, whole in zip(parts, wholes, strict=True):
        image = whole.around(whole.image, inputs[part] @ weight)
        (loss(image, whole.text, whole.groups) / len(parts)).backward()
    assert_close(weight.grad, expected)


def test_dropout_falls_alike_in_both_looks_at_a_pass(drawing):
    """Each pass then sees one and the same step, and says the same of it."""
    clip = AltCLIPModel.from_pretrained(drawing / "altclip")
    assert clip.config.text_config.hidden_dropout_prob > 0
    stage = Contrast(clip, locked=True).train()
    run: Any = SimpleNamespace(model=stage, accelerator=Accelerator(cpu=True))
    passes = [
        {
            "pixel_values": torch.randn(2, 3, 32, 32),
            "input_ids": torch.randint(4, 100, (2, 6)),
            "attention_mask": torch.ones(2, 6, dtype=torch.long),
            "groups": torch.arange(2) + 2 * number,
        }
        for number in range(3)
    ]
    losses = torch.stack(list(pass_losses(run, stage, passes)))
    assert losses.unique().numel() == 1
    assert losses.requires_grad


def test_a_run_cut_between_steps_of_several_passes_goes_on_bit_for_bit(drawing, tmp_path):
    more = "--run.gradient-accumulation-steps 2 --loss siglip"
    train(config(tmp_path / "whole", 3, drawing / "altclip", more))
    train(config(tmp_path / "cut", 1, drawing / "altclip", more))
    train(config(tmp_path / "cut", 3, drawing / "altclip", more))
    assert losses(tmp_path / "whole") == losses(tmp_path / "cut")
    before, after = (
        AltCLIPModel.from_pretrained(tmp_path / name / "model").state_dict() for name in ("whole", "cut")
    )
    assert all(before[name].equal(after[name]) for name in before)


def test_siglip_starts_from_its_own_scale_and_bias_and_trains_both(altclip, tmp_path):
    train(config(tmp_path, 1, altclip, "--loss siglip --optim.learning-rate 1e-2"))
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["logit_scale"] == pytest.approx(10, abs=0.2) and report["logit_scale"] != 10
    assert report["logit_bias"] == pytest.approx(-10, abs=0.02) and report["logit_bias"] != -10


@pytest.mark.parametrize("locked", [None, True, False])
def test_an_altclips_image_tower_is_locked_unless_told_otherwise(locked, altclip, tmp_path):
    train(config(tmp_path, 1, altclip, f"--lock-image {locked}"))
    before, after = (AltCLIPModel.from_pretrained(path) for path in (altclip, tmp_path / "model"))
    same = before.visual_projection.weight.equal(after.visual_projection.weight)
    assert same is (locked is not False)


def test_frozen_word_embeddings_stay_and_the_rest_of_the_tower_moves(altclip, tmp_path):
    train(config(tmp_path, 2, altclip, "--freeze-embeddings True --optim.learning-rate 1e-3"))
    before, after = (
        AltCLIPModel.from_pretrained(path).text_model.roberta for path in (altclip, tmp_path / "model")
    )
    words = "embeddings.word_embeddings.weight"
    assert after.get_parameter(words).equal(before.get_parameter(words))
    moved = "encoder.layers.0.output.dense.weight"
    assert not after.get_parameter(moved).equal(before.get_parameter(moved))


def test_a_locked_text_tower_says_the_same_at_every_step(drawing):
    clip = AltCLIPModel.from_pretrained(drawing / "altclip")
    assert clip.config.text_config.hidden_dropout_prob > 0
    stage = Contrast(clip, locked=False)
    hold(stage, None, parse(ContrastConfig, flags(drawing, 1, "--lock-text True --model any")))
    stage.train()
    row = torch.randint(4, 100, (1, 6)), torch.ones(1, 6, dtype=torch.long)
    assert stage.text(*row).equal(stage.text(*row))


def test_what_cannot_be_trained_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        parse(ContrastConfig, flags(tmp_path, 1, "--lock-image True"))
    message = "lock_image: True with a new CLIP, whose image tower has learnt nothing; give model"
    assert message in " ".join(capsys.readouterr().err.replace("│", "").split())
    with pytest.raises(SystemExit):
        parse(ContrastConfig, flags(tmp_path, 1, "--freeze-embeddings True"))
    assert "freeze_embeddings: True with a new CLIP, which" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        parse(ContrastConfig, flags(tmp_path, 1, "--lock-text True --lock-image True --model any"))
    assert "lock_text: True with lock_image" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        parse(ContrastConfig, flags(tmp_path, 1, "--all-names 1 --model any"))
    assert "all_names: 1.0 without lock_text" in capsys.readouterr().err
    BertConfig().save_pretrained(tmp_path / "bert")
    with pytest.raises(ValueError, match=r"^model: '.*bert' is bert; allowed: an AltCLIP or a CLIP"):
        train(config(tmp_path / "out", 1, tmp_path / "bert"))


def test_pictures_and_captions_of_ones_own_are_trained_on(altclip, tmp_path):
    data = image_folder(tmp_path / "data", count=12)
    (data / "p003.png").write_bytes(b"damaged")
    more = f"--data {data} --reading.max-bad-share 0.5 --run.batch-size 8 --optim.learning-rate 1e-3"
    train(config(tmp_path / "out", 20, altclip, more))
    found = losses(tmp_path / "out")
    assert sum(found[-5:]) < sum(found[:5])


def test_one_picture_in_two_languages_is_one_group(altclip, tmp_path):
    folder = image_folder(tmp_path / "data", count=6)
    settings = config(tmp_path, 1, altclip, f"--data {folder}")
    data = CaptionedPictures(open_pictures(settings.data, settings.reading), settings.run, 32)
    seen = {}
    for number in range(60):
        pixels, text, group = data[number]
        assert pixels.shape == (3, 32, 32)
        seen.setdefault(group, set()).add(text)
    assert len(seen) == 6
    assert all(len(texts) == 2 for texts in seen.values())


def test_a_size_that_the_model_does_not_see_is_refused(altclip, tmp_path):
    with pytest.raises(ValueError, match=r"^size: 64; allowed by '.*': 32"):
        train(parse(ContrastConfig, flags(tmp_path, 1, f"--model {altclip} --size 64")))


def test_an_m18_keeps_its_generation_head(altclip, tmp_path):
    clip = AltCLIP.from_pretrained(altclip)
    head = {"weight": torch.ones(32, 32), "bias": torch.ones(32)}
    AltCLIP(
        clip.model, clip.tokenizer, clip.image_processor, form="m18", generation_head=head
    ).save_pretrained(tmp_path / "m18")
    train(config(tmp_path, 1, tmp_path / "m18"))
    after = AltCLIP.from_pretrained(tmp_path / "model")
    assert after.form == "m18"
    assert after.generation_head["weight"].equal(head["weight"])
    assert not after.model.text_model.pre_LN.weight.equal(clip.model.text_model.pre_LN.weight)


def test_a_locked_text_tower_stays_and_what_is_behind_it_and_the_image_tower_move(altclip, tmp_path):
    train(config(tmp_path, 2, altclip, "--lock-text True --optim.learning-rate 1e-3"))
    before, after = (AltCLIPModel.from_pretrained(path) for path in (altclip, tmp_path / "model"))
    states = after.text_model.state_dict()
    assert all(value.equal(states[name]) for name, value in before.text_model.state_dict().items())
    for name in ("text_projection.weight", "visual_projection.weight", "logit_scale"):
        assert not after.get_parameter(name).equal(before.get_parameter(name)), name


def test_accumulated_passes_tell_from_all_names_as_the_one_big_batch(altclip, tmp_path):
    more = "--run.batch-size 8 --lock-text True --all-names 1 --languages en th"
    train(config(tmp_path / "one", 2, altclip, more))
    train(config(tmp_path / "four", 2, altclip, f"{more} --run.gradient-accumulation-steps 4"))
    assert_same_training(tmp_path / "one", tmp_path / "four", 1e-5)


def test_one_emoji_is_told_from_all_names_and_a_scene_of_two_is_not(altclip):
    clip, tokenizer = AltCLIPModel.from_pretrained(altclip), AutoTokenizer.from_pretrained(altclip)
    names = AllNames(Teacher(clip, tokenizer), load_emoji(), ("en", "de"))
    scale = torch.tensor(2.0)
    groups = torch.tensor([group_of(centred("🦞")), group_of(in_a_row(("🦞", "🐈")))])
    image = F.normalize(torch.randn(2, clip.config.projection_dim), dim=-1)
    emoji, expected = load_emoji(), torch.zeros(())
    unseen = partial(Captions(emoji).unseen_name, "de")
    assert any(map(unseen, emoji.characters)) and not unseen("🦞")
    for stands in (lambda _: "en", lambda c: "en" if unseen(c) else "de"):
        texts = [emoji.names[stands(c)][c] for c in emoji.characters]
        tokens = tokenizer(texts, padding=True, return_tensors="pt")
        with torch.no_grad():
            text = F.normalize(clip.get_text_features(**tokens).pooler_output, dim=-1)
        said = (scale.exp() * image[0] @ text.T).log_softmax(0)
        expected -= said[emoji.characters.index("🦞")] / 2
    found = names.loss(image, groups, clip.text_projection, scale)
    assert_close(found, expected / 2, rtol=1e-4, atol=1e-4)  # one of two rows counts
