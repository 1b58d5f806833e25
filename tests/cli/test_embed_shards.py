"""`altdiffusion embed --shards`: folders, TSV and tar files to files of features."""

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from altdiffusion import encoding, shards
from altdiffusion.model import AltCLIP
from tests.cli.conftest import Run
from tests.fakes import SENTENCES, tiny_altclip_folder

TEXTS = list(SENTENCES.values())[:5]


def picture(number: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, (40, 50, 3), dtype=np.uint8))


@pytest.fixture
def inputs(tmp_path: Path) -> list[str]:
    """A folder with a broken picture, a circular link and a text; a TSV and a tar of pictures with texts."""
    folder = tmp_path / "pictures"
    (folder / "below").mkdir(parents=True)
    for number in range(5):
        picture(number).save(folder / ("below" if number > 2 else ".") / f"{number}.png")
    (folder / "broken.jpg").write_bytes(b"no picture")
    (folder / "readme.txt").touch()
    (folder / "below" / "up").symlink_to(folder)
    lines = ["id\ttext\timage", *(f"{n}\t{text}\tpictures/{n}.png" for n, text in enumerate(TEXTS[:3]))]
    (tmp_path / "pairs.tsv").write_text("\n".join([*lines, f"3\t{TEXTS[3]}\t", "4\t\tnone.png"]) + "\n")
    with tarfile.open(tmp_path / "00000.tar", "w") as tar:
        for number, text in enumerate(TEXTS):
            image = io.BytesIO()
            picture(number).save(image, "PNG")
            for name, content in ((f"a/{number}.png", image.getvalue()), (f"a/{number}.txt", text.encode())):
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    return [str(tmp_path / name) for name in ("pictures", "pairs.tsv", "00000.tar")]


@pytest.fixture(scope="module")
def clip(shared_folder: Path) -> AltCLIP:
    return AltCLIP.from_pretrained(shared_folder)


def test_every_kind_of_shard_holds_the_features_of_its_rows(
    run: Run, shared_folder: Path, clip: AltCLIP, inputs: list[str], tmp_path: Path
):
    parquet = pytest.importorskip("pyarrow.parquet")
    model = ("--model", str(shared_folder))
    code, out, err = run("embed", "--shards", *inputs, "-o", "out", "--format", "parquet", *model)
    assert code == 0
    assert out.splitlines() == [f"out/{n}.parquet" for n in ("pictures-00000", "pairs", "00000")]
    assert "pictures-00000: 1 of 6 rows could not be used" in err and "broken.jpg" in err
    assert "pairs: 1 of 5 rows could not be used" in err
    images = clip.encode_image([picture(n) for n in range(5)]).tolist()
    texts = clip.encode_text(TEXTS).tolist()
    tables = {
        name: parquet.read_table(tmp_path / f"out/{name}.parquet").to_pydict()
        for name in ("pictures-00000", "pairs", "00000")
    }
    assert tables["pictures-00000"]["key"] == [
        "0.png",
        "1.png",
        "2.png",
        "broken.jpg",
        "below/3.png",
        "below/4.png",
    ]
    same(tables["pictures-00000"]["image_embedding"], [*images[:3], None, *images[3:]])
    same(tables["pictures-00000"]["text_embedding"], [None] * 6)
    same(tables["pairs"]["image_embedding"], [*images[:3], None, None])
    same(tables["pairs"]["text_embedding"], [*texts[:4], None])
    same(tables["00000"]["image_embedding"], images)
    same(tables["00000"]["text_embedding"], texts)
    assert tables["00000"]["text"] == TEXTS
    assert "none.png" in tables["pairs"]["error"][4]


def same(found: list, expected: list) -> None:
    assert [vector is None for vector in found] == [vector is None for vector in expected]
    for one, other in zip(found, expected, strict=True):
        assert one is None or one == pytest.approx(other, abs=1e-5)


def test_arrays_come_with_the_keys_of_their_rows(
    run: Run, shared_folder: Path, inputs: list[str], tmp_path: Path
):
    model = ("--model", str(shared_folder))
    assert run("embed", "--shards", inputs[1], "-o", "out", "--format", "npy", *model)[0] == 0
    notes = json.loads((tmp_path / "out/pairs.json").read_text())
    assert notes["image_keys"] == ["line 2", "line 3", "line 4"]
    assert notes["text_keys"] == [f"line {n}" for n in range(2, 6)]
    assert np.load(tmp_path / "out/pairs.npy").shape == (3, 16)
    assert np.load(tmp_path / "out/pairs.text.npy").shape == (4, 16)
    assert set(notes["errors"]) == {"line 6"}


@pytest.mark.parametrize("form", ["npy", "parquet"])
def test_finished_shards_are_skipped_and_another_models_are_refused(
    run: Run,
    shared_folder: Path,
    inputs: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    form: str,
):
    encoded = []
    whole = encoding.encode_rows

    def counted(clip, rows):
        encoded.append(1)
        if len(encoded) == 3:
            raise KeyboardInterrupt
        return whole(clip, rows)

    monkeypatch.setattr(encoding, "encode_rows", counted)
    arguments = ("embed", "--shards", *inputs, "-o", "out", "--format", form)
    model = ("--model", str(shared_folder))
    assert run(*arguments, *model)[0] == 130
    assert run(*arguments, *model)[0] == 0
    assert len(encoded) == 4
    assert run(*arguments, *model)[0] == 0
    assert len(encoded) == 4
    assert not list((tmp_path / "out").glob(".*"))
    other = tiny_altclip_folder(tmp_path / "other", seed=1)
    code, _, err = run(*arguments, "--model", str(other))
    assert code == 2
    assert err.startswith("output: ") and "is by the model" in err


def test_large_folders_are_cut_into_shards_in_the_same_order_everywhere(inputs: list[str]):
    cut = shards.shards_of(inputs[:1], per_shard=4)
    assert [shard.name for shard in cut] == ["pictures-00000", "pictures-00001"]
    keys = [row.key for shard in cut for row in shard.rows()]
    assert keys == [row.key for row in shards.shards_of(inputs[:1])[0].rows()]


def test_stretches_do_not_change_the_features(clip: AltCLIP, inputs: list[str]):
    (shard,) = shards.shards_of(inputs[2:])
    whole, cut = (encoding.encode_rows(clip, shard.rows(), stretch) for stretch in (1024, 2))
    assert whole.keys == cut.keys
    same(cut.image_vectors, whole.image_vectors)
    same(cut.text_vectors, whole.text_vectors)


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("format", ["--shards", "pictures", "-o", "out"]),
        ("output", ["--shards", "pictures", "--format", "npy"]),
        ("output", ["--shards", "pictures", "--format", "npy", "-o", "pairs.tsv"]),
        ("shards", ["--shards", "none", "--format", "npy", "-o", "out"]),
        ("shards", ["--shards", "empty", "--format", "npy", "-o", "out"]),
        ("shards", ["--shards", "pairs.tsv", "pairs.tsv", "--format", "npy", "-o", "out"]),
        ("shards", ["a text", "--shards", "pictures", "--format", "npy", "-o", "out"]),
    ],
)
def test_mistakes_are_refused_before_the_model(run: Run, inputs: list[str], tmp_path: Path, name, arguments):
    (tmp_path / "empty").mkdir()
    code, out, err = run("embed", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"{name}: ") and err.count("\n") == 1


@pytest.mark.parametrize("fault", ["columns", "tar"])
def test_inputs_that_are_none_are_refused_by_name(
    run: Run, shared_folder: Path, inputs: list[str], fault: str
):
    file = Path(inputs[1 if fault == "columns" else 2])
    file.write_text("a\tb\n1\t2\n")
    arguments = ("--format", "npy", "-o", "out", "--model", str(shared_folder))
    code, _, err = run("embed", "--shards", str(file), *arguments)
    assert code == 2
    assert err.startswith("shards: ")


@pytest.mark.slow
def test_two_processes_share_the_shards(shared_folder: Path, inputs: list[str], tmp_path: Path):
    """accelerate 1.15 starts no two processes on CPUs, torchrun does."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "altdiffusion"]
    command += ["embed", "--shards", *inputs, "-o", str(tmp_path / "two"), "--format", "npy"]
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [*command, "--model", str(shared_folder)],
        env={**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    assert {file.stem for file in (tmp_path / "two").glob("*.json")} == {"pictures-00000", "pairs", "00000"}
    assert sorted(Path(line).name for line in done.stdout.splitlines()) == [
        "00000.npy",
        "pairs.npy",
        "pictures-00000.npy",
    ]
