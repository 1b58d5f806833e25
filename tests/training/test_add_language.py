"""A language more from parallel text: the new one is learnt, the old ones stay, and the result is stock."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close
from transformers import AltCLIPModel, AutoTokenizer

from altdiffusion import AltCLIP, AltDiffusionPipeline
from altdiffusion.backbone import shared_view
from altdiffusion.conditioning import encode_trimmed
from tests.fakes import SENTENCES
from tests.published import write
from tests.training.conftest import flags
from tests.training.data_files import write_lines
from training.add_language import AddLanguageConfig, build, export, open_sources, pairs_of, train
from training.config import parse, save
from training.new_language import NewAndOld, Texts, Tower

WORDS = "text_model.roberta.embeddings.word_embeddings.weight"
COLOURS = {
    "red": ("rote", "წითელი"),
    "green": ("grüne", "მწვანე"),
    "blue": ("blaue", "ლურჯი"),
    "big": ("große", "დიდი"),
}
THINGS = {
    "cat": ("Katze", "კატა"),
    "hand": ("Hand", "ხელი"),
    "rose": ("Rose", "ვარდი"),
    "flute": ("Flöte", "სალამური"),
}
LEARN = "--optim.learning-rate 5e-3 --run.batch-size 16 --vocabulary 60"


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    """English, German, and Georgian, whose script the tiny tokenizer does not know."""
    rows = [
        {"captions": {"en": f"{c} {t}", "de": f"{colour[0]} {thing[0]}", "ka": f"{colour[1]} {thing[1]}"}}
        for c, colour in COLOURS.items()
        for t, thing in THINGS.items()
    ]
    return write_lines(tmp_path_factory.mktemp("text") / "parallel.jsonl", rows)


def config(folder: Path, steps: int, model: Path, text: Path, more: str = "") -> AddLanguageConfig:
    argv = flags(folder, steps, f"--model {model} --languages ka --data {text} {more}")
    return parse(AddLanguageConfig, argv)


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return AltCLIPModel.from_pretrained(folder).state_dict()


def test_the_new_language_is_learnt_and_the_old_ones_stay(tmp_path, altclip, text):
    train(config(tmp_path, 60, altclip, text, LEARN))
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["before"]["ka"] < 0.4 < 0.8 < report["after"]["ka"]
    assert report["old languages, worst change"] == min(
        report["after"][tag] - report["before"][tag] for tag in ("de", "en")
    )
    before, after = AltCLIP.from_pretrained(altclip), AltCLIP.from_pretrained(tmp_path / "model")
    german = [f"{c[0]} {t[0]}" for c in COLOURS.values() for t in THINGS.values()]
    assert (before.encode_text(german) * after.encode_text(german)).sum(1).mean() > 0.95
    georgian = [f"{c[1]} {t[1]}" for c in COLOURS.values() for t in THINGS.values()]
    english = before.encode_text([f"{c} {t}" for c in COLOURS for t in THINGS])
    far = [(1 - (clip.encode_text(georgian) * english).sum(1)).mean() for clip in (before, after)]
    assert far[1] < 0.6 * far[0]


def test_what_comes_out_is_a_stock_model_with_the_old_rows_and_the_old_image_tower(tmp_path, altclip, text):
    train(config(tmp_path, 2, altclip, text, LEARN))
    before, after = weights(altclip), weights(tmp_path / "model")
    old, new = (AutoTokenizer.from_pretrained(folder) for folder in (altclip, tmp_path / "model"))
    assert len(after[WORDS]) == len(new) > len(old) == len(before[WORDS])
    assert after[WORDS][: len(old)].equal(before[WORDS])
    for name, value in before.items():
        if not name.startswith("text_model."):
            assert after[name].equal(value), name
    assert not after["text_model.transformation.weight"].equal(before["text_model.transformation.weight"])
    for sentence in SENTENCES.values():
        assert new(sentence).input_ids == old(sentence).input_ids
    assert json.loads((tmp_path / "report.json").read_text())["new words"] == len(new) - len(old)
    card = (tmp_path / "model/README.md").read_text()
    assert "- ka\n" in card and "| ka |" in card


def test_new_rows_alone_leave_the_old_languages_bit_for_bit_as_they_were(tmp_path, altclip, text):
    train(config(tmp_path, 30, altclip, text, f"--trainable new_rows {LEARN} --optim.learning-rate 5e-2"))
    before, after = weights(altclip), weights(tmp_path / "model")
    rows = len(before[WORDS])
    assert after[WORDS][:rows].equal(before[WORDS])
    assert all(after[name].equal(before[name]) for name in before if name != WORDS)
    found, kept = losses(tmp_path), json.loads((tmp_path / "report.json").read_text())
    assert sum(found[-5:]) < 0.8 * sum(found[:5])
    assert kept["before"]["de"] == kept["after"]["de"] and kept["after"]["ka"] > kept["before"]["ka"]


def test_a_cut_run_goes_on_bit_for_bit_and_passes_add_up_to_the_batch(tmp_path, altclip, text):
    train(config(tmp_path / "whole", 4, altclip, text, LEARN))
    for steps in (1, 4):
        train(config(tmp_path / "cut", steps, altclip, text, LEARN))
    assert losses(tmp_path / "whole") == losses(tmp_path / "cut")
    whole, cut = weights(tmp_path / "whole/model"), weights(tmp_path / "cut/model")
    assert all(whole[name].equal(cut[name]) for name in whole)
    train(config(tmp_path / "passes", 4, altclip, text, f"{LEARN} --run.gradient-accumulation-steps 4"))
    assert_close(losses(tmp_path / "passes"), losses(tmp_path / "whole"), rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("trainable", ["tower", "new_rows"])
def test_two_processes_learn_as_one(tmp_path, altclip, text, trainable):
    more = f"{LEARN} --trainable {trainable}"
    train(config(tmp_path / "one", 3, altclip, text, more))
    save(config(tmp_path / "two", 3, altclip, text, more), tmp_path / "two.yaml")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    stage = ["-m", "training.add_language", "--config", str(tmp_path / "two.yaml")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launch, *stage], capture_output=True, text=True, env=environment, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    one, two = weights(tmp_path / "one/model"), weights(tmp_path / "two/model")
    for name, value in one.items():
        if not name.endswith("key.bias"):  # softmax hides it: its gradient is rounding, which Adam blows up
            assert_close(two[name], value, rtol=0, atol=1e-5, msg=name)


@pytest.mark.slow
def test_two_processes_that_share_the_weights_out_save_what_one_does(tmp_path, altclip, text):
    more = f"{LEARN} --optim.learning-rate 1e-2"
    train(config(tmp_path / "one", 3, altclip, text, more))
    save(config(tmp_path / "two", 3, altclip, text, more), tmp_path / "two.yaml")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    stage = ["-m", "tests.training.together", "--fsdp2", f"add_language={tmp_path / 'two.yaml'}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launch, *stage], capture_output=True, text=True, env=environment, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    one, two = weights(tmp_path / "one/model"), weights(tmp_path / "two/model")
    for name in ("text_model.transformation.weight", WORDS):
        assert_close(two[name], one[name], rtol=0, atol=1e-5, msg=name)


@pytest.mark.parametrize("form", ["m9", "m18"])
def test_the_published_forms_keep_theirs_and_learn_what_conditions_a_unet(tmp_path, text, form):
    folder = write("A", tmp_path / "published", form)
    more = f"{LEARN} --sequence-weight 1 --replay-share 0 --optim.learning-rate 1e-4"
    train(config(tmp_path / "run", 8, folder, text, more))
    before = AltCLIP.from_pretrained(folder, dtype=torch.float32, device="cpu")
    after = AltCLIP.from_pretrained(tmp_path / "run/model", dtype=torch.float32, device="cpu")
    assert after.form == before.form == form
    if form == "m18":
        assert all(after.generation_head[kind].equal(value) for kind, value in before.generation_head.items())
    assert losses(tmp_path / "run")[-1] < 0.7 * losses(tmp_path / "run")[0]
    with torch.no_grad():
        heads, _ = Tower(after, after.tokenizer)(["კატა", "a red cat"])
        view = shared_view(after.model, form, after.generation_head)
        conditioning, _ = encode_trimmed(view, after.tokenizer, ["კატა", "a red cat"])
        pooled, _ = encode_trimmed(after.model.text_model, after.tokenizer, ["კატა", "a red cat"])
    assert_close(heads[:, 0], pooled)
    assert_close(heads[:, 1], conditioning)


def test_the_result_drives_the_unet_that_the_model_drove(tmp_path, altclip, drawing, text):
    train(config(tmp_path, 2, altclip, text, LEARN))
    pipeline = AltDiffusionPipeline.from_altclip(AltCLIP.from_pretrained(tmp_path / "model"), drawing)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(tmp_path / "pipeline")
    again = AltDiffusionPipeline.from_pretrained(tmp_path / "pipeline")
    again.set_progress_bar_config(disable=True)
    drawn = [
        each("წითელი კატა", num_inference_steps=2, generator=torch.manual_seed(0), output_type="np").images
        for each in (pipeline, again)
    ]
    assert (drawn[0] == drawn[1]).all()


def test_texts_without_english_are_replayed_from_a_source_of_their_own(tmp_path, altclip, text, caplog):
    rows = [{"text": f"eine Katze {n}", "language": "de"} for n in range(4)]
    replay = write_lines(tmp_path / "german.jsonl", [*rows, {"text": "a rose", "language": "en"}])
    settings = config(tmp_path / "out", 1, altclip, text, f"--replay {replay} --replay-share 0.25 {LEARN}")
    new, old = open_sources(settings)
    assert old is not None and set(old.found.rows) == {"de", "en"}
    samples = NewAndOld(Texts(new, 0, 7), Texts(old, 0, 8), 0.25)
    drawn = [samples[n] for n in range(80)]
    assert sum(english is None for _, english in drawn) == 20
    assert {text for text, english in drawn if english is None} == {row["text"] for row in rows} | {"a rose"}
    assert ("წითელი კატა", "red cat") in drawn
    texts, english, old_texts = samples.collate(drawn)
    assert len(texts) == len(english) == 60 and len(old_texts) == 20
    train(settings)
    assert "replayed: English alone" not in caplog.text


def test_english_alone_is_replayed_with_a_warning(tmp_path, altclip, text, caplog):
    rows = [{"en": f"a cat {n}", "ka": f"კატა {n}"} for n in range(4)]
    source = write_lines(tmp_path / "two.jsonl", rows)
    train(config(tmp_path / "out", 1, altclip, source, LEARN))
    assert "replayed: English alone; texts of the model's other languages go with --replay" in caplog.text


def test_a_known_script_gets_no_rows(tmp_path, altclip):
    rows = [{"en": f"a cat {n}", "sv": f"en katt {n}"} for n in range(4)]
    source = write_lines(tmp_path / "two.jsonl", rows)
    train(config(tmp_path / "out", 2, altclip, source, "--languages sv"))
    before, after = weights(altclip), weights(tmp_path / "out/model")
    assert after[WORDS].equal(before[WORDS])
    assert json.loads((tmp_path / "out/report.json").read_text())["new words"] == 0
    with pytest.raises(ValueError, match=r"^trainable: new_rows, and the tokenizer knows every sign of sv;"):
        train(config(tmp_path / "rows", 2, altclip, source, "--languages sv --trainable new_rows"))


def test_the_old_tower_shares_the_old_rows_and_nothing_else_that_moves(tmp_path, altclip, text):
    settings = config(tmp_path, 1, altclip, text, LEARN)
    clip = AltCLIP.from_pretrained(altclip, dtype=torch.float32, device="cpu")
    stage = build(clip, pairs_of(open_sources(settings)[0], 100), settings)
    old, grown = stage.frozen[0].model, stage.tower.model.roberta.embeddings.word_embeddings
    assert old.roberta.embeddings.word_embeddings.weight.data_ptr() == grown.old.data_ptr()
    moved = {p.data_ptr() for p in stage.parameters() if p.requires_grad}
    assert not moved & {p.data_ptr() for p in old.parameters()}
    assert not any(p.requires_grad for p in old.parameters())


def test_where_the_trained_tower_is_a_copy_it_is_the_copy_that_is_saved(tmp_path, altclip, text):
    """Processes that share the weights out leave them in one."""
    settings = config(tmp_path, 1, altclip, text, LEARN)
    clip = AltCLIP.from_pretrained(altclip, dtype=torch.float32, device="cpu")
    stage = build(clip, pairs_of(open_sources(settings)[0], 100), settings)
    twin = copy.deepcopy(stage, {id(stage.frozen): stage.frozen})
    with torch.no_grad():
        for parameter in twin.tower.model.parameters():
            parameter.add_(1)
    learnt = twin.tower.model.transformation.weight.clone()
    export(clip, twin, settings)
    saved = weights(tmp_path / "model")
    assert saved["text_model.transformation.weight"].equal(learnt)
    assert len(saved[WORDS]) == len(AutoTokenizer.from_pretrained(tmp_path / "model"))


def test_the_new_language_is_drawn_to_what_the_old_tower_says_in_english(tmp_path, altclip, text):
    settings = config(tmp_path, 1, altclip, text, LEARN)
    clip = AltCLIP.from_pretrained(altclip, dtype=torch.float32, device="cpu")
    stage = build(clip, pairs_of(open_sources(settings)[0], 100), settings)
    texts = ["a rose", "a cat and a flute on the beach " * 20]  # the second fills all 77 rows: no pad is left
    with torch.no_grad():
        said = stage.said(texts)[:, :, 0]
        for row, alone in zip(said, texts, strict=True):
            states, counts = encode_trimmed(stage.frozen[0].model, stage.frozen[0].tokenizer, alone)
            assert_close(row[0], states[0, 0])
            assert_close(row[1], states[0, 1 : int(counts)].mean(0))
            assert_close(row[2], states[0, -1])
        states, counts = stage.tower(["a rose"])
        ones = stage.distance(states, counts, states + torch.ones(()))
    assert_close(ones, torch.tensor(1 + 0.5))


def test_the_recipes_are_a_chain():
    first, second = (
        parse(AddLanguageConfig, ["--config", f"training/recipes/emoji/{name}.yaml"])
        for name in ("add_greek", "add_greek_more")
    )
    assert (first.languages, first.trainable, second.trainable) == (("el",), "new_rows", "tower")
    assert second.model == first.output_dir / "model"


def test_mistakes_are_one_line(tmp_path, altclip, text, capsys):
    for message, more in {
        "languages: 'en'; allowed: one new language": "--languages en",
        "replay_share: 1.0; allowed: from 0 to below 1": "--replay-share 1",
        "vocabulary: 0 with trainable new_rows": "--vocabulary 0 --trainable new_rows",
        "vocabulary: -1; allowed: 0 and up": "--vocabulary -1",
        "streaming: True; allowed: False": "--reading.streaming True",
    }.items():
        with pytest.raises(SystemExit) as stop:
            config(tmp_path, 1, altclip, text, more)
        assert stop.value.code == 2
        assert message in " ".join(capsys.readouterr().err.replace("│", "").split())
    nowhere = tmp_path / "no-model"
    for message, more in {
        "^languages: none of the 16 samples has a text in el$": "--languages el",
        "^data: no file or folder ./none.jsonl$": "--data ./none.jsonl",
    }.items():
        with pytest.raises(ValueError, match=message):
            train(config(tmp_path, 1, nowhere, text, more))
