"""Pictures with captions: sizes, samples, what is skipped, the stored latents, streams."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import config
from PIL import Image
from torch.testing import assert_close

from altdiffusion.images import open_image
from tests.fakes import tiny_vae
from tests.training import data_files
from training import data
from training.buckets import bucket_sizes, fitted, nearest
from training.config import RunConfig
from training.latent_store import stored_latents
from training.pictures import PicturesConfig, as_pixels, encoded, picture_reader
from training.samples import Bad
from training.sources import open_rows
from training.streams import Share, replaced

RUN = RunConfig(batch_size=4)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(scope="module")
def vae():
    return tiny_vae()


@dataclass
class State:
    """One of several processes, as accelerate tells them apart."""

    process_index: int
    num_processes: int
    device: str = "cpu"
    is_main_process: bool = False

    def wait_for_everyone(self) -> None: ...


def samples(source: Path, vae, cache: Path, *, run: RunConfig = RUN, **fields):
    reading = PicturesConfig(**{"resolution": 32, **fields})
    return data.image_captions(data.open_pictures(str(source), reading), run, vae, None, cache)


def latents_of(vae, path: Path, size=(32, 32)) -> torch.Tensor:
    return encoded(vae, as_pixels(open_image(path), size)[None])[0]


def test_a_picture_is_scaled_to_cover_and_cut_in_the_middle():
    wide = Image.new("RGB", (80, 20), "red")
    wide.paste("blue", (20, 0, 60, 20))
    assert fitted(wide, (40, 40)).getcolors() == [(1600, (0, 0, 255))]
    assert nearest(80, 40, [(32, 32), (24, 48), (48, 24)]) == 1
    assert bucket_sizes(512, "") == [(512, 512)]
    assert all(h % 64 == 0 and w % 64 == 0 for h, w in bucket_sizes(512, "auto"))
    assert len(bucket_sizes(64, "auto")) > 3


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"resolution": 100}, r"^resolution: 100 is no multiple of 8; allowed: 8, 16"),
        ({"buckets": "wide"}, r"^buckets: .*'wide'.*; allowed: \"auto\" or"),
        ({"buckets": "64,65"}, r"^buckets: 64,65 are no multiples of 8$"),
    ],
)
def test_sizes_that_no_latents_have_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        PicturesConfig(**fields)


def test_a_column_without_pictures_is_refused_with_the_choices(tmp_path):
    data_files.write_lines(tmp_path / "metadata.jsonl", [{"file": "a.png", "caption": "x"}])
    with pytest.raises(ValueError, match=r"^image_column: none found; allowed: file, caption$"):
        data.open_pictures(str(tmp_path), PicturesConfig())
    with pytest.raises(ValueError, match=r"^image_column: no 'img'; allowed: file, caption$"):
        data.open_pictures(str(tmp_path), PicturesConfig(image_column="img"))


@pytest.mark.parametrize("form", ["folder", "tars", "parquet"])
def test_each_caption_comes_with_its_own_picture(tmp_path, vae, form):
    pictures = data_files.image_folder(tmp_path / "pictures", 12)
    source = pictures
    if form == "tars":
        source = data_files.tar_shards(tmp_path / "tars")
    elif form == "parquet":
        source = parquet_of(pictures, tmp_path / "a.parquet")
    dataset = samples(source, vae, tmp_path / "latents")
    seen = set()
    for index in range(36):
        latents, text = dataset[index]
        number = int(text.split()[-1])
        assert text in data_files.captions(number).values()
        assert_close(latents, latents_of(vae, pictures / f"p{number:03d}.png"), rtol=2e-3, atol=2e-3)
        seen.add(number)
    assert len(seen) == 12


def parquet_of(pictures: Path, path: Path) -> Path:
    from datasets import Dataset, Features, List, Value
    from datasets import Image as Picture

    features = Features(
        {"image": Picture(), "captions": List({"lang": Value("string"), "text": Value("string")})}
    )
    rows = [
        {
            "image": {"bytes": file.read_bytes(), "path": None},
            "captions": [{"lang": t, "text": x} for t, x in data_files.captions(number).items()],
        }
        for number, file in enumerate(sorted(pictures.glob("*.png")))
    ]
    Dataset.from_list(rows, features).to_parquet(path)
    return path


def test_a_sample_is_a_function_of_seed_and_index(tmp_path, vae):
    folder = data_files.image_folder(tmp_path / "pictures")
    one, two = (samples(folder, vae, tmp_path / "latents") for _ in range(2))
    for index in (50, 3, 17):
        assert one[index][1] == two[index][1] and one[index][0].equal(two[index][0])
    other = samples(folder, vae, tmp_path / "latents", run=RunConfig(batch_size=4, seed=1))
    assert [one[n][1] for n in range(20)] != [other[n][1] for n in range(20)]


def test_a_batch_lies_in_one_bucket_and_every_bucket_comes_in_its_share(tmp_path, vae):
    folder = data_files.image_folder(tmp_path / "p", 9, (32, 32))
    wide = data_files.image_folder(tmp_path / "wide", 3, (48, 24))
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    for number in range(3):
        shutil.copy(wide / f"p{number:03d}.png", folder / f"w{number}.png")
        rows.append({"file_name": f"w{number}.png", "caption": f"wide {number}"})
    data_files.write_lines(folder / "metadata.jsonl", rows)
    dataset = samples(folder, vae, tmp_path / "latents", buckets="32,32;24,48")
    shapes = []
    for batch in range(24):
        latents, texts = dataset.collate([dataset[4 * batch + place] for place in range(4)])
        shapes.append(tuple(latents.shape[2:]))
        assert all(text.startswith("wide") == (shapes[-1] == (6, 12)) for text in texts)
    assert shapes.count((6, 12)) == 6 and shapes.count((8, 8)) == 18


def test_unusable_pictures_are_skipped_counted_and_named(tmp_path, vae, caplog):
    folder = data_files.image_folder(tmp_path / "pictures", 10)
    whole = (folder / "p001.png").read_bytes()
    (folder / "p001.png").write_bytes(whole[: len(whole) // 2])
    (folder / "p002.png").unlink()
    (folder / "p003.png").write_text("no picture at all")
    dataset = samples(folder, vae, tmp_path / "latents", max_bad_share=0.3)
    texts = {dataset[n][1] for n in range(100)}
    assert not [text for text in texts if int(text.split()[-1]) in (1, 2, 3)]
    for name in ("p001.png", "p002.png", "p003.png"):
        assert any(name in message for message in caplog.messages), name
    again = data.open_pictures(str(folder), PicturesConfig(resolution=32, max_bad_share=0.2))
    with pytest.raises(ValueError, match=r"^data: 3 of 10 samples cannot be used.*p001"):
        data.image_captions(again, RUN, vae, None, tmp_path / "latents")


def test_latents_are_kept_until_a_picture_changes(tmp_path, vae, monkeypatch):
    folder = data_files.image_folder(tmp_path / "pictures", 5)
    before = samples(folder, vae, tmp_path / "latents")[3]
    with monkeypatch.context() as patch:
        patch.setattr(vae, "encode", None)
        after = samples(folder, vae, tmp_path / "latents")[3]
        assert before[0].equal(after[0])
        (folder / "p000.png").write_bytes(data_files.picture(99))
        with pytest.raises(TypeError):
            samples(folder, vae, tmp_path / "latents")


def test_latents_that_the_disk_has_no_room_for_are_refused(tmp_path, vae, monkeypatch):
    folder = data_files.image_folder(tmp_path / "pictures", 5)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2559))
    message = r"^output_dir: .* has 2\.6 kB free of the 2\.6 kB that latents of 5 pictures may take; allowed "
    with pytest.raises(ValueError, match=message):
        samples(folder, vae, tmp_path / "latents")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2560))
    samples(folder, vae, tmp_path / "latents")
    assert sum(file.stat().st_size for file in tmp_path.glob("latents/*/*/*.bin")) == 2560


def test_two_processes_share_the_encoding_and_read_what_one_reads(tmp_path, vae):
    folder = data_files.image_folder(tmp_path / "pictures", 9)
    rows, sizes = open_rows(str(folder)), [(32, 32)]
    source, wanted = picture_reader(rows.folder, rows.columns, PicturesConfig()), np.arange(9)

    def store(name: str, state: State):
        bad = Bad(0.0, 9)
        return stored_latents(vae, rows, source, wanted, sizes, bad, tmp_path / name, state)

    (alone,) = store("one", State(0, 1))
    store("two", State(0, 2))
    (both,) = store("two", State(1, 2))
    assert both.records.tolist() == alone.records.tolist() == list(range(9)) and len(both.parts) == 2
    for record in range(9):
        assert_close(both[record], alone[record], rtol=2e-3, atol=2e-3)


TWO = Share(size=2)


def streamed(source: Path, vae, share: Share = TWO, **fields):
    reading = PicturesConfig(resolution=32, streaming=True, shuffle_buffer=3, **fields)
    dataset = samples_of_stream(source, reading, vae)
    dataset.stream.share = share
    return dataset


def samples_of_stream(source: Path, reading: PicturesConfig, vae):
    return data.image_captions(data.open_pictures(str(source), reading), RUN, vae, None, source)


def test_a_stream_goes_on_exactly_where_it_was(tmp_path, vae):
    tars = data_files.tar_shards(tmp_path / "tars")
    dataset = streamed(tars, vae)
    whole = [dataset[n] for n in range(30)]
    resumed = streamed(tars, vae)
    for index in (17, 18, 29):
        assert resumed[index][1] == whole[index][1] and resumed[index][0].equal(whole[index][0])
    numbers = [int(text.split()[-1]) for _, text in whole]
    assert sorted(numbers[:12]) == sorted(numbers[12:24]) == list(range(12))
    assert numbers[:12] != numbers[12:24]


def test_two_processes_read_different_files_of_a_stream(tmp_path, vae):
    tars = data_files.tar_shards(tmp_path / "tars")
    numbers = []
    for process in range(2):
        dataset = streamed(tars, vae, Share(process=process, processes=2, size=2))
        own = [n for n in range(12) if n // 2 % 2 == process]
        numbers.append({int(dataset[n][1].split()[-1]) for n in own})
    assert not numbers[0] & numbers[1] and len(numbers[0] | numbers[1]) == 12


def test_a_damaged_picture_of_a_stream_is_replaced_within_its_batch(tmp_path, vae, caplog):
    tars = data_files.tar_shards(tmp_path / "tars", broken=[4])
    dataset = streamed(tars, vae, Share(size=4))
    pixels, texts = [], []
    for batch in range(3):
        shown, said = dataset.collate([dataset[4 * batch + place] for place in range(4)])
        pixels.append(shown)
        texts += said
    assert torch.cat(pixels).shape == (12, 3, 32, 32)
    assert "4" not in {text.split()[-1] for text in texts} and len(texts) == 12
    assert dataset.stream.bad.count == 1 and "damaged" in caplog.text
    with pytest.raises(ValueError, match=r"^data: 1 of 1000 samples cannot be used"):
        strict = streamed(tars, vae, Share(size=4), max_bad_share=0.0)
        [strict[n] for n in range(12)]
    with pytest.raises(ValueError, match=r"^data: none of the 2 samples of a batch"):
        replaced([None, None])


def test_check_reports_what_is_wrong(tmp_path, monkeypatch, capsys):
    folder = data_files.image_folder(tmp_path / "pictures", 6)
    (folder / "p004.png").write_bytes(b"broken")

    def said(*flags: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["data", "check", *flags])
        with pytest.raises(SystemExit) as done:
            data.main()
        return done.value.code, *capsys.readouterr()

    code, out, _ = said(str(folder), "--reading.resolution", "64")
    assert code == 1
    assert "en 6, " in out and "5 pictures will be enlarged" in out and "64x64 5" in out
    assert "p004.png" in out and "1 of 6 samples cannot be used: more than the share of 0.01" in out
    code, out, _ = said(str(folder), "--reading.max-bad-share", "0.2")
    assert code == 0 and "within the share of 0.2" in out
    code, _, err = said(str(tmp_path / "nothing"))
    assert code == 2 and err.startswith("data: no file or folder") and err.count("\n") == 1
