"""Pictures as files: one for all who are shown the same, whole at every moment."""

import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from altdiffusion.serving import shown
from altdiffusion.serving.shown import data_uri, kept


def noise(side: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(side).integers(0, 256, (side, side, 3), dtype=np.uint8))


def test_the_same_picture_is_one_file_and_another_one_is_another(tmp_path: Path):
    first, again, other = kept(noise(8), tmp_path), kept(noise(8), tmp_path), kept(noise(9), tmp_path)
    assert first == again != other
    with Image.open(first) as found:
        assert (np.asarray(found) == np.asarray(noise(8))).all()


def test_another_server_gives_another_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """So nobody can tell from a picture of theirs whether somebody was shown it."""
    here = kept(noise(8), tmp_path)
    monkeypatch.setattr(shown, "_KEY", b"of another process")
    assert kept(noise(8), tmp_path) != here


def test_who_reads_while_it_is_written_again_gets_all_of_it(tmp_path: Path):
    picture, over = noise(200), threading.Event()
    path = Path(kept(picture, tmp_path))
    whole = path.read_bytes()

    def write() -> None:
        while not over.is_set():
            kept(picture, tmp_path)

    writing = threading.Thread(target=write)
    writing.start()
    try:
        assert all(path.read_bytes() == whole for _ in range(300))
    finally:
        over.set()
        writing.join()


def test_a_picture_in_a_page_is_small():
    assert len(data_uri(noise(600))) < len(data_uri(noise(600), longest=600))
