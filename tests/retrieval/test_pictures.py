"""Every kind of thing that lies in people's folders: met, counted, named, and never a crash."""

import os
import socket
import time
from pathlib import Path

import psutil
import pytest
from PIL import Image

from altdiffusion.requests import BadRequest
from altdiffusion.retrieval.pictures import Entry, LeftOut, Picture, listed, printed, read, scan
from altdiffusion.retrieval.report import Tally


def save(path: Path, mode: str = "RGB", size: tuple[int, int] = (40, 30), **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.radial_gradient("L").resize(size).convert(mode).save(path, **options)
    return path


def names(root: Path, **arguments) -> tuple[list[str], Tally]:
    tally = Tally()
    entries, _ = scan(root, tally, **arguments)
    return [entry.path for entry in entries], tally


def reason(root: Path, path: str) -> str:
    with pytest.raises(LeftOut) as left:
        read(root, path, {})
    return f"{left.value.reason}: {left.value.detail}"


def test_a_scan_goes_down_all_folders_in_an_order_that_stays(tmp_path):
    for path in ("b/2.png", "b/1.png", "a.png", "c/d/e/3.png"):
        save(tmp_path / path)
    assert names(tmp_path)[0] == ["a.png", "b/1.png", "b/2.png", "c/d/e/3.png"]
    assert names(tmp_path, leave=tmp_path / "c")[0] == ["a.png", "b/1.png", "b/2.png"]


def test_loops_links_pipes_and_sockets_are_counted_and_never_opened(tmp_path):
    save(tmp_path / "a.png")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "link.png").symlink_to(tmp_path / "a.png")
    (tmp_path / "broken.png").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe.png")
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(tmp_path / "s.png"))
    found, tally = names(tmp_path)
    server.close()
    assert found == ["a.png"]
    left = tally.report().left_out
    assert (left["link"].count, left["link"].first) == (3, ("broken.png", "link.png", "loop"))
    assert left["not a plain file"].first == ("pipe.png", "s.png")


def test_a_file_that_became_a_pipe_or_a_link_since_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    assert reason(tmp_path, "pipe.png") == "not a plain file: "
    (tmp_path / "link.png").symlink_to(save(tmp_path / "a.png"))
    assert reason(tmp_path, "link.png").startswith("unreadable: ")


def test_names_in_either_form_and_bytes_that_are_no_text_are_files_of_their_own(tmp_path):
    raw = os.fsdecode(b"na\xe9\xff.png")
    spellings = ["é.png", "e\u0301.png", raw, "🦞 a\nb.png", "\u202egnp.png"]
    for name in spellings:
        save(tmp_path / name, format="PNG")
    found, _ = names(tmp_path)
    assert sorted(found) == sorted(spellings)
    pictures = [read(tmp_path, path, {})[0] for path in found]
    assert len({picture.id for picture in pictures}) == 5
    assert [Picture.from_payload(picture.to_payload()) for picture in pictures] == pictures
    assert printed(raw) == "na\ufffd\ufffd.png"
    assert printed("🦞 a\nb.png") == "🦞 a\ufffdb.png"
    assert printed("\u202egnp.png") == "\ufffdgnp.png"
    assert printed("e\u0301.png") == "é.png"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "not a picture: "),
        (b"hello", "not a picture: "),
        (b"%PDF-1.7", "not a picture: "),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a picture: "),
        (b"\x89PNG\r\n\x1a\n", "refused picture: .* is not a picture"),
        (b"RIFF\0\0\0\0WAVEfmt ", "refused picture: .* is not a picture"),
    ],
)
def test_what_is_no_picture_is_left_out_by_its_content(tmp_path, content, expected):
    (tmp_path / "x.png").write_bytes(content)
    import re

    assert re.match(expected, reason(tmp_path, "x.png"))


def test_a_film_is_not_read_to_its_end(tmp_path):
    with (tmp_path / "film.avi").open("wb") as file:
        file.write(b"RIFF")
        file.truncate(3_000_000_000)
    start = time.perf_counter()
    assert reason(tmp_path, "film.avi") == "refused picture: over 200 MB"
    assert time.perf_counter() - start < 1


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16", "YCbCr"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    path = save(tmp_path / ("x.jpg" if mode in ("CMYK", "YCbCr") else "x.png"), mode)
    picture, image = read(tmp_path, path.name, {})
    assert (picture.width, picture.height) == (40, 30)
    assert image is not None
    assert image.mode == "RGB"


def test_hostile_sizes_are_refused_quickly_and_without_growing(tmp_path):
    Image.new("1", (20_000, 20_000)).save(tmp_path / "bomb.png")
    Image.new("L", (30_000, 1)).save(tmp_path / "thin.png")
    (tmp_path / "cut.jpg").write_bytes(save(tmp_path / "whole.jpg", size=(800, 600)).read_bytes()[:2000])
    process = psutil.Process()
    before, start = process.memory_info().rss, time.process_time()
    assert "pixels" in reason(tmp_path, "bomb.png") or "20000" in reason(tmp_path, "bomb.png")
    assert "30000 x 1" in reason(tmp_path, "thin.png")
    assert "damaged" in reason(tmp_path, "cut.jpg")
    assert time.process_time() - start < 3
    assert process.memory_info().rss - before < 300e6


def test_content_that_is_known_is_not_decoded_again(tmp_path):
    save(tmp_path / "a.png")
    first, image = read(tmp_path, "a.png", {})
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes())
    second, none = read(tmp_path, "b.png", {first.sha256: first})
    assert image is not None
    assert none is None
    assert (second.path, second.sha256, second.width) == ("b.png", first.sha256, 40)


def test_listed_pictures_have_the_folder_of_all_as_root(tmp_path):
    paths = [save(tmp_path / "a/1.png"), save(tmp_path / "b/2.png")]
    assert listed(paths) == (tmp_path, ["a/1.png", "b/2.png"])
    assert listed([paths[0], str(paths[0])]) == (tmp_path / "a", ["1.png"])
    assert listed(tmp_path / "a/../b") == (tmp_path / "b", None)
    tally = Tally()
    assert Entry.of(tmp_path, "a/none.png", tally) is None
    assert tally.report().left_out["unreadable"].count == 1


def test_a_source_that_is_none_is_refused(tmp_path):
    for source, message in [
        (tmp_path / "none", r"^folder: .* is no folder"),
        ([], r"^folder: an empty list"),
        ("", r"^folder: '' is no path"),
        ("a\0", r"^folder: 'a\\x00' is no path"),
    ]:
        with pytest.raises(BadRequest, match=message):
            listed(source)
