"""What is written aside: whole or not there, and nothing is left lying."""

import os
import time
from pathlib import Path

import pytest

from altdiffusion import aside


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def fail(place: Path) -> None:
    place.write_text("half") if not place.is_dir() else (place / "half").write_text("half")
    raise KeyboardInterrupt


@pytest.mark.parametrize("kind", [aside.file, aside.folder, aside.merged])
def test_what_fails_leaves_what_was_there(tmp_path, kind):
    target = tmp_path / "target"
    with pytest.raises(KeyboardInterrupt), kind(target) as place:
        fail(place)
    assert names(tmp_path) == []
    target.write_text("old") if kind is aside.file else target.mkdir()
    if target.is_dir():
        (target / "old").write_text("old")
    with pytest.raises(KeyboardInterrupt), kind(target) as place:
        fail(place)
    assert names(tmp_path) == ["target"]
    assert target.read_text() == "old" if target.is_file() else names(target) == ["old"]


def test_a_name_that_is_taken_is_kept_where_that_is_asked(tmp_path):
    (tmp_path / "a").write_text("mine")
    with pytest.raises(FileExistsError), aside.file(tmp_path / "a", overwrite=False) as place:
        place.write_text("other")
    assert (tmp_path / "a").read_text() == "mine" and names(tmp_path) == ["a"]
    with aside.file(tmp_path / "a") as place:
        place.write_text("other")
    assert (tmp_path / "a").read_text() == "other" and names(tmp_path) == ["a"]


@pytest.mark.parametrize("swaps", [True, False])
def test_a_folder_takes_the_place_of_another_whole(tmp_path, swaps, monkeypatch):
    if not swaps:
        monkeypatch.setattr(aside, "_exchange", lambda one, other: False)
    for text in ("one", "two"):
        with aside.folder(tmp_path / "a") as place:
            (place / text).write_text(text)
        assert names(tmp_path) == ["a"] and names(tmp_path / "a") == [text]


def test_merged_keeps_what_else_lies_there(tmp_path):
    (tmp_path / "a/sub").mkdir(parents=True)
    for name in ("mine", "sub/mine", "sub/both"):
        (tmp_path / "a" / name).write_text("old")
    with aside.merged(tmp_path / "a") as place:
        (place / "sub").mkdir()
        (place / "sub/both").write_text("new")
    assert names(tmp_path / "a") == ["mine", "sub"] and names(tmp_path / "a/sub") == ["both", "mine"]
    assert [(tmp_path / "a/sub" / name).read_text() for name in ("both", "mine")] == ["new", "old"]


def test_what_the_dead_left_is_swept_and_what_the_living_make_is_not(tmp_path):
    """Of another machine nobody knows whether they live: after a day they do not."""
    mine = aside.make_stage(tmp_path)
    process = os.fork()
    if process == 0:
        aside.make_stage(tmp_path)
        (tmp_path / aside._name()).write_text("half")
        os._exit(0)
    os.waitpid(process, 0)
    for name, age in (("elsewhere-1-abc", 0), ("elsewhere-2-abc", 2 * aside.ABANDONED)):
        (tmp_path / f".tmp-{name}").mkdir()
        os.utime(tmp_path / f".tmp-{name}", (time.time() - age,) * 2)
    assert len(names(tmp_path)) == 5
    aside.sweep(tmp_path)
    assert names(tmp_path) == sorted([mine.name, ".tmp-elsewhere-1-abc"])


def test_a_seal_tells_what_is_missing_and_what_has_changed(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("a", "sub/b"):
        (tmp_path / name).write_text(name)
    files = aside.hashes(tmp_path)
    assert list(files) == ["a", "sub/b"] and aside.fault(tmp_path, files) is None
    (tmp_path / "sub/b").write_text("c")
    assert aside.fault(tmp_path, files) == "sub/b has changed since it was written"
    (tmp_path / "a").unlink()
    assert aside.fault(tmp_path, files) == "a is missing"
