"""`altdiffusion classify`: labels of pictures."""

import json
from pathlib import Path

import pytest
from PIL import Image

from tests.cli.conftest import Run


@pytest.fixture
def pictures(tmp_path: Path) -> list[str]:
    Image.new("RGB", (80, 60), "red").save(tmp_path / "red.png")
    Image.radial_gradient("L").save(tmp_path / "grey.png")
    return ["red.png", "grey.png"]


def test_each_picture_is_a_line(run: Run, shared_folder: Path, pictures: list[str]):
    model = ("--model", str(shared_folder))
    code, out, err = run("classify", *pictures, "--labels", "猫", "狗", "--language", "zh", *model)
    assert (code, err) == (0, "")
    assert [line.split(":")[0] for line in out.splitlines()] == pictures
    assert all("猫 0." in line and "狗 0." in line for line in out.splitlines())


def test_json_and_standard_input(run: Run, shared_folder: Path, pictures: list[str]):
    model = ("--model", str(shared_folder))
    code, out, _ = run(
        "classify", *pictures, "--labels", "-", "-k", "2", "--json", *model, stdin="a\nb\n\nc\n"
    )
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [row["image"] for row in rows] == pictures
    for row in rows:
        assert len(row["scores"]) == 2
        assert row["label"] == max(row["scores"], key=row["scores"].get)


def test_saved_weights_stand_for_the_labels(run: Run, shared_folder: Path, pictures: list[str]):
    model = ("--model", str(shared_folder))
    code, out, _ = run("classify", "--labels", "a cat", "a dog", "--save", "w.safetensors", *model)
    assert (code, out) == (0, "")
    told = run("classify", *pictures, "--labels", "a cat", "a dog", "--multi-label", *model)[1]
    assert run("classify", *pictures, "--weights", "w.safetensors", "--multi-label", *model) == (0, told, "")


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("images", ["--labels", "a"]),
        ("images", ["none.png", "--labels", "a"]),
        ("images", ["http://localhost/a.png", "--labels", "a"]),
        ("labels", ["red.png"]),
        ("labels", ["red.png", "--labels", "a", "a"]),
        ("language", ["red.png", "--labels", "a", "--language", "cn"]),
        ("templates", ["red.png", "--labels", "a", "--templates", "photo"]),
        ("k", ["red.png", "--labels", "a", "-k", "0"]),
        ("save", ["red.png", "--labels", "a", "--save", "none/w.safetensors"]),
        ("weights", ["red.png", "--weights", "none.safetensors"]),
        ("weights", ["red.png", "--weights", "red.png", "--labels", "a"]),
    ],
)
def test_mistakes_are_refused_before_the_model(
    run: Run, pictures: list[str], name: str, arguments: list[str]
):
    code, out, err = run("classify", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"{name}: ") and err.count("\n") == 1
