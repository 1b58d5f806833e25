"""`altdiffusion evaluate`: reports from miniature data sets."""

import json
from pathlib import Path

import pytest

from tests import mini_data
from tests.cli.conftest import Run


def test_retrieval_is_reported_by_language(run: Run, shared_folder: Path, tmp_path: Path):
    mini_data.crossmodal3600(tmp_path)
    arguments = ("--data", "xm3600", "--languages", "zh", "en", "--model", str(shared_folder))
    code, out, err = run("evaluate", "retrieval", *arguments, "-o", "report.json", "--json")
    assert code == 0
    report = json.loads(out)
    assert report == json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert [row["language"] for row in report["results"]] == ["zh", "en"]
    assert set(report["results"][0]["scores"]) >= {"t2i@1", "i2t@10", "MR"}
    assert len(report["results"][0]["data"]) == 64
    assert len(report["made"]["fingerprint"]) == 64
    assert report["made"]["command"].startswith("altdiffusion evaluate retrieval --data xm3600")
    assert err == "crossmodal-3600, zh\ncrossmodal-3600, en\n"
    assert not (tmp_path / "report.json.parts").exists()


def test_a_folder_for_each_class_is_measured_with_our_templates(
    run: Run, shared_folder: Path, tmp_path: Path
):
    mini_data.plain_tree(tmp_path / "tree")
    code, out, _ = run(
        "evaluate",
        "zero-shot",
        "--data",
        "tree",
        "--languages",
        "de,zh",
        "-o",
        "r.md",
        "--model",
        str(shared_folder),
    )
    assert code == 0
    assert out == (tmp_path / "r.md").read_text(encoding="utf-8")
    assert "| de | this one |" in out and "10 pictures, 4 classes" in out
    assert "not comparable with published figures" in out


def test_the_papers_table_lists_ours_the_papers_and_what_is_missing(
    run: Run, shared_folder: Path, tmp_path: Path
):
    for make in (mini_data.flickr30k, mini_data.coco, mini_data.coco_cn, mini_data.xtd10, mini_data.imagenet):
        make(tmp_path / "data")
    mini_data.cifar(tmp_path / "data")  # not in the paper
    code, out, _ = run("evaluate", "paper", "--data", "data", "--model", str(shared_folder), "--json")
    report = json.loads(out)
    assert code == 0
    pairs = {(row["data_set"], row["language"]) for row in report["results"]}
    imagenets = {"imagenet", *(f"imagenet-{kind}" for kind in ("v2", "a", "r", "sketch"))}
    captions = {
        ("flickr30k", "en"),
        ("flickr30k", "zh"),
        ("coco", "en"),
        ("coco-cn-1k", "zh"),
        ("coco-cn-5k", "zh"),
    }
    assert captions | {(name, tag) for name in imagenets for tag in ("en", "zh")} <= pairs
    assert {("xtd10", tag) for tag in ("en", "zh", "de", "ja")} <= pairs
    assert all(row["published"] for row in report["results"])
    assert "xtd10, ko" in report["missing"] and "flickr30k, zh" not in report["missing"]
    assert (
        "github.com" in report["missing"]["crossmodal-3600, ja"]
        or "google" in report["missing"]["crossmodal-3600, ja"]
    )


def test_what_was_made_before_an_interruption_is_not_made_again(
    run: Run, shared_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from altdiffusion.evaluation import tasks

    mini_data.crossmodal3600(tmp_path)
    arguments = ("evaluate", "retrieval", "--data", "xm3600", "-o", "r.json", "--model", str(shared_folder))
    whole = tasks.run

    def interrupted(found, tag, features):
        if tag == "ja":
            raise KeyboardInterrupt
        return whole(found, tag, features)

    monkeypatch.setattr(tasks, "run", interrupted)
    assert run(*arguments)[0] == 130
    assert len(list((tmp_path / "r.json.parts").iterdir())) == 1 + 2
    monkeypatch.setattr(tasks, "run", whole)
    assert run(*arguments)[0] == 0
    assert (tmp_path / "r.json").is_file()


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("data", ["retrieval", "--data", "none"]),
        ("data", ["retrieval", "--data", "."]),
        ("data", ["zero-shot", "--data", "xm3600"]),
        ("data", ["paper", "--data", "tree"]),
        ("languages", ["retrieval", "--data", "xm3600", "--languages", "cn"]),
        ("output", ["retrieval", "--data", "xm3600", "-o", "r.txt"]),
        ("output", ["retrieval", "--data", "xm3600", "-o", "none/r.json"]),
        ("output", ["retrieval", "--data", "xm3600", "-o", "taken.md"]),
    ],
)
def test_mistakes_are_refused_before_the_model(run: Run, tmp_path: Path, name: str, arguments: list[str]):
    if arguments[2] == ".":
        (tmp_path / "empty").mkdir()
        arguments = [*arguments[:2], "empty", *arguments[3:]]
    else:
        mini_data.crossmodal3600(tmp_path)
        mini_data.plain_tree(tmp_path / "tree")
    (tmp_path / "taken.md").touch()
    code, out, err = run("evaluate", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"{name}: ") and err.count("\n") == 1
