"""The emoji to search in: their vectors come along, and count only for the encoder that made them."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from altdiffusion import AltCLIP, bundled
from altdiffusion.retrieval.asking import Asked
from altdiffusion.serving.collection import VECTORS, Collection

pytestmark = pytest.mark.weights
ASKED = ["a lobster", "กุ้งมังกร", "something to eat", "🎻", "ein roter Apfel"]


@pytest.fixture(scope="module")
def clip() -> AltCLIP:
    return AltCLIP.from_pretrained(device="cpu")


def counted(clip: AltCLIP, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pictures are encoded from here on, call by call."""
    calls: list[int] = []
    encode = clip.encode_image

    def encode_image(images: Any) -> Any:
        calls.append(len(images))
        return encode(images)

    monkeypatch.setattr(clip, "encode_image", encode_image)
    return calls


def ready(collection: Collection, clip: AltCLIP) -> Collection:
    while not collection.ready:
        collection.encode_some(clip)
    return collection


def found(collection: Collection, clip: AltCLIP, text: str) -> dict[str, float]:
    asked = Asked.checked(text, None, 0.5, None, None)
    return {one.name: one.score for one in collection.search(clip, asked, 5)}


def test_the_bundled_encoder_finds_its_vectors_ready_and_they_are_the_pictures(
    clip: AltCLIP, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """float16 moves a score of unit vectors by less than 0.0005: 256 products, each off by 2**-11 at most."""
    shutil.copytree(bundled.FOLDER / "collection", tmp_path / "bare")
    (tmp_path / "bare" / VECTORS).unlink()
    calls = counted(clip, monkeypatch)
    shipped = ready(Collection(), clip)
    assert calls == []
    encoded = ready(Collection(tmp_path / "bare"), clip)
    assert sum(calls) == 1364 and max(calls) <= 32
    for text in ASKED:
        one, other = found(shipped, clip, text), found(encoded, clip, text)
        assert next(iter(one)) == next(iter(other))
        assert [one[name] for name in one.keys() & other] == pytest.approx(
            [other[name] for name in one.keys() & other], abs=5e-4
        )


def test_vectors_of_another_encoder_do_not_count(
    clip: AltCLIP, shared_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    other = AltCLIP.from_pretrained(shared_folder, device="cpu")
    calls = counted(other, monkeypatch)
    Collection().encode_some(other)
    assert calls == [32]


def test_what_is_written_is_read_again(shared_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shutil.copytree(bundled.FOLDER / "collection", tmp_path / "own")
    clip = AltCLIP.from_pretrained(shared_folder, device="cpu")
    Collection(tmp_path / "own").write_vectors(clip)
    calls = counted(clip, monkeypatch)
    collection = ready(Collection(tmp_path / "own"), clip)
    assert calls == [] and np.shape(collection._stored) == (1364, clip.dim)
