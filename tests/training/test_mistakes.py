"""What a user can get wrong, seen from outside: one line that begins with the argument, exit code 2."""

import re
from pathlib import Path

import pytest
from datasets import config as datasets_config
from transformers import AutoTokenizer

from tests.training import data_files, toy
from tests.training.conftest import flags, tiny_clip
from training import adapter, contrast, distill, text_to_image
from training.config import parse
from training.mistakes import sentence
from training.stage import run_stage

DRAW = "--text nowhere --vae nowhere --reading.resolution 32"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets_config, "HF_DATASETS_CACHE", tmp_path / "cache")


def said(capsys, stage, config_class, argv: list[str]) -> str:
    """The last line that a stage leaves when it is run with these flags."""
    with pytest.raises(SystemExit) as stopped:
        run_stage(parse(config_class, argv), stage.train)
    assert stopped.value.code == 2
    return capsys.readouterr().err.rstrip("\n").split("\n")[-1]


@pytest.mark.parametrize(
    "more, message",
    [
        (
            "--trainable attention",
            "trainable: 'attention'; allowed: kv, cross_attention, unet, lora, textual_inversion",
        ),
        ("--reading.resolution 100", "resolution: 100 is no multiple of 8; allowed: 8, 16, …"),
        ("--trainible kv", "trainible: no such option; did you mean --trainable?"),
        ("--run.batch-size many", "run.batch_size: 'many'; allowed: a whole number"),
        ("--optim.learning-rate fast", "optim.learning_rate: 'fast'; allowed: a number"),
        ("--run.report-to paper", "run.report_to: 'paper'; allowed: none, tensorboard, trackio, wandb"),
        ("--wibble", "wibble: no such option; --help lists all"),
        ("--run.seed", "run.seed: its value is missing"),
    ],
)
def test_a_flag_that_makes_no_sense(more, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        parse(text_to_image.TextToImageConfig, ["--output-dir", "x", *DRAW.split(), *more.split()])
    assert stopped.value.code == 2 and capsys.readouterr().err == message + "\n"


REFUSED = {
    adapter.AdapterConfig: (
        ("--languages cn", "languages: 'cn' is not known; did you mean 'zh'? Known: en, zh"),
        ("--judged-captions 0", "judged_captions: 0; allowed: 1 and up"),
        ("--fitted-captions -1", "fitted_captions: -1; allowed: 0 and up"),
        ("--caption-dropout 1.5", "caption_dropout: 1.5; allowed: 0 to 1"),
    ),
    contrast.ContrastConfig: (
        ("--languages en xyzzy", "languages: 'xyzzy' is not known; Known: en, zh"),
        ("--counts 1 5", "counts: 1 5; allowed: numbers from 1 to 4"),
    ),
    distill.DistillConfig: (
        ("--languages pt-BR", "languages: 'pt-BR'; allowed: 'pt'"),
        ("--counts 0", "counts: 0; allowed: numbers from 1 to 4"),
        ("--counts", "counts: none; allowed: numbers from 1 to 4"),
    ),
    text_to_image.TextToImageConfig: (
        ("--languages cn", "languages: 'cn' is not known; did you mean 'zh'? Known: en, zh"),
        ("--variants 0", "variants: 0; allowed: 1 and up"),
        ("--run.seed -1", "seed: -1; allowed: 0 and up"),
    ),
}
NEEDED = {
    adapter.AdapterConfig: "--text x --stable-diffusion x",
    contrast.ContrastConfig: "",
    distill.DistillConfig: "--teacher x",
    text_to_image.TextToImageConfig: DRAW,
}


@pytest.mark.parametrize(
    "config_class, more, message", [(cls, *case) for cls, cases in REFUSED.items() for case in cases]
)
def test_what_no_emoji_or_run_has_is_refused_before_a_model_is_read(config_class, more, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        parse(config_class, ["--output-dir", "x", *NEEDED[config_class].split(), *more.split()])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.count("\n") == 1 and message in error


@pytest.mark.parametrize("config_class", [contrast.ContrastConfig, distill.DistillConfig])
def test_data_may_be_in_any_language(config_class):
    more = f"{NEEDED[config_class]} --data x --languages el --model x"
    assert parse(config_class, ["--output-dir", "x", *more.split()]).languages == ("el",)


def test_a_missing_flag_and_a_long_value_stay_one_line(capsys):
    with pytest.raises(SystemExit):
        parse(text_to_image.TextToImageConfig, ["--output-dir", "a-very/long---path " * 30])
    assert capsys.readouterr().err == "text: is required\n"
    with pytest.raises(SystemExit):
        parse(toy.ToyConfig, ["--output-dir", "x", "--run.report-to", "y" * 500])
    error = capsys.readouterr().err
    assert re.fullmatch(r"run\.report_to: …y{58}'; allowed: none, tensorboard, trackio, wandb\n", error)


def test_boxes_of_hyphens_are_read_as_well():
    box = (
        "Value error\n-----\nError parsing reading: resolution: 100\n-----\nFor full helptext, see x --help\n"
    )
    assert sentence(box) == sentence(box.replace("-----", "─────")) == "resolution: 100"


@pytest.fixture
def folder(tmp_path) -> Path:
    return data_files.image_folder(tmp_path / "pictures", 10)


def test_data_that_cannot_be_used_is_refused_before_a_model_is_read(tmp_path, folder, capsys):
    empty, lines = tmp_path / "empty", tmp_path / "lines"
    for place, text in ((empty, ""), (lines, "\n")):
        place.mkdir()
        (place / "metadata.jsonl").write_text(text)
    cases = {
        "caption_column: no 'heading'; allowed: file_name, captions": (
            f"--data {folder} --reading.caption-column heading"
        ),
        f"data: {empty}/metadata.jsonl is empty"[-60:]: f"--data {empty}",
        "image_column: no 'img'; allowed: file_name, captions": f"--data {folder} --reading.image-column img",
        "languages: none of the 10 samples has a text in ko": f"--data {folder} --languages ko",
        "data: no file or folder": f"--data {tmp_path / 'nothing'}",
    }
    for message, more in cases.items():
        argv = flags(tmp_path / "run", 1, f"{DRAW} {more}")
        error = said(capsys, text_to_image, text_to_image.TextToImageConfig, argv)
        assert message in error and re.match(r"[a-z_.]+: ", error) and len(error) < 300, error
    argv = flags(tmp_path / "run", 1, f"{DRAW} --data {lines}")
    error = said(capsys, text_to_image, text_to_image.TextToImageConfig, argv)
    assert re.match(r"[a-z_.]+: ", error), error


def test_too_many_unreadable_pictures_end_the_run(tmp_path, folder, drawing, capsys):
    for number in (2, 5):
        (folder / f"p{number:03d}.png").write_bytes(b"broken")
    places = f"--text {drawing / 'altclip'} --vae {drawing / 'vae'} --unet {drawing / 'unet'}"
    own = f"--data {folder} --reading.resolution 32 --reading.max-bad-share 0.15"
    argv = flags(tmp_path / "run", 1, f"{places} {own}")
    error = said(capsys, text_to_image, text_to_image.TextToImageConfig, argv)
    assert error.startswith(
        "data: 2 of 10 samples cannot be used, more than the share of 0.15 that max_bad_share"
    )
    assert "p002.png" in error and "p005.png" in error


def test_a_student_does_not_repeat_a_teacher_of_another_width(tmp_path, teacher, altclip, capsys):
    wide = tiny_clip(len(AutoTokenizer.from_pretrained(teacher)), width=48)
    wide.save_pretrained(tmp_path / "wide")
    argv = flags(tmp_path / "run", 1, f"--teacher {tmp_path / 'wide'} --model {altclip}")
    error = said(capsys, distill, distill.DistillConfig, argv)
    assert re.fullmatch(r"model: '.*' repeats a teacher of width 32, '.*' has 48; allowed: the same", error)
