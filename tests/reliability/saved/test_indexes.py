"""An index among all that can go wrong around it: what lies in its folder, what its manifest says, what it is
asked for, and kills while it is built. What Qdrant's own files may suffer is in test_damage.py.
"""

import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from altdiffusion import AltCLIP, ImageIndex, Where
from altdiffusion.retrieval.embedded import EmbeddedEngine
from altdiffusion.retrieval.pictures import Picture
from altdiffusion.retrieval.where import ANYWHERE
from tests.fakes import tiny_altclip_folder
from tests.reliability.saved.trying import tried
from tests.retrieval.test_index import killed, save

PICTURES = 6


@pytest.fixture(scope="module")
def clip(shared_folder):
    return AltCLIP.from_pretrained(shared_folder, device="cpu")


@pytest.fixture(scope="module")
def built(clip, tmp_path_factory) -> Path:
    """A folder of pictures with its index beside it, which nobody changes."""
    folder = tmp_path_factory.mktemp("built")
    for n in range(PICTURES):
        save(folder / f"pictures/{n}.png", n)
    ImageIndex.build(clip, folder / "pictures", folder / "index").close()
    return folder


def content(data: bytes) -> Callable[[Path], object]:
    return lambda file: file.write_bytes(data)


def a_socket(file: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(file.parent)  # its name may be long
        try:
            server.bind(file.name)
        finally:
            os.chdir(here)


def sparse(file: Path) -> None:
    with file.open("wb") as stream:
        stream.write(b"RIFF")
        stream.truncate(3_000_000_000)


#: What lies among the pictures under a picture's name: left out and told, and never waited for.
STRANGERS: dict[str, Callable[[Path], object]] = {
    "empty": content(b""),
    "text": content(b"hello"),
    "pdf": content(b"%PDF-1.7"),
    "svg": content(b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
    "html": content(b"<html><script>alert(1)</script>"),
    "zip": content(b"PK\3\4" + bytes(100)),
    "only a signature": content(b"\x89PNG\r\n\x1a\n"),
    "a sound": content(b"RIFF\0\0\0\0WAVEfmt "),
    "half a JPEG": content(b"\xff\xd8\xff\xe0" + bytes(50)),
    "half a GIF": content(b"GIF89a\x10\0"),
    "half a BMP": content(b"BM" + bytes(10)),
    "a film of 3 GB": sparse,
    "a picture of 400 MP": lambda file: Image.new("1", (20_000, 20_000)).save(file),
    "a pipe": os.mkfifo,
    "a socket": a_socket,
    "a link to a picture": lambda file: file.symlink_to(file.parent / "0.png"),
    "a link out of the folder": lambda file: file.symlink_to("/etc/passwd"),
    "a link to nothing": lambda file: file.symlink_to("nowhere"),
    "a link to itself": lambda file: file.symlink_to(file.name),
    "a link to the folder": lambda file: file.symlink_to(file.parent),
    "a link to /": lambda file: file.symlink_to("/"),
}
#: Names that are no plain ones: indexed and found as they are.
NAMES = [
    os.fsdecode(b"na\xe9\xff.png"),
    "é.png",
    "e\u0301.png",
    "a\nb.png",
    "\u202egnp.png",
    "🦞.png",
    "-rf.png",
    "$(touch x).png",
    "..png",
    "x" * 250 + ".png",
]
#: What a manifest may be made to say.
MANIFESTS: dict[str, Callable[[dict], object]] = {
    "no JSON": lambda made: '{"format": 1',
    "a list": lambda made: [],
    "another format": lambda made: made | {"format": 2},
    "a text for a number": lambda made: made | {"dim": "x"},
    "another size": lambda made: made | {"dim": 5},
    "a mean of NaN": lambda made: made | {"image_mean": [float("nan")] * made["dim"]},
    "a mean of texts": lambda made: made | {"text_mean": ["a"]},
    "a field too few": lambda made: {name: made[name] for name in made if name != "root"},
    "another fingerprint": lambda made: made | {"fingerprint": "0" * 64},
    "only, of numbers": lambda made: made | {"only": [1, 2]},
    "a server that is none": lambda made: made | {"url": "ftp://x", "collection": "y"},
}
#: What a search may be asked for.
SEARCHES: dict[str, dict] = {
    "k of -1": {"k": -1},
    "k of 2**63": {"k": 2**63},
    "k of NaN": {"k": float("nan")},
    "weight of infinity": {"weight": float("inf")},
    "a text of half a character": {"text": "\ud800"},
    "a text of 1 MB": {"text": "a" * 10**6},
    "a picture from the net": {"image": "http://127.0.0.1/x.png"},
    "a picture from a pipe": {"image": "pipe"},
}
PLACES = ["../", "", "a/../../b", "\0", "\udcff"]
#: Paths that a damaged or a hostile index may hold: told as missing, and never opened.
PATHS = [
    "../secret.png",
    "/etc/passwd",
    "../../../../etc/passwd",
    "./../pictures/../secret.png",
    "link/secret.png",
]
CASE = "E1 faults around an index"


def copied(built: Path, folder: Path) -> Path:
    """Pictures and index under other names; the index is of the pictures where they were."""
    return Path(shutil.copytree(built / "index", folder / "index"))


def test_what_is_no_picture_is_left_out_and_told(clip, tmp_path, tally):
    count = tally(CASE)
    save(tmp_path / "p/0.png", 0)
    for name, make in STRANGERS.items():
        make(tmp_path / f"p/{name.replace('/', 'root')}.png")
    with ImageIndex.build(clip, tmp_path / "p", tmp_path / "index") as index:
        left = sum(one.count for one in index.report.left_out.values())
        told = " ".join(name for one in index.report.left_out.values() for name in one.first)
        for name in STRANGERS:
            with tried(count, name, "refused"):
                assert len(index) == 1 and left == len(STRANGERS)
        assert "pipe.png" in told or left > 5
    count.check(len(STRANGERS))


def test_names_of_every_kind_are_found_as_they_are(clip, tmp_path, tally):
    count = tally(CASE)
    for number, name in enumerate(NAMES):
        save(tmp_path / f"p/plain-{number}.png", number).rename(tmp_path / "p" / name)
    ImageIndex.build(clip, tmp_path / "p", tmp_path / "index").close()
    with ImageIndex.open(tmp_path / "index", clip) as index:
        hits = {hit.path.name: hit.state for hit in index.search("a cat", k=50, alike=None)}
        for name in NAMES:
            with tried(count, ascii(name)):
                assert hits[name] == "as indexed" and index.update().unchanged == len(NAMES)
    count.check(len(NAMES))


def test_a_manifest_that_says_something_else_is_refused(clip, built, tmp_path, tally):
    """By an index that has no list of its files, as older ones; else that tells already."""
    count, index = tally(CASE), copied(built, tmp_path)
    (index / "vectors.json").unlink()
    made = json.loads((index / "index.json").read_text())
    for name, change in MANIFESTS.items():
        changed = change(made)
        (index / "index.json").write_text(changed if isinstance(changed, str) else json.dumps(changed))
        with tried(count, name, "refused"):
            with pytest.raises(ValueError, match=r"^(index|url): ") as caught:
                ImageIndex.open(index, clip)
            assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    (index / "index.json").write_text(json.dumps(made))
    with tried(count, "an encoder of the same size", "refused"):
        other = AltCLIP.from_pretrained(tiny_altclip_folder(tmp_path / "other", seed=1), device="cpu")
        with pytest.raises(ValueError, match=r"^index: .* was made by the encoder "):
            ImageIndex.open(index, other)
    with tried(count, "as it was"), ImageIndex.open(index, clip) as opened:
        assert len(opened) == PICTURES
    count.check(len(MANIFESTS) + 2)


def test_a_search_for_nonsense_is_refused_and_the_next_one_is_fine(clip, built, tmp_path, tally):
    count, index = tally(CASE), copied(built, tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with ImageIndex.open(index, clip) as opened:
        for name, asked in SEARCHES.items():
            asked = {"text": "a cat"} | asked
            if asked.get("image") == "pipe":
                asked["image"] = tmp_path / "pipe"
            with tried(count, name, "refused"), pytest.raises(ValueError, match=rf"^{list(asked)[-1]}: "):
                opened.search(**asked)
        for path in PLACES:
            with tried(count, ascii(path), "refused"), pytest.raises(ValueError, match=r"^path: "):
                opened.search("a cat", where=Where.build(path=path))
        with tried(count, "the next one"):
            assert len(opened.search("a cat", k=50, alike=None)) == PICTURES
    count.check(len(SEARCHES) + len(PLACES) + 1)


def test_paths_that_lead_out_of_the_folder_are_missing(clip, built, tmp_path, tally):
    """As a hostile index may hold them; nothing outside is opened, nor told to be there."""
    count, index = tally(CASE), copied(built, tmp_path)
    made = json.loads((index / "index.json").read_text())
    root = tmp_path / "pictures"
    shutil.copytree(built / "pictures", root)
    save(tmp_path / "secret.png", 1)
    (root / "link").symlink_to(tmp_path)
    (index / "index.json").write_text(json.dumps(made | {"root": str(root)}))
    (index / "vectors.json").unlink()
    vector = clip.encode_text("a cat").numpy()
    engine = EmbeddedEngine(index / "vectors", made["dim"])
    secret = (tmp_path / "secret.png").stat()
    for path in PATHS:
        engine.store([Picture(path, secret.st_size, secret.st_mtime_ns, path, 48, 48)], vector)
    engine.close()
    with ImageIndex.open(index, clip) as opened:
        states = {hit.picture.path: hit.state for hit in opened.search("a cat", k=50, alike=None)}
        for path in PATHS:
            with tried(count, path, "refused"):
                assert states[path] == "missing"
    count.check(len(PATHS))


@pytest.mark.timeout(1800)
def test_kills_while_it_is_built_lose_nothing_that_was_acknowledged(tmp_path, tally, amount):
    count, tries = tally("E1 kills while an index is built"), amount(3, 30)
    for number, trial in enumerate(killed(tries, tmp_path)):
        with tried(count, f"kill {number}"):
            assert trial["found"] >= trial["acknowledged"] and trial["unchanged"] == trial["found"], trial
            assert trial["whole"], trial
    count.check(tries)


def test_a_million_vectors_are_searched_as_by_brute_force(tmp_path, tally, amount):
    """512 numbers each, of half precision; all are compared, in less memory than a file and a half."""
    count, total, dim = tally("E2 a million vectors"), amount(3_000, 1_000_000), 512
    random = np.random.default_rng(0)
    engine = EmbeddedEngine(tmp_path / "vectors", dim)
    before = psutil.Process().memory_info().rss
    queries = random.standard_normal((10, dim)).astype(np.float32)
    best = [np.empty((0, 2)) for _ in queries]
    for first in range(0, total, 1000):
        vectors = random.standard_normal((1000, dim)).astype(np.float16)
        pictures = [Picture(f"{n}.png", n, n, f"{n:064x}", 8, 8) for n in range(first, first + 1000)]
        engine.store(pictures, vectors)
        for number, scores in enumerate(queries @ vectors.astype(np.float32).T):
            found = np.stack([scores, np.arange(first, first + 1000)], 1)
            both = np.concatenate([best[number], found])
            best[number] = both[np.argsort(-both[:, 0])[:10]]
    for number, query in enumerate(queries):
        with tried(count, f"query {number}"):
            hits = engine.search(query, 10, ANYWHERE)
            assert [hit.picture.path for hit in hits] == [f"{int(n)}.png" for n in best[number][:, 1]]
            assert [hit.score for hit in hits] == pytest.approx(best[number][:, 0].tolist(), rel=1e-4)
    size = sum(path.stat().st_blocks * 512 for path in (tmp_path / "vectors").rglob("*"))
    with tried(count, "memory"):
        grown = psutil.Process().memory_info().rss - before
        assert grown < 1.5 * max(size, 200e6), f"{grown:,} of {size:,}"
    engine.close()
    count.check(11)
