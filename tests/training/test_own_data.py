"""The stages on data of one's own: they train, resume bit for bit, and share it out over processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import config, load_dataset
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch.testing import assert_close
from transformers import AltCLIPModel

from tests.training import data_files
from tests.training.conftest import flags
from training import distill, text_to_image
from training.config import parse, save


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    return data_files.image_folder(tmp_path_factory.mktemp("data") / "pictures", 7, (40, 32))


def drawing_config(folder: Path, steps: int, models: tuple[Path, Path], source: Path, more: str = ""):
    altclip, drawing = models
    places = f"--text {altclip} --vae {drawing / 'vae'} --unet {drawing / 'unet'} --trainable kv"
    own = f"--data {source} --reading.resolution 32 --reading.buckets 32,32;24,40 {more}"
    return parse(text_to_image.TextToImageConfig, flags(folder, steps, f"{places} {own}"))


def weights(folder: Path) -> dict:
    return UNet2DConditionModel.from_pretrained(folder / "model/unet").state_dict()


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("form", ["folder", "stream"])
def test_drawing_from_ones_own_pictures_resumes_bit_for_bit(tmp_path, altclip, drawing, pictures, form):
    source, more = pictures, "--run.gradient-accumulation-steps 2"
    if form == "stream":
        source = data_files.tar_shards(tmp_path / "tars")
        more += " --reading.streaming True --reading.shuffle-buffer 4"
    models = (altclip, drawing)
    text_to_image.train(drawing_config(tmp_path / "whole", 3, models, source, more))
    for steps in (1, 3):
        text_to_image.train(drawing_config(tmp_path / "cut", steps, models, source, more))
    before, after, resumed = (
        UNet2DConditionModel.from_pretrained(drawing / "unet").state_dict(),
        weights(tmp_path / "whole"),
        weights(tmp_path / "cut"),
    )
    assert losses(tmp_path / "whole") == losses(tmp_path / "cut")
    assert all(after[name].equal(resumed[name]) for name in after)
    moved = {name for name in after if not after[name].equal(before[name])}
    assert moved and all("attn2.to_k" in name or "attn2.to_v" in name for name in moved)


def test_two_processes_draw_from_ones_own_pictures_as_one(tmp_path, altclip, drawing, pictures):
    config = drawing_config(tmp_path / "one", 2, (altclip, drawing), pictures)
    text_to_image.train(config)
    save(drawing_config(tmp_path / "two", 2, (altclip, drawing), pictures), tmp_path / "two.yaml")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    stage = ["-m", "training.text_to_image", "--config", str(tmp_path / "two.yaml")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launch, *stage], capture_output=True, text=True, env=environment, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(list((tmp_path / "two/latents").glob("*/*-of-2"))) == 2
    assert done.stderr.count("7 samples, 0 skipped") == 1
    for name, value in weights(tmp_path / "one").items():
        assert_close(weights(tmp_path / "two")[name], value, rtol=0, atol=1e-5, msg=name)


def test_what_is_wrong_with_pictures_is_said_before_a_model_is_read(tmp_path, pictures):
    nowhere = (tmp_path / "no-altclip", tmp_path / "no-pipeline")
    for more, message in (
        ("--reading.image-column img", "^image_column: no 'img'; allowed: file_name, captions$"),
        ("--languages ja", "^languages: none of the 7 samples has a text in ja$"),
        ("--reading.split test --data ./none", r"^data: no file or folder \./none$"),
    ):
        with pytest.raises(ValueError, match=message):
            text_to_image.train(drawing_config(tmp_path / "out", 1, nowhere, pictures, more))


def test_an_instance_prompt_names_ones_own_pictures(tmp_path, altclip, drawing, pictures):
    config = drawing_config(tmp_path / "out", 1, (altclip, drawing), pictures)
    reading = text_to_image.open_pictures(config.data, config.reading)
    vae = AutoencoderKL.from_pretrained(drawing / "vae")
    dataset = text_to_image.image_captions(
        reading, config.run, vae, None, tmp_path / "latents", 0.5, "a zorp"
    )
    assert {dataset[n][1] for n in range(20)} == {"", "a zorp"}


def parallel(folder: Path) -> Path:
    path = folder / "parallel.tsv"
    folder.mkdir(parents=True, exist_ok=True)
    rows = [f"a red cat {n}\teine rote Katze {n}\t{'красный кот' if n % 2 else ''}" for n in range(8)]
    path.write_text("\n".join(["en\tde\tru", *rows]) + "\n", encoding="utf-8")
    return path


def distill_config(folder: Path, steps: int, teacher: Path, more: str):
    return parse(distill.DistillConfig, flags(folder, steps, f"--teacher {teacher} {more}"))


@pytest.mark.parametrize("form", ["tsv", "stream"])
def test_teacher_learning_on_ones_own_text_resumes_bit_for_bit(tmp_path, altclip, teacher, form):
    more = f"--model {altclip} --data {parallel(tmp_path)} --reading.temperature 2"
    if form == "stream":
        path = tmp_path / "parquet/a.parquet"
        path.parent.mkdir()
        load_dataset("csv", data_files=str(parallel(tmp_path)), sep="\t", split="train").to_parquet(path)
        more = f"--model {altclip} --data {path.parent} --reading.streaming True"
    distill.train(distill_config(tmp_path / "whole", 3, teacher, more))
    for steps in (1, 3):
        distill.train(distill_config(tmp_path / "cut", steps, teacher, more))
    whole, cut = (
        AltCLIPModel.from_pretrained(tmp_path / name / "model").state_dict() for name in ("whole", "cut")
    )
    assert losses(tmp_path / "whole") == losses(tmp_path / "cut")
    assert all(whole[name].equal(cut[name]) for name in whole)
    report = json.loads((tmp_path / "whole/report.json").read_text())
    if form == "tsv":
        assert report["texts"] == {"de": 8, "en": 8, "ru": 4} and report["skipped"] == 0


def test_teacher_learning_takes_the_languages_that_it_is_told_and_no_more(tmp_path, altclip, teacher):
    more = f"--model {altclip} --data {parallel(tmp_path)} --languages ru"
    distill.train(distill_config(tmp_path / "out", 1, teacher, more))
    assert json.loads((tmp_path / "out/report.json").read_text())["texts"] == {"ru": 4}
    with pytest.raises(ValueError, match=r"^languages: none of the 8 samples has a text in ja$"):
        distill.train(distill_config(tmp_path / "no", 1, teacher, f"{more} --languages ja"))


def test_names_in_lists_are_the_emojis_alone(tmp_path):
    with pytest.raises(ValueError, match=r"^own_words: True with data, .*; allowed: False$"):
        distill.DistillConfig(tmp_path, tmp_path, tmp_path, data="x", ordered=True, own_words=True)


def test_a_new_student_cannot_read_what_its_tokenizer_has_not_learnt(tmp_path):
    with pytest.raises(
        ValueError, match=r"^data: .*parallel\.tsv with a new student, .*; allowed: with model"
    ):
        distill.DistillConfig(tmp_path, tmp_path, data=str(parallel(tmp_path)))
