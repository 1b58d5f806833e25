"""An index over its life, with the tiny encoder and the real engines."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from altdiffusion import AltCLIP, ImageIndex, Where
from altdiffusion.images import open_image
from altdiffusion.requests import BadRequest
from altdiffusion.retrieval import filling
from tests.fakes import tiny_altclip_folder

ROOT = Path(__file__).parent.parent.parent


def save(path: Path, seed: int, size: tuple[int, int] = (48, 48), **options) -> Path:
    """Noise of few colours: no two alike."""
    path.parent.mkdir(parents=True, exist_ok=True)
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(small).resize(size, Image.Resampling.NEAREST).save(path, **options)
    return path


@pytest.fixture(scope="module")
def clip(shared_folder):
    return AltCLIP.from_pretrained(shared_folder, device="cpu")


@pytest.fixture
def folder(tmp_path):
    for n in range(12):
        save(tmp_path / f"pictures/{'ab'[n % 2]}/{n}.png", n)
    return tmp_path / "pictures"


def names(hits) -> list[str]:
    return [hit.path.name for hit in hits]


@pytest.mark.parametrize("url", [None, ":memory:"])
def test_searches_rank_and_score_as_the_encoder_does(clip, folder, url):
    paths = sorted(folder.glob("*/*.png"))
    vectors = clip.encode_image([open_image(path) for path in paths])
    with ImageIndex.build(clip, folder, url=url) as index:
        assert len(index) == 12
        for query, asked in [
            (clip.encode_text("红色的龙虾"), {"text": "红色的龙虾"}),
            (vectors[3:4], {"image": paths[3]}),
            (vectors[3:4], {"image": Image.open(paths[3])}),
            (vectors[3:4], {"image": clip.preprocess(Image.open(paths[3]))}),
        ]:
            hits = index.search(**asked, k=12, alike=None)
            scores = (query @ vectors.T)[0]
            assert [hit.score for hit in hits] == pytest.approx(
                scores.sort(descending=True).values.tolist(), abs=1e-5
            )
            assert [hit.path for hit in hits] == [paths[n] for n in scores.argsort(descending=True)]
        assert {hit.path.parent.name for hit in index.search("a cat", where=Where(path="a"), alike=None)} == {
            "a"
        }


def test_both_weights_of_the_sum_are_the_parts_alone(clip, folder):
    picture = folder / "a/0.png"
    with ImageIndex.build(clip, folder) as index:
        assert names(index.search("a cat", image=picture, weight=1.0)) == names(index.search(image=picture))
        assert names(index.search("a cat", image=picture, weight=0.0)) == names(index.search("a cat"))
        plain, less = (index.search("a cat", less=less, k=12, alike=None) for less in (None, "a cat"))
        assert names(plain) != names(less)


def test_the_same_picture_in_any_orientation_and_mode_has_one_vector(clip, tmp_path):
    upright = Image.radial_gradient("L").resize((60, 40)).convert("RGB")
    upright.paste("white", (0, 0, 20, 20))
    (tmp_path / "p").mkdir()
    for number, turn in enumerate(
        (None, *(Image.Transpose(n) for n in (0, 3, 1, 5, 2, 6, 4))), 1
    ):  # how a camera held so would have stored it, for Exif's orientations 1 to 8
        exif = Image.Exif()
        exif[0x0112] = number
        stored = upright if turn is None else upright.transpose(turn)
        stored.save(tmp_path / f"p/{number}.png", exif=exif)
    upright.convert("RGBA").save(tmp_path / "p/rgba.png")
    expected = clip.encode_image(upright)
    with ImageIndex.build(clip, tmp_path / "p") as index:
        hits = index.search(image=upright, alike=None)
        assert len(hits) == 9
        assert [hit.score for hit in hits] == pytest.approx([1.0] * 9, abs=1e-5)
    for path in (tmp_path / "p").iterdir():
        assert torch.allclose(clip.encode_image(open_image(path)), expected, atol=1e-6)
        assert torch.allclose(clip.encode_image(Image.open(path)), expected, atol=1e-6)


def test_an_update_follows_every_change_and_encodes_only_what_is_new(clip, folder, tmp_path, monkeypatch):
    save(folder / "extra.png", 99)
    ImageIndex.build(clip, folder, tmp_path / "index").close()
    (folder / "a/0.png").rename(folder / "moved.png")
    shutil.copy(folder / "a/2.png", folder / "copy.png")
    (folder / "a/4.png").unlink()
    save(folder / "a/6.png", 1006)
    (folder / "a/8.png").write_text("no longer a picture")
    save(folder / "new.png", 100)
    os.utime(folder / "extra.png", (1, 1))
    encoded = []
    real = AltCLIP.encode_image
    monkeypatch.setattr(
        AltCLIP, "encode_image", lambda self, images: encoded.append(len(images)) or real(self, images)
    )
    with ImageIndex.open(tmp_path / "index", clip) as index:
        report = index.update()
        assert (report.added, report.renamed, report.duplicates) == (3, 1, 1)
        assert (report.changed, report.deleted, report.unchanged) == (2, 2, 8)
        assert report.left_out["not a picture"].first == ("a/8.png",)
        assert sum(encoded) == 2
        assert index.update().unchanged == len(index) == 13
        assert index.search(image=folder / "moved.png")[0].score == pytest.approx(1, abs=1e-5)
        present = {path for path in folder.rglob("*.png") if path.name != "8.png"}
        hits = index.search("a cat", k=50, alike=None)
        assert {path for hit in hits for path in (hit.path, *hit.alike)} == present


def test_pictures_that_were_all_renamed_by_one_keep_their_own_vectors(clip, tmp_path, monkeypatch):
    monkeypatch.setattr(filling, "BATCH", 4)
    for n in range(40):
        os.utime(save(tmp_path / f"p/{n:02}.png", n), (n, n))
    ImageIndex.build(clip, tmp_path / "p", tmp_path / "index").close()
    for n in reversed(range(40)):
        (tmp_path / f"p/{n:02}.png").rename(tmp_path / f"p/{n + 1:02}.png")
    save(tmp_path / "p/00.png", 1000)
    with ImageIndex.open(tmp_path / "index", clip) as index:
        report = index.update()
        assert (report.changed, report.added, len(index)) == (40, 1, 41)
        for path in sorted((tmp_path / "p").iterdir()):
            best = index.search(image=path, k=1, alike=None)[0]
            assert (best.path.name, best.score) == (path.name, pytest.approx(1, abs=1e-5))


def test_hits_say_what_became_of_their_files(clip, folder):
    with ImageIndex.build(clip, folder) as index:
        (folder / "a/0.png").unlink()
        os.utime(folder / "a/2.png", (1, 1))
        (folder / "a/4.png").unlink()
        (folder / "a/4.png").symlink_to(folder / "a/6.png")
        states = {hit.path.name: hit.state for hit in index.search("a cat", k=50, alike=None)}
    assert (states["0.png"], states["2.png"], states["4.png"]) == ("missing", "changed", "missing")
    assert states["6.png"] == "as indexed"


def test_near_duplicates_are_put_under_the_best_of_them(clip, folder):
    original = folder / "a/0.png"
    shutil.copy(original, folder / "copy.png")
    Image.open(original).resize((96, 96)).save(folder / "large.png")
    for n in range(60):  # more copies than a first look takes in
        shutil.copy(original, folder / f"b/copy {n}.png")
    with ImageIndex.build(clip, folder) as index:
        best, second, *_ = index.search(image=original, k=3, alike=0.999)
        assert len(best.alike) == 62
        assert second.score < 0.999
        assert len(index.search(image=original, k=5, alike=None)) == 5


def test_an_index_among_its_pictures_leaves_itself_out(clip, folder):
    ImageIndex.build(clip, folder, folder / "index").close()
    save(folder / "index/vectors/odd.png", 5)
    with ImageIndex.build(clip, folder, folder / "index") as index:
        assert index.report.unchanged == len(index) == 12
        assert not index.report.left_out


def test_listed_pictures_are_all_that_is_updated(clip, folder, tmp_path):
    paths = [folder / "a/0.png", folder / "b/1.png"]
    ImageIndex.build(clip, paths, tmp_path / "index").close()
    with ImageIndex.open(tmp_path / "index", clip) as index:
        paths[0].unlink()
        assert index.update().deleted == 1
        assert len(index) == 1


def test_another_encoder_is_refused_with_both_names_and_the_cure(clip, folder, tmp_path):
    ImageIndex.build(clip, folder, tmp_path / "index").close()
    other = AltCLIP.from_pretrained(tiny_altclip_folder(tmp_path / "other", seed=1), device="cpu")
    assert other.dim == clip.dim
    with pytest.raises(BadRequest) as refusal:
        ImageIndex.open(tmp_path / "index", other)
    text = str(refusal.value)
    assert text.startswith("index: ")
    assert clip.fingerprint[:12] in text
    assert other.fingerprint[:12] in text
    assert f"altdiffusion index {folder} -o NEW" in text


def test_the_encoder_that_made_an_index_is_found_again(shared_folder, clip, folder, tmp_path):
    ImageIndex.build(clip, folder, tmp_path / "index", model=str(shared_folder)).close()
    with ImageIndex.open(tmp_path / "index") as index:
        assert index.clip.fingerprint == clip.fingerprint


def test_a_disk_that_is_not_there_does_not_empty_the_index(clip, folder, tmp_path):
    with ImageIndex.build(clip, folder, tmp_path / "index") as index:
        folder.rename(tmp_path / "away")
        with pytest.raises(BadRequest, match=r"^index: its folder of pictures, .*, is not there$"):
            index.update()
        folder.mkdir()
        with pytest.raises(BadRequest, match=r"^index: none of its 12 pictures is left in"):
            index.update()
        assert len(index) == 12


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become nobody and back")
def test_what_cannot_be_read_now_is_kept_and_told(clip, folder, tmp_path):
    save(folder / "open.png", 77)
    with ImageIndex.build(clip, folder, tmp_path / "index") as index:
        for path in (tmp_path / "index", *(tmp_path / "index").rglob("*")):
            path.chmod(0o777)
        (folder / "a").chmod(0)
        (folder / "b/1.png").chmod(0)
        os.utime(folder / "b/1.png", (1, 1))
        for parent in (folder, *folder.parents):
            if parent.owner() == "root" and parent != Path("/") and parent.stat().st_mode & 0o77 == 0:
                parent.chmod(0o711 if parent != folder else 0o755)
        os.seteuid(65534)
        try:
            report = index.update()
        finally:
            os.seteuid(0)
        assert report.left_out["unreadable folder"].first == ("a (Permission denied)",)
        assert report.left_out["unreadable"].first == ("b/1.png (Permission denied)",)
        assert len(index) == 13


def test_no_picture_at_all_makes_no_index(clip, tmp_path):
    (tmp_path / "p").mkdir()
    (tmp_path / "p/x.txt").write_text("hello")
    with pytest.raises(BadRequest, match=r"^folder: '.*' holds no picture \(1 not a picture: x.txt\)$"):
        ImageIndex.build(clip, tmp_path / "p", tmp_path / "index")
    assert not (tmp_path / "index").exists()


def test_an_index_of_other_pictures_is_not_gone_on_with(clip, folder, tmp_path):
    ImageIndex.build(clip, folder, tmp_path / "index").close()
    with pytest.raises(BadRequest, match=r"^folder: .* is not what the index .* is of"):
        ImageIndex.build(clip, folder / "a", tmp_path / "index")
    with pytest.raises(BadRequest, match=r"^url: 'http://localhost:6333' is not what"):
        ImageIndex.build(clip, folder, tmp_path / "index", url="http://localhost:6333")
    with pytest.raises(BadRequest, match=r"^output: .* is there and no index"):
        ImageIndex.build(clip, folder, folder)
    with pytest.raises(BadRequest, match=r"^url: 'ftp://x'; allowed a Qdrant server"):
        ImageIndex.build(clip, folder, tmp_path / "other", url="ftp://x")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[:-5], r"^index: .* is damaged \(index.json is not JSON\)$"),
        (lambda text: "[]", r"^index: .* has the format None; allowed 1$"),
        (lambda text: json.dumps(json.loads(text) | {"dim": "x"}), r"^index: .* is damaged \(dim: "),
        (
            lambda text: json.dumps(json.loads(text) | {"dim": 5}),
            r"^index: .* is damaged \(image_mean is not 5",
        ),
        (
            lambda text: json.dumps(json.loads(text) | {"format": 2}),
            r"^index: .* has the format 2; allowed 1$",
        ),
    ],
)
def test_a_damaged_manifest_is_refused_in_one_line(clip, folder, tmp_path, damage, message):
    ImageIndex.build(clip, folder, tmp_path / "index").close()
    file = tmp_path / "index/index.json"
    file.write_text(damage(file.read_text()))
    with pytest.raises(BadRequest, match=message):
        ImageIndex.open(tmp_path / "index")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({}, r"^text: nothing to search for"),
        ({"text": " "}, r"^text: ' ' is empty"),
        ({"text": "x" * 3000}, r"^text: .* has 3,000 characters"),
        ({"text": "x", "k": 0}, r"^k: 0; allowed a whole number from 1 to 1000"),
        ({"text": "x", "k": 2**70}, r"^k: "),
        ({"text": "x", "weight": float("nan")}, r"^weight: nan; allowed a number from 0 to 1"),
        ({"text": "x", "alike": 1.5}, r"^alike: 1.5; allowed a number from 0 to 1"),
        ({"image": "http://127.0.0.1/x.png"}, r"^image: .* is an address"),
        ({"image": []}, r"^image: an empty list"),
        ({"text": "x", "more": ""}, r"^more: '' is empty"),
    ],
)
def test_a_mistake_is_told_before_any_model_work(clip, folder, asked, message, monkeypatch):
    with ImageIndex.build(clip, folder) as index:
        monkeypatch.setattr(index, "_clip", None)
        monkeypatch.setattr(AltCLIP, "from_pretrained", None)
        with pytest.raises(ValueError, match=message):
            index.search(**asked)


def killed(trials: int, tmp_path: Path) -> list[dict]:
    command = [sys.executable, "-m", "tests.retrieval.killing", str(tmp_path), str(trials)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def check_kills(trials: list[dict]):
    for trial in trials:
        assert trial["found"] >= trial["acknowledged"], trial
        assert trial["unchanged"] == trial["found"], trial
        assert trial["whole"], trial
    assert any(0 < trial["acknowledged"] < trial["of"] for trial in trials)


@pytest.mark.timeout(900)
def test_what_was_acknowledged_before_a_kill_is_there_and_the_build_goes_on(tmp_path):
    check_kills(killed(5, tmp_path))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_thirty_kills_lose_nothing(tmp_path):
    trials = killed(30, tmp_path)
    assert len(trials) == 30
    check_kills(trials)
