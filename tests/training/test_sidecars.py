"""Folders of pictures with captions in text files beside them, and of pictures alone."""

import pytest

from tests.training import data_files
from training.check import check
from training.data import open_pictures
from training.multilingual import caption_reader
from training.pictures import PicturesConfig, picture_reader
from training.sources import open_rows, open_stream

CONFIG = PicturesConfig(resolution=32, max_bad_share=0.5)


def folder_of(root, texts: dict[str, str], pictures=("a.png", "10_cats/b.PNG")):
    for number, name in enumerate(pictures):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data_files.picture(number))
    for name, text in texts.items():
        (root / name).write_text(text, encoding="utf-8")
    return root


def test_each_picture_has_the_captions_of_its_text_files(tmp_path):
    texts = {"a.txt": "a cat\n\na red cat\n", "a.zh.txt": "猫", "10_cats/b.caption": "two", "readme.txt": "x"}
    rows = open_rows(str(folder_of(tmp_path, {**texts, "none.th.txt": "x"})))
    read, source = caption_reader(rows.columns, CONFIG), picture_reader(rows.folder, rows.columns, CONFIG)
    found = {rows.name(n): (read(rows[n]), source(rows[n])) for n in range(len(rows))}
    assert found == {
        "10_cats/b.PNG": ({"en": ("two",)}, tmp_path / "10_cats/b.PNG"),
        "a.png": ({"en": ("a cat", "a red cat"), "zh": ("猫",)}, tmp_path / "a.png"),
    }


def test_a_dot_in_a_name_is_no_language(tmp_path):
    rows = open_rows(str(folder_of(tmp_path, {"v1.de.txt": "a cat", "v1.de.th.txt": "แมว"}, ("v1.de.png",))))
    assert caption_reader(rows.columns, CONFIG)(rows[0]) == {"en": ("a cat",), "th": ("แมว",)}


def test_a_picture_without_a_caption_is_skipped_and_named(tmp_path, caplog):
    opened = open_pictures(str(folder_of(tmp_path, {"a.txt": "a cat"})), CONFIG)
    assert opened.found is not None and opened.found.usable.tolist() == [1]
    assert "10_cats/b.PNG" in caplog.text and "no text" in caplog.text
    (tmp_path / "a.txt").write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"^data: 2 of 2 samples.*a\.txt is not UTF-8"):
        open_pictures(str(tmp_path), CONFIG)


def test_pictures_alone_take_the_one_prompt_or_are_refused(tmp_path):
    folder = str(folder_of(tmp_path, {}))
    with pytest.raises(ValueError, match=r"^data: the pictures have no captions; allowed: a \.txt for each"):
        open_pictures(folder, CONFIG)
    opened = open_pictures(folder, CONFIG, otherwise="a sks dog")
    assert opened.rows is not None and opened.read(opened.rows[0]) == {"en": ("a sks dog",)}
    german = open_pictures(folder, CONFIG, ("de",), otherwise="das sks")
    assert german.found is not None and list(german.found.rows) == ["de"]


def test_the_fingerprint_changes_with_every_file(tmp_path):
    folder = folder_of(tmp_path, {"a.txt": "a cat"})
    seen = {open_rows(str(folder)).fingerprint}
    (folder / "a.txt").write_text("a red cat")
    seen.add(open_rows(str(folder)).fingerprint)
    (folder / "a.png").write_bytes(data_files.picture(9)[:-1] + b"0")
    (folder / "a.png").rename(folder / "c.png")
    seen.add(open_rows(str(folder)).fingerprint)
    assert len(seen) == 3


def test_check_reads_it_and_a_stream_is_refused(tmp_path):
    folder = str(folder_of(tmp_path, {"a.txt": "a cat", "10_cats/b.txt": "cats"}))
    lines, good = check(folder, CONFIG, (), None)
    assert good and "en 2" in lines[0] and "32x32 2" in lines[1]
    alone = str(folder_of(tmp_path / "alone", {}))
    for languages in ((), ("de",)):
        lines, good = check(alone, CONFIG, languages, None)
        assert good and lines[0].startswith("2 pictures without captions: for instance_prompt")
        assert "32x32 2" in lines[1] and lines[-1].startswith("0 of 2 samples cannot be used")
    with pytest.raises(ValueError, match=r"^streaming: .* is read by place as it is"):
        open_stream(folder, "train", "")
