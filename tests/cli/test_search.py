"""`altdiffusion index`, `update` and `search`."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from altdiffusion.images import open_image
from tests.cli.conftest import Run


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    (folder / "sub").mkdir(parents=True)
    for n in range(6):
        noise = np.random.default_rng(n).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((64, 48)).save(folder / ("sub" if n % 2 else ".") / f"{n}.png")
    shutil.copy(folder / "0.png", folder / "copy.png")
    (folder / "notes.txt").write_text("hello")
    return folder


def test_a_folder_is_indexed_searched_changed_and_searched_again(
    run: Run, shared_folder: Path, pictures: Path, tmp_path: Path
):
    code, out, err = run("index", "pictures", "-o", "index", "--model", str(shared_folder))
    assert (code, out) == (0, "7 pictures in the index: 7 added, 1 duplicates\n")
    assert err == "left out, not a picture (1): notes.txt\n"

    code, out, _ = run("search", "index", "红色的", "龙虾", "-k", "3", "--sheet", "sheet.png")
    assert code == 0
    lines = out.splitlines()
    assert len(lines) == 3
    assert all(Path(line.split("  ")[1]).is_file() for line in lines)
    assert open_image(tmp_path / "sheet.png").width > 2 * 192

    code, out, _ = run("search", "index", "--image", "pictures/0.png", "--json", "-k", "50", "--path", "sub")
    rows = [json.loads(line) for line in out.splitlines()]
    assert {Path(row["path"]).name for row in rows} == {"1.png", "3.png", "5.png"}
    assert rows[0]["state"] == "as indexed"

    (pictures / "1.png").unlink(missing_ok=True)
    (pictures / "sub/1.png").unlink()
    raw = os.fsdecode(b"na\xe9.png")
    (pictures / "0.png").rename(pictures / raw)
    code, out, _ = run("search", "index", "a cat", "--alike", "1", "-k", "50")
    assert "sub/1.png  (missing)" in out
    code, out, _ = run("update", "index", "--json")
    told = json.loads(out)
    assert (told["pictures"], told["renamed"], told["deleted"], told["unchanged"]) == (6, 1, 1, 5)
    code, out, _ = run("search", "index", "--image", "pictures/copy.png", "--json", "-k", "1")
    hit = json.loads(out)
    assert "na\ufffd.png" in hit["path"] + "".join(hit["alike"])


def test_nothing_found_is_said_and_is_no_mistake(
    run: Run, shared_folder: Path, pictures: Path, tmp_path: Path
):
    run("index", "pictures", "-o", "index", "--model", str(shared_folder))
    code, out, err = run("search", "index", "x", "--largest", "1", "--sheet", "sheet.png")
    assert (code, out, err) == (0, "", "nothing found\n")
    assert open_image(tmp_path / "sheet.png").size


def test_an_unfinished_index_can_be_searched_and_says_so(
    run: Run, shared_folder: Path, pictures: Path, tmp_path: Path
):
    run("index", "pictures", "-o", "index", "--model", str(shared_folder))
    file = tmp_path / "index/index.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"complete": False}))
    (tmp_path / "index/vectors.json").unlink()
    code, out, err = run("search", "index", "x", "-k", "1")
    assert (code, len(out.splitlines())) == (0, 1)
    assert err == "warning: index: 'index' is unfinished; `altdiffusion update` goes on with it\n"
    assert run("index", "pictures", "-o", "index")[0] == 0
    assert run("search", "index", "x", "-k", "1")[2] == ""


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("folder", ["index", "none", "-o", "index"]),
        ("folder", ["index", "notes.txt", "-o", "index"]),
        ("output", ["index", "pictures", "-o", "pictures"]),
        ("output", ["index", "pictures", "-o", ""]),
        ("url", ["index", "pictures", "-o", "index", "--url", "localhost"]),
        ("index", ["search", "none", "x"]),
        ("index", ["search", "", "x"]),
        ("index", ["update", "pictures"]),
        ("text", ["search", "pictures"]),
        ("text", ["search", "pictures", "t" * 2001]),
        ("k", ["search", "pictures", "x", "-k", "0"]),
        ("k", ["search", "pictures", "x", "-k", "many"]),
        ("weight", ["search", "pictures", "x", "--weight", "2"]),
        ("weight", ["search", "pictures", "x", "--weight", "half"]),
        ("alike", ["search", "pictures", "x", "--alike", "nan"]),
        ("image", ["search", "pictures", "--image", "none.png"]),
        ("since", ["search", "pictures", "x", "--since", "today"]),
        ("path", ["search", "pictures", "x", "--path", "../.."]),
        ("sheet", ["search", "pictures", "x", "--sheet", "pictures"]),
        ("sheet", ["search", "pictures", "x", "--sheet", "none/s.png"]),
    ],
)
def test_mistakes_are_one_line_before_any_model_work(
    run: Run, pictures: Path, name: str, arguments: list[str]
):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"{name}: ")
    assert err.count("\n") == 1
