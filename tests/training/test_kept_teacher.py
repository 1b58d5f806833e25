"""Teacher embeddings on disk: the same training, and a teacher that is read for its image tower alone."""

import json

import pytest
import torch
from torch.testing import assert_close
from transformers import CLIPModel

from tests.training.conftest import flags
from training.config import RunConfig, parse
from training.distill import DistillConfig, open_teacher, train
from training.fixed_shapes import ROWS, in_fixed_shapes
from training.loop import Run
from training.targets import targets_of
from training.teacher import KeptTeacher, Teacher


@pytest.fixture
def parallel(tmp_path):
    rows = [f"a red cat {n}\teine rote Katze {n}\tкот {n}" for n in range(8)]
    (tmp_path / "parallel.tsv").write_text("\n".join(["en\tde\tru", *rows]) + "\n", encoding="utf-8")
    return tmp_path / "parallel.tsv"


def config(folder, steps, teacher, more="") -> DistillConfig:
    return parse(DistillConfig, flags(folder, steps, f"--teacher {teacher} {more}"))


def losses(folder) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_kept_embeddings_are_the_teachers(teacher, tmp_path):
    texts = ["", "a red cat", "a red cat and a green apple", "apple " * 100]
    real, kept = Teacher.read(teacher), KeptTeacher(teacher, tmp_path, 2)
    kept.kept.keep(texts, RunConfig())
    assert kept.width == real.width == 32 and "model" not in vars(kept.kept)
    assert_close(kept.pooled(texts), real.pooled(texts), rtol=0, atol=1e-6)
    assert_close(kept.penultimate(texts), real.penultimate(texts), rtol=0, atol=1e-6)
    assert not torch.allclose(kept.pooled(texts), kept.penultimate(texts))
    assert "model" not in vars(kept.kept)
    assert_close(kept.pooled(["a cat"]), real.pooled(["a cat"]))


def test_a_text_that_is_not_kept_is_told_to_the_same_bits_in_any_company(teacher, tmp_path):
    kept = KeptTeacher(teacher, tmp_path, 1)
    kept.kept.keep(["a red cat", "a cat"], RunConfig())
    texts = [
        "a cat",
        "a red cat and a green apple",
        "apple",
        "a green cat",
        "a red cat",
        "a red apple on a cat",
    ]

    def said(texts):
        return in_fixed_shapes(kept.pooled, kept.lengths(texts), texts)

    shapes = []
    real = kept.kept.make
    kept.kept.make = lambda model, texts: shapes.append(len(texts)) or real(model, texts)
    together = said(texts)
    assert all(said([text])[0].equal(row) for text, row in zip(texts, together, strict=True))
    assert set(shapes) == {ROWS}


@pytest.mark.parametrize("more", ["--own-words True --ordered True", "--apart 0.1", "--whiten 0.1", ""])
def test_the_names_are_kept_as_the_targets_ask_for_them(teacher, tmp_path, more):
    settings = config(tmp_path, 1, teacher, f"--cache {tmp_path / 'cache'} --run.mixed-precision bf16 {more}")
    guide = open_teacher(settings, None)
    targets_of(settings, guide)
    assert "model" not in vars(guide.kept)


@pytest.mark.parametrize("more", ["", "--form m18 --whiten 0.1"])
def test_a_kept_teacher_teaches_as_one_at_hand_and_is_not_read_in_training(
    teacher, altclip, parallel, tmp_path, monkeypatch, more
):
    more = f"--model {altclip} --data {parallel} {more}"
    train(config(tmp_path / "at-hand", 4, teacher, more))
    cache = f"{more} --cache {tmp_path / 'cache'}"
    train(config(tmp_path / "kept", 2, teacher, cache))
    training = []
    real_read, real_trained = Teacher.read, Run.trained

    def read(folder):
        assert not training, "the teacher was read in training"
        return real_read(folder)

    def trained(run):
        training.clear()
        return real_trained(run)

    training.append(True)
    monkeypatch.setattr(Teacher, "read", read)
    monkeypatch.setattr(Run, "trained", trained)
    train(config(tmp_path / "kept", 4, teacher, cache))
    assert not training  # it came to the end, where the image tower is read
    assert_close(losses(tmp_path / "kept"), losses(tmp_path / "at-hand"), rtol=0, atol=1e-5)


def test_a_changed_teacher_or_another_head_is_asked_anew(teacher, tmp_path):
    kept = KeptTeacher(teacher, tmp_path / "cache", 1)
    kept.kept.keep(["a cat"], RunConfig())
    clip = CLIPModel.from_pretrained(teacher)
    clip.text_model.final_layer_norm.bias.data[0] += 1e-4
    clip.save_pretrained(tmp_path / "other")
    for other in (KeptTeacher(tmp_path / "other", tmp_path / "cache", 1), KeptTeacher(teacher, tmp_path, 2)):
        assert "a cat" not in other.kept.store
    assert "a cat" in KeptTeacher(teacher, tmp_path / "cache", 1).kept.store


def test_a_stream_with_a_cache_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        config(tmp_path, 1, tmp_path, "--reading.streaming True --cache x")
    message = "cache: with reading.streaming, whose texts are not known beforehand; allowed: without"
    assert message in " ".join(capsys.readouterr().err.replace("│", "").split())
