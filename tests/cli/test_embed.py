"""`altdiffusion embed`: vectors of texts and pictures."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from altdiffusion import encoding
from tests.cli.conftest import Run
from tests.fakes import SENTENCES


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


def test_a_mistake_on_a_late_line_leaves_no_file_in_the_way(run: Run, shared_folder: Path, tmp_path: Path):
    command = ("embed", "-", "-o", "v.jsonl", "--model", str(shared_folder))
    code, _, err = run(*command, stdin="a cat\n" * 64 + "\0\n")
    assert (code, err.count("\n"), list(tmp_path.glob("*.jsonl"))) == (2, 1, [])
    assert run(*command, stdin="a cat\n" * 65)[0] == 0
    assert len((tmp_path / "v.jsonl").read_text().splitlines()) == 65


def test_a_file_that_another_made_meanwhile_stays(
    run: Run, shared_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(encoding, "write", lambda *given: (tmp_path / "v.jsonl").write_text("mine"))
    code, _, err = run("embed", "a cat", "-o", "v.jsonl", "--model", str(shared_folder))
    assert (code, err) == (2, "output: 'v.jsonl' exists; allowed a new file\n")
    assert (tmp_path / "v.jsonl").read_text() == "mine"


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
