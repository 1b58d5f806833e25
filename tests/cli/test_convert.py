"""`altdiffusion convert`: a published checkpoint in; stock classes, a single file or the way back out."""

import json
from pathlib import Path

import pytest

from altdiffusion.layouts import detect, read
from tests import published
from tests.cli.conftest import Run


def test_convert_says_what_it_found_and_why_and_what_it_compared(run: Run, tmp_path: Path):
    file = published.write("C", tmp_path / "source", "m18")
    code, out, err = run("convert", str(file), "model")
    assert (code, out) == (0, "model\n")
    found, work, compared = err.splitlines()
    assert found.startswith(
        "found a single file in the original Stable Diffusion layout (C, form m18): it holds"
    )
    assert "transformation_pre" in found
    assert work.startswith("writing and comparing ")
    count = sum(len(part.tensors) for part in read(detect(tmp_path / "model")).parts.values())
    left = len(read(detect(tmp_path / "model")).left)
    assert compared == f"read again: {count + left} tensors and an encode are the source's, bit for bit"


def test_what_was_converted_draws_the_same_picture(run: Run, tmp_path: Path):
    folder = published.write("B", tmp_path / "source", "m9")
    assert run("convert", str(folder), "model")[0] == 0
    draw = ("generate", "a red lobster", "--seed", "7", "--steps", "2", "--size", "16", "-o")
    assert run(*draw, "a.png", "--model", str(folder))[0] == 0
    assert run(*draw, "b.png", "--model", "model")[0] == 0
    from PIL import Image

    first, second = (Image.open(tmp_path / name).tobytes() for name in ("a.png", "b.png"))
    assert first == second


def test_a_single_file_goes_into_a_folder_or_takes_its_name(run: Run, tmp_path: Path):
    folder = published.write("B", tmp_path / "source", "m9")
    code, out, _ = run("convert", str(folder), "one", "--single-file", "--json")
    facts = json.loads(out)
    assert code == 0
    assert (facts["format"], facts["form"], facts["path"]) == ("B", "m9", str(Path("one/model.safetensors")))
    assert run("convert", str(folder), "two/alt.safetensors", "--single-file")[1] == "two/alt.safetensors\n"
    for file in ("one/model.safetensors", "two/alt.safetensors"):
        assert detect(tmp_path / file).form == "m9"
        assert (tmp_path / file).with_name("tokenizer").is_dir()


def test_a_file_without_a_tokenizer_takes_the_one_it_is_given(run: Run, tmp_path: Path):
    file = published.write("C", tmp_path / "source", "m9", tokenizer=False)
    code, out, err = run("convert", str(file), "model")
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].startswith("tokenizer: the source has none")
    assert not (tmp_path / "model").exists()
    published.write_tokenizer(tmp_path / "words", 512)
    assert run("convert", str(file), "model", "--tokenizer", "words")[0] == 0
    assert detect(tmp_path / "model").format == "stock pipeline"


def test_raw_and_averaged_weights_of_a_training_checkpoint_differ(run: Run, tmp_path: Path):
    file = published.write("D", tmp_path / "source", "m9", ema=True)
    assert run("convert", str(file), "averaged")[0] == 0
    assert run("convert", str(file), "raw", "--raw")[0] == 0
    raw, averaged = (read(detect(tmp_path / name)).parts["unet"].tensors for name in ("raw", "averaged"))
    assert (raw["conv_in.weight"] * 0.5).equal(averaged["conv_in.weight"])


def test_back_to_a_published_layout(run: Run, tmp_path: Path):
    folder = published.write("A", tmp_path / "source", "m18")
    assert run("convert", str(folder), "model")[0] == 0
    assert run("convert", "model", "back", "--to", "A")[1] == "back\n"
    assert detect(tmp_path / "back").format == "A"
    code, _, err = run("convert", "model", "other", "--to", "B")
    assert code == 2 and err.splitlines()[-1].startswith("to: the source holds no unet")


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("target", ["taken"]),
        ("target", ["taken/mine.safetensors", "--single-file"]),
        ("to", ["new", "--single-file", "--to", "A"]),
        ("tokenizer", ["new", "--tokenizer", "none"]),
    ],
    ids=["a folder that is not empty", "a file that exists", "a folder as a single file", "no tokenizer"],
)
def test_convert_refuses_mistakes_before_the_model(run: Run, tmp_path: Path, name: str, arguments: list[str]):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.safetensors").write_text("mine")
    code, out, err = run("convert", "source", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"{name}: ") and err.count("\n") == 1
    assert (tmp_path / "taken" / "mine.safetensors").read_text() == "mine"


@pytest.mark.parametrize(
    "content", [b"", b"PK\3\4 no checkpoint", b"\0" * 64], ids=["empty", "torn", "zeros"]
)
def test_convert_refuses_what_is_no_checkpoint(run: Run, tmp_path: Path, content: bytes):
    (tmp_path / "model.ckpt").write_bytes(content)
    code, out, err = run("convert", "model.ckpt", "model")
    assert (code, out) == (2, "")
    assert err.startswith("model: 'model.ckpt' ") and err.count("\n") == 1
    assert not (tmp_path / "model").exists()
