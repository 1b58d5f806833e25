"""The command line from outside: results, manners, and every mistake refused before any model work."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from altdiffusion.cli import main
from altdiffusion.images import read_provenance, save_png
from altdiffusion.requests import Provenance
from tests.fakes import COVERED, SENTENCES

pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning")

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Runs one command in an empty folder: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, stdin: str | None = None) -> tuple[int, str, str]:
        if stdin is not None:
            monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        capfd.readouterr()
        code = main(arguments)
        out, err = capfd.readouterr()
        return code, out, err

    return run


@pytest.fixture
def tiny(shared_folder: Path) -> tuple[str, str, str, str]:
    return ("--model", str(shared_folder), "--steps", "2")


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any attempt to read a model is a failure of the test, not a refusal."""
    from altdiffusion import checkpoints

    def read(*arguments: object, **fields: object) -> None:
        pytest.fail("a model was read before the mistake was refused")

    monkeypatch.setattr(checkpoints, "resolve", read)


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
    ("name", "flags"), MISTAKES, ids=lambda value: " ".join(value)[:40] if value is not str else value
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


@pytest.mark.parametrize("command", [[], ["generate"], ["embed"], ["info"], ["show"]], ids=" ".join)
def test_every_command_has_help(run: Run, command: list[str]):
    code, out, err = run(*command, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(" ".join(["usage: altdiffusion", *command]))


def test_words_are_one_prompt_and_path_and_seed_are_printed(run: Run, tiny: tuple[str, ...], tmp_path: Path):
    code, out, err = run("generate", "a", "red", "lobster", "--seed", "7", *tiny)
    assert (code, out, err) == (0, "a-red-lobster-7.png\n", "seed 7\n")
    made = read_provenance(tmp_path / "a-red-lobster-7.png")
    assert (made.prompt, made.seed, made.steps) == ("a red lobster", 7, 2)


def test_nothing_is_overwritten(run: Run, tiny: tuple[str, ...], tmp_path: Path):
    (tmp_path / "cat.png").write_bytes(b"old")
    code, out, _ = run("generate", "cat", "-o", "cat.png", "--count", "2", *tiny)
    assert (code, out) == (0, "cat-2.png\ncat-3.png\n")
    assert (tmp_path / "cat.png").read_bytes() == b"old"


def test_json_is_one_document_on_stdout(run: Run, tiny: tuple[str, ...], tmp_path: Path):
    code, out, err = run(
        "generate", "กุ้งมังกร", "--count", "2", "--seed", "5", "-o", str(tmp_path), "--json", *tiny
    )
    assert (code, err) == (0, "")
    pictures = json.loads(out)["pictures"]
    assert [picture["seed"] for picture in pictures] == [5, 6]
    assert all(Path(picture["path"]).is_file() and picture["prompt"] == "กุ้งมังกร" for picture in pictures)


def test_minus_one_draws_a_seed_and_says_which(run: Run, tiny: tuple[str, ...]):
    code, out, err = run("generate", "cat", "--seed", "-1", *tiny)
    assert code == 0
    assert out == f"cat-{err.removeprefix('seed ').strip()}.png\n"


@pytest.mark.parametrize("words", [["-"], []], ids=["dash", "nothing"])
def test_a_prompt_may_come_from_a_pipe(run: Run, tiny: tuple[str, ...], tmp_path: Path, words: list[str]):
    assert run("generate", *words, "-o", "a.png", *tiny, stdin="عنكبوت\n")[0] == 0
    assert read_provenance(tmp_path / "a.png").prompt == "عنكبوت"


def test_no_prompt_at_all_is_refused(run: Run):
    code, out, err = run("generate", stdin="")
    assert (code, out) == (2, "")
    assert err.startswith("prompt: nothing given")


@pytest.mark.parametrize("tag", SENTENCES)
def test_a_picture_drawn_from_its_own_note_is_the_same_picture(
    run: Run, shared_folder: Path, tmp_path: Path, tag: str
):
    settings = [
        "--seed",
        "7",
        "--steps",
        "1",
        "--guidance-scale",
        "2.3",
        "--size",
        "64x56",
        "--scheduler",
        "euler-a",
    ]
    first = json.loads(
        run(
            "generate",
            SENTENCES[tag],
            *settings,
            "--negative-prompt",
            "blue",
            "--model",
            str(shared_folder),
            "--json",
        )[1]
    )["pictures"][0]
    again = json.loads(run("generate", "--from", first["path"], "--model", str(shared_folder), "--json")[1])[
        "pictures"
    ][0]
    assert again["path"] != first["path"]
    assert {**again, "path": ""} == {**first, "path": ""}
    assert (tmp_path / again["path"]).read_bytes() == (tmp_path / first["path"]).read_bytes()


def test_flags_win_over_the_note(run: Run, tiny: tuple[str, ...], tmp_path: Path):
    run("generate", "cat", "--seed", "7", "-o", "a.png", *tiny)
    code, _, _ = run(
        "generate", "dog", "--from", "a.png", "--seed", "8", "-o", "b.png", "--size", "32", *tiny
    )
    made = read_provenance(tmp_path / "b.png")
    assert code == 0
    assert (made.prompt, made.seed, made.width, made.steps) == ("dog", 8, 32, 2)


def test_a_note_without_its_model_asks_for_it_and_other_weights_are_told(
    run: Run, tiny: tuple[str, ...], tmp_path: Path
):
    from tests.fakes import tiny_pipeline_folder

    run("generate", "cat", "--seed", "7", "-o", "a.png", *tiny)
    code, _, err = run("generate", "--from", "a.png")
    assert code == 2
    assert err.startswith("from: made with the model 'tiny'; give its folder with --model")
    other = tiny_pipeline_folder(tmp_path / "other", seed=1)
    code, _, err = run("generate", "--from", "a.png", "--model", str(other))
    assert code == 0
    assert "warning: from: the picture was made by a model with other weights" in err


def test_image_to_image_repeats_with_its_picture_and_not_without(
    run: Run, tiny: tuple[str, ...], tmp_path: Path
):
    Image.new("RGB", (80, 60), "red").save(tmp_path / "red.png")
    Image.new("RGB", (80, 60), "blue").save(tmp_path / "blue.png")
    assert (
        run(
            "generate", "cat", "--image", "red.png", "--strength", "0.5", "--seed", "7", "-o", "a.png", *tiny
        )[0]
        == 0
    )
    code, _, err = run("generate", "--from", "a.png", *tiny)
    assert code == 2
    assert err.startswith("from: 'a.png' was drawn from another picture; give that with --image")
    assert run("generate", "--from", "a.png", "--image", "red.png", "-o", "b.png", *tiny) == (
        0,
        "b.png\n",
        "seed 7\n",
    )
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert "is not what that picture" in run("generate", "--from", "a.png", "--image", "blue.png", *tiny)[2]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    file = tmp_path / "prompts.txt"
    file.write_text("".join(f"{tag}: {text}\n" for tag, text in SENTENCES.items()), encoding="utf-8")
    return file


def test_languages_make_a_labelled_grid_of_one_seed(
    run: Run, tiny: tuple[str, ...], prompts: Path, tmp_path: Path
):
    code, out, _ = run(
        "generate", "--languages", "en,zh,ar", "--prompt-file", str(prompts), "--seed", "7", *tiny
    )
    assert code == 0
    *singles, grid = out.splitlines()
    assert grid == "grid-7.png"
    assert [name.split("-")[0] for name in singles] == ["en", "zh", "ar"]
    for name in singles:
        made = read_provenance(tmp_path / name)
        assert (made.seed, made.prompt) == (7, SENTENCES[made.language or ""])
    with Image.open(tmp_path / grid) as image:
        assert image.width > 2 * 64


def test_a_drawn_seed_is_one_for_all_languages(run: Run, tiny: tuple[str, ...], prompts: Path):
    code, out, _ = run("generate", "--prompt-file", "-", "--json", *tiny, stdin="en: a cat\nzh-CN: 猫\n")
    assert code == 0
    document = json.loads(out)
    assert len({picture["seed"] for picture in document["pictures"]}) == 1
    assert Path(document["grid"]).is_file()


def test_a_language_without_a_prompt_is_refused(run: Run, prompts: Path):
    prompts.write_text("en: a cat\n", encoding="utf-8")
    code, _, err = run("generate", "--languages", "en,th", "--prompt-file", str(prompts))
    assert code == 2
    assert err.endswith("has no line for th\n")


def test_a_long_prompt_says_how_many_tokens_and_which_words_were_dropped(run: Run, tiny: tuple[str, ...]):
    code, _, err = run(
        "generate", "a red lobster and a cat " * 20 + "zebra", "-o", "a.png", "--count", "2", *tiny
    )
    assert code == 0
    warned = [line for line in err.splitlines() if line.startswith("warning: ")]
    assert len(warned) == 1
    assert "tokens" in warned[0] and "zebra" in warned[0] and len(warned[0]) < 500


def test_show_tells_how_a_picture_was_made(run: Run, tiny: tuple[str, ...]):
    run("generate", SENTENCES["hi"], "--seed", "7", "-o", "a.png", *tiny)
    code, out, _ = run("show", "a.png")
    assert code == 0
    assert f"prompt: {SENTENCES['hi']}\n" in out and "seed: 7\n" in out
    assert json.loads(run("show", "a.png", "--json")[1])["steps"] == 2


def test_show_refuses_what_says_nothing(run: Run, tmp_path: Path):
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    assert run("show", "plain.png")[0::2] == (2, "picture: 'plain.png' does not say how it was made\n")


def test_info_lists_what_a_program_needs(run: Run, shared_folder: Path):
    code, out, err = run("info", str(shared_folder), "--json")
    assert (code, err) == (0, "")
    facts = json.loads(out)
    assert facts["covered"] == COVERED
    assert facts["languages"] == list(SENTENCES)
    assert facts["format"] == "diffusers pipeline"
    assert set(facts["parameters"]) == {"unet", "vae", "text_encoder", "altclip"}
    assert facts["weight_bytes"] > 1000
    assert facts["attention"]["chosen"] in facts["attention"]["available"]
    assert set(facts["versions"]) == {"altdiffusion", "torch", "diffusers", "transformers"}


def test_info_for_people_names_the_covered_emoji(run: Run, shared_folder: Path):
    out = run("info", str(shared_folder))[1]
    assert f"covered: {len(COVERED)}: {' '.join(COVERED)}\n" in out


def test_embed_gives_a_unit_vector_for_each_text_and_picture(run: Run, shared_folder: Path, tmp_path: Path):
    Image.new("RGB", (80, 60), "red").save(tmp_path / "red.png")
    code, out, _ = run("embed", "龙虾", "a lobster", "--images", "red.png", "--model", str(shared_folder))
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [row.get("text") or row.get("image") for row in rows] == ["龙虾", "a lobster", "red.png"]
    assert np.linalg.norm([row["embedding"] for row in rows], axis=1) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("form", ["npy", "parquet"])
def test_embed_reads_lines_and_writes_files_with_the_same_vectors(
    run: Run, shared_folder: Path, tmp_path: Path, form: str
):
    model = ("--model", str(shared_folder))
    lines = "\n".join(SENTENCES.values())
    told = [json.loads(line)["embedding"] for line in run("embed", *model, stdin=lines)[1].splitlines()]
    code, out, _ = run("embed", "-", "--format", form, "-o", f"v.{form}", *model, stdin=lines)
    assert (code, out) == (0, "")
    if form == "npy":
        written = np.load(tmp_path / "v.npy")
    else:
        parquet = pytest.importorskip("pyarrow.parquet")
        table = parquet.read_table(tmp_path / "v.parquet")
        assert table["text"].to_pylist() == list(SENTENCES.values())
        written = np.array(table["embedding"].to_pylist())
    assert written == pytest.approx(np.array(told), abs=1e-7)


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("text", ["t" * 2001]),
        ("text", ["\ud800"]),
        ("images", ["--images", "none.png"]),
        ("images", ["--images", "http://localhost/a.png"]),
        ("output", ["cat", "-o", "none/v.npy"]),
        ("output", ["cat", "-o", "taken.npy"]),
        ("text", []),
    ],
    ids=lambda value: "-".join(value)[:30] if isinstance(value, list) else value,
)
def test_embed_refuses_mistakes_before_the_model(run: Run, tmp_path: Path, name: str, arguments: list[str]):
    (tmp_path / "taken.npy").touch()
    code, out, err = run("embed", *arguments, stdin="")
    assert (code, out) == (2, "")
    assert err.startswith(f"{name}: ") and err.count("\n") == 1


def test_control_c_is_130_and_quiet(run: Run, tiny: tuple[str, ...], monkeypatch: pytest.MonkeyPatch):
    from altdiffusion import generation

    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(generation, "generate", interrupted)
    assert run("generate", "cat", *tiny) == (130, "", "")


def test_our_own_mistakes_show_where_they_are(
    run: Run, tiny: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
):
    from altdiffusion import generation

    def broken(*arguments: object) -> None:
        raise ValueError("too many values to unpack")

    monkeypatch.setattr(generation, "generate", broken)
    with pytest.raises(ValueError, match="too many values"):
        run("generate", "cat", *tiny)


def test_the_bar_is_drawn_on_a_terminal_only(
    run: Run, tiny: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
):
    assert run("generate", "cat", "--seed", "7", *tiny)[2] == "seed 7\n"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    code, out, err = run("generate", "cat", "--seed", "7", *tiny)
    assert (code, out) == (0, "cat-7-2.png\n")
    assert "2/2" in err or "step" in err


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path: Path):
    save_png(Image.new("RGB", (8, 8)), tmp_path / "a.png", Provenance("a cat"))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "altdiffusion", "show", "a.png"],
        stdout=write,
        stderr=subprocess.PIPE,
        env=environment,
        cwd=tmp_path,
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")
