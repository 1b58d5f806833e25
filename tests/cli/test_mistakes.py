"""Every mistake is refused in one line that names its argument, before any model work."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.cli.conftest import Run

MISTAKES = [
    *[("size", ["--size", value]) for value in ("65", "0", "a", "100000", "64x65", "-64", "")],
    *[("steps", ["--steps", value]) for value in ("0", "-1", "1e9", "nan", "1001", "2.5", "")],
    *[("guidance_scale", ["--guidance-scale", value]) for value in ("nan", "inf", "-1", "51", "a")],
    *[("seed", ["--seed", value]) for value in ("word", str(2**64), "-2", "1.5")],
    *[("count", ["--count", value]) for value in ("0", "65", "a")],
    ("scheduler", ["--scheduler", "eular"]),
    ("negative_prompt", ["--negative-prompt", "n" * 2001]),
    ("image", ["--image", "none.png"]),
    ("image", ["--image", "http://localhost/a.png"]),
    ("strength", ["--strength", "0.5"]),
    ("from", ["--from", "none.png"]),
    ("languages", ["--languages", "cn", "--prompt-file", "prompts.txt"]),
    ("languages", ["--languages", "en"]),
    ("prompt_file", ["--prompt-file", "none.txt"]),
    ("output", ["-o", "none"]),
    ("output", ["-o", "none/a.png"]),
    ("output", ["-o", "a.jpg"]),
    ("output", ["-o", ""]),
]


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("name", "flags"), MISTAKES, ids=lambda value: value if isinstance(value, str) else " ".join(value)[:40]
)
def test_a_mistake_is_one_line_that_starts_with_its_argument_and_exit_code_2(
    run: Run, name: str, flags: list[str]
):
    words = [] if "--prompt-file" in flags else ["a", "cat"]
    code, out, err = run("generate", *words, *flags)
    assert (code, out) == (2, "")
    assert err.startswith(f"{name}: ")
    assert err.count("\n") == 1
    assert len(err) < 500


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("prompt", ["p" * 1_000_000, "\ud800", "a\0b"], ids=["1 MB", "lone surrogate", "NUL"])
def test_a_prompt_that_is_no_text_is_refused(run: Run, prompt: str):
    code, out, err = run("generate", prompt)
    assert (code, out) == (2, "")
    assert err.startswith("prompt: ") and err.count("\n") == 1 and len(err) < 300


@pytest.mark.usefixtures("no_model")
@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder that not even root can write to")
def test_a_folder_that_cannot_be_written_to_is_refused(run: Run):
    code, _, err = run("generate", "a cat", "-o", "/proc/self")
    assert code == 2
    assert err.startswith("output: '/proc/self' cannot be written to")


@pytest.mark.usefixtures("no_model")
def test_near_misses_are_suggested(run: Run):
    assert "did you mean 'euler'?" in run("generate", "a", "--scheduler", "eular")[2]
    assert "did you mean 'zh'?" in run("generate", "--languages", "cn", "--prompt-file", "p.txt")[2]


@pytest.mark.parametrize("fault", ["missing", "empty", "truncated", "another kind", "a file"])
def test_a_model_that_is_none_is_refused(run: Run, model_folder: Path, fault: str):
    if fault == "missing":
        model_folder = model_folder / "none"
    elif fault == "empty":
        model_folder = model_folder / "new"
        model_folder.mkdir()
    elif fault == "truncated":
        weights = model_folder / "unet" / "diffusion_pytorch_model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
    elif fault == "another kind":
        (model_folder / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    else:
        model_folder = model_folder / "README.md"
    code, out, err = run("generate", "a cat", "--model", str(model_folder))
    assert (code, out) == (2, "")
    assert err.startswith("model: ") and err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["generate", "--widht", "64"],
        ["frobnicate"],
        [],
        ["show"],
        ["embed", "--format", "xml"],
        ["generate", "--seed"],
    ],
    ids=" ".join,
)
def test_a_misspelt_command_line_is_one_line_too(run: Run, arguments: list[str]):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert "--help" in err


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("prompt", ["generate", "-"]),
        ("prompt_file", ["generate", "--prompt-file", "-"]),
        ("text", ["embed", "-"]),
        ("labels", ["classify", "a.png", "--labels", "-"]),
    ],
)
def test_stdin_that_is_not_utf_8_is_refused_in_one_line(tmp_path: Path, name: str, arguments: list[str]):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    done = subprocess.run(
        [sys.executable, "-m", "altdiffusion", *arguments],
        input="en: café\n".encode("latin-1"),
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONIOENCODING": "utf-8:strict"},
        cwd=tmp_path,
    )
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.startswith(f"{name}: ".encode()) and done.stderr.count(b"\n") == 1


def test_no_prompt_at_all_is_refused(run: Run):
    code, out, err = run("generate", stdin="")
    assert (code, out) == (2, "")
    assert err.startswith("prompt: nothing given")


def test_a_language_without_a_prompt_is_refused(run: Run, prompts: Path):
    prompts.write_text("en: a cat\n", encoding="utf-8")
    code, _, err = run("generate", "--languages", "en,th", "--prompt-file", str(prompts))
    assert code == 2
    assert err.endswith("has no line for th\n")
