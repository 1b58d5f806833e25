"""A3: senseless command lines and recipes end in one line and exit code 2, before any model is read."""

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from tests.cli.conftest import Run, no_model, run  # noqa: F401 (fixtures)
from tests.cli.test_mistakes import MISTAKES
from training.autoencoder import AutoencoderConfig
from training.config import parse
from training.contrast import ContrastConfig
from training.distill import DistillConfig
from training.text_to_image import TextToImageConfig

LONGEST = 500
#: What is to be named, and the line; tests/cli/test_mistakes.py has those of `generate`.
LINES: list[tuple[str, list[str]]] = [
    ("", ["embed", "--format", "xml"]),
    ("text", ["embed", "a" * 1_000_000]),
    ("text", ["embed", "\ud800"]),
    ("images", ["embed", "--images", "none.png"]),
    ("images", ["embed", "--images", "bad.png"]),
    ("images", ["embed", "--images", "http://127.0.0.1:9/a.png"]),
    ("output", ["embed", "a", "-o", "none/a.jsonl"]),
    ("shards", ["embed", "a", "--shards", "x"]),
    ("shards", ["embed", "--shards", "none.tar", "-o", "out", "--format", "npy"]),
    ("labels", ["classify", "a.png"]),
    ("labels", ["classify", "a.png", "--labels", "a", "a"]),
    ("labels", ["classify", "a.png", "--labels", ""]),
    ("images", ["classify", "bad.png", "--labels", "a"]),
    ("images", ["classify", "--labels", "a"]),
    ("k", ["classify", "a.png", "--labels", "a", "-k", "0"]),
    ("k", ["classify", "a.png", "--labels", "a", "-k", "nan"]),
    ("language", ["classify", "a.png", "--labels", "a", "--language", "cn"]),
    ("templates", ["classify", "a.png", "--labels", "a", "--templates", "b"]),
    ("weights", ["classify", "a.png", "--weights", "none.safetensors"]),
    ("weights", ["classify", "a.png", "--weights", "bad.png"]),
    ("picture", ["show", "none.png"]),
    ("picture", ["show", "bad.png"]),
    ("picture", ["show", "a.png"]),
    ("picture", ["show", "\0"]),
    ("folder", ["index", "none", "-o", "i"]),
    ("folder", ["index", "a.png", "-o", "i"]),
    ("url", ["index", ".", "-o", "i", "--url", "ftp://a"]),
    ("output", ["index", ".", "-o", "a.png"]),
    ("index", ["search", "none", "a"]),
    ("index", ["search", ".", "a"]),
    ("index", ["update", "none"]),
    ("data", ["evaluate", "retrieval", "--data", "none"]),
    ("data", ["evaluate", "retrieval", "--data", ".", "--languages", "cn"]),
    ("folder|target|output", ["convert", "a.png", "a.png"]),
    ("port", ["app", "--port", "99999999"]),
    ("batch", ["app", "--batch", "0"]),
    ("max_waiting", ["app", "--max-waiting", "-1"]),
    ("lora", ["generate", "a", "--lora", "none.safetensors"]),
    ("lora", ["generate", "a", "--lora", "bad.png"]),
    ("embedding", ["generate", "a", "--embedding", "none.bin"]),
    ("mix_share", ["generate", "a", "--mix", "b", "--mix-share", "nan"]),
    ("clip_skip", ["generate", "a", "--clip-skip", "-1"]),
    ("preset", ["generate", "a", "--preset", "quick"]),
    ("", ["generate", "a", "--runtime", "tpu"]),
    ("", ["generate", "--widht", "64"]),
    ("", ["frobnicate"]),
    ("", []),
    ("", ["generate", "a", "--seed"]),
]
STAGES = {
    "distill": DistillConfig,
    "contrast": ContrastConfig,
    "autoencoder": AutoencoderConfig,
    "text_to_image": TextToImageConfig,
}
REQUIRED = {"text_to_image": ("--text", "t", "--vae", "v"), "distill": ("--teacher", "t")}
BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
#: Recipes, by what is to be named.
RECIPES: list[tuple[str, str | bytes]] = [
    ("config", b"\xff\xfe\x00"),
    ("config", b"\x89PNG\r\n\x1a\n"),
    ("config", "a: [1"),
    ("config", "a: b: c"),
    ("config", "\ta: 1"),
    ("config", "- a\n- b"),
    ("config", "just words"),
    ("config", ""),
    ("config", "a: *b"),
    ("config", "a: !!python/object/apply:os.system ['touch canary']"),
    ("config", "? [1, 2]\n: 3"),
    ("config", "[" * 5000),
    ("config", "a: &a\n  b: *a"),
    ("config", BOMB),
    ("config", "a: 1\n---\nb: 2"),
    ("config", "x" * 3_000_000),
    ("config", "5: 3"),
    ("config", "~: 3"),
    ("learning_rate", "optim: {learning_rate: nan}"),
    ("learning_rate", "optim: {learning_rate: -1}"),
    ("learning_rate", "optim: {learning_rate: .inf}"),
    ("learning_rate", "optim: {learning_rate: fast}"),
    ("batch_size", "run: {batch_size: 1.5}"),
    ("batch_size", "run: {batch_size: 7, gradient_accumulation_steps: 2}"),
    ("batch_size", "run: {batch_size: 0}"),
    ("batch_size", "run: {batch_size: -8}"),
    ("batch_size", "run: {batch_size: ~}"),
    ("batch_size|2", "run: {batch_size: [1, 2]}"),
    ("batch_size", "run: {batch_size: {a: 1}}"),
    ("gradient_accumulation_steps", "run: {gradient_accumulation_steps: 0}"),
    ("max_train_steps", "run: {max_train_steps: -5}"),
    ("max_train_steps", "run: {max_train_steps: 1e400}"),
    ("workers", "run: {workers: -1}"),
    ("checkpoints_total_limit", "run: {checkpoints_total_limit: 1}"),
    ("checkpointing_steps", "run: {checkpointing_steps: 0}"),
    ("log_steps", "run: {log_steps: 0}"),
    ("ema_decay", "run: {ema_decay: 2}"),
    ("ema_decay", "run: {ema_decay: nan}"),
    ("warmup_steps", "optim: {warmup_steps: -1}"),
    ("max_grad_norm", "optim: {max_grad_norm: nan}"),
    ("weight_decay", "optim: {weight_decay: nan}"),
    ("beta1", "optim: {beta1: 1.5}"),
    ("beta2", "optim: {beta2: -1}"),
    ("schedule", "optim: {schedule: linear}"),
    ("report_to", "run: {report_to: paper}"),
    ("run", "run: 5"),
    ("wibble", "wibble: 1"),
    ("run.wibble", "run: {wibble: 1}"),
]


@pytest.fixture
def here(tmp_path: Path) -> Path:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "prompts.txt").write_text("en: a cat\n")
    return tmp_path


def fault(code: int, out: str, err: str, name: str) -> str:
    """What is wrong with how a command ended."""
    if (code, out) != (2, ""):
        return f"exit code {code}, said {out[:100]!r} and {err[:200]!r}"
    if err.count("\n") != 1 or len(err) > LONGEST or "Traceback" in err:
        return f"{len(err)} characters in {err.count(chr(10))} lines: {err[:300]!r}"
    return "" if re.match(rf"([\w.]+\.)?({name})\b", err) else f"does not begin with {name}: {err[:200]!r}"


@pytest.mark.usefixtures("no_model", "here")
def test_command_lines(run: Run, tally):  # noqa: F811
    counted = tally("A3 command lines and recipes")
    lines = LINES + [
        (name, ["generate", *([] if "--prompt-file" in flags else ["a"]), *flags]) for name, flags in MISTAKES
    ]
    for name, line in lines:
        try:
            wrong = fault(*run(*line, stdin=""), name)
        except (Exception, pytest.fail.Exception) as error:
            wrong = f"{type(error).__name__}: {error}"
        counted.add("wrong" if wrong else "refused", f"{' '.join(line)[:80]}: {wrong}")
    counted.check(80)


def test_recipes(here: Path, tally, capsys: pytest.CaptureFixture[str]):
    counted = tally("A3 command lines and recipes")
    for number, (name, recipe) in enumerate(RECIPES):
        file = here / "recipe.yaml"
        file.write_bytes(recipe if isinstance(recipe, bytes) else recipe.encode())
        stage = list(STAGES)[number % len(STAGES)]
        required = ["--output-dir", "x", *REQUIRED.get(stage, ())]
        for line in (["--config", str(file), *required], [*required, "--config", str(file)]):
            code, error = 0, ""
            try:
                parse(STAGES[stage], line)
            except SystemExit as stop:
                code = int(stop.code or 0)
            except Exception as exception:
                error = f"{type(exception).__name__}: {exception}"
            said = capsys.readouterr()
            wrong = error or fault(code, said.out, said.err, name)
            counted.add("wrong" if wrong else "refused", f"{stage} {recipe[:60]!r}: {wrong}")
    assert not (here / "canary").exists()
    for line in (["--config"], ["--config", str(here / "none.yaml")], ["--config", str(here)]):
        with pytest.raises(SystemExit):
            parse(DistillConfig, line)
        wrong = fault(2, "", capsys.readouterr().err, "config")
        counted.add("wrong" if wrong else "refused", f"{line}: {wrong}")
    counted.check(80)


def test_notes_of_pictures(run: Run, here: Path, tally):  # noqa: F811
    """A picture's own note is a configuration as well: anybody may have written it."""
    from PIL import PngImagePlugin

    counted = tally("A3 command lines and recipes")
    good = {"prompt": "a", "seed": 7}
    fields = [
        {"steps": -1},
        {"steps": "20"},
        {"guidance_scale": float("nan")},
        {"width": 7},
        {"scheduler": "x"},
    ]
    fields += [{"prompt": "\0"}, {"prompt": 5}, {"seed": 2**70}, {"language": "cn"}, {"mix_share": 5.0}]
    for more in fields:
        note = PngImagePlugin.PngInfo()
        note.add_itxt("altdiffusion", json.dumps(good | more))
        Image.new("RGB", (8, 8)).save(here / "note.png", pnginfo=note)
        code, out, err = run("generate", "--from", "note.png", "--model", "none", stdin="")
        wrong = fault(code, out, err, f"from|{'|'.join(more)}")
        counted.add("wrong" if wrong else "refused", f"{more}: {wrong}")
    counted.check(len(fields))
