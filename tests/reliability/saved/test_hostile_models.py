"""Model files that are hostile, damaged or another model's: refused by name in under a second, and none runs.

The cases are those of tests/test_bad_files.py, of every published layout, and more of what a file may try.
"""

import json
import pickle
import shutil
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from altdiffusion import AltCLIP, AltDiffusionPipeline
from tests import test_bad_files
from tests.fakes import tiny_altclip_folder
from tests.published import write
from tests.reliability.saved.trying import tried
from tests.test_reading import Mischief


class Command:
    """What a file may ask to be run as it is opened."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        import os

        return os.system, (f"touch {self.canary}",)


def header(file: Path, content: object, length: int | None = None) -> None:
    text = json.dumps(content).encode()
    file.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text)


def entry(shape: list, offsets: list) -> dict:
    return {"a": {"dtype": "F32", "shape": shape, "data_offsets": offsets}}


def pickled_inside_a_zip(file: Path) -> None:
    """A torch file by its form, with another pickle in it."""
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Command(file.with_name("canary"))))
        archive.writestr("archive/version", "3")


def with_a_command(file: Path) -> None:
    torch.save({"state_dict": {"a": Command(file.with_name("canary"))}}, file)


#: What becomes of a file of this ending.
FILES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "os.system in a torch file": (".ckpt", with_a_command),
    "os.system in a .bin": (".bin", with_a_command),
    "os.system in a .pt": (".pt", with_a_command),
    "os.system in a plain pickle": (
        ".ckpt",
        lambda file: file.write_bytes(pickle.dumps(Command(file.with_name("canary")))),
    ),
    "os.system under the name of safetensors": (".safetensors", with_a_command),
    "a pickle in a zip": (".ckpt", pickled_inside_a_zip),
    "a header of 1 TB": (".safetensors", lambda file: header(file, {}, 10**12)),
    "a header of 2**64 - 1": (".safetensors", lambda file: header(file, {}, 2**64 - 1)),
    "a header of the whole file": (".safetensors", lambda file: header(file, {}, 10**6)),
    "a header that is a list": (".safetensors", lambda file: header(file, [1])),
    "a header of 20,000 brackets": (
        ".safetensors",
        lambda file: file.write_bytes(struct.pack("<Q", 20_000) + b"[" * 20_000),
    ),
    "a negative shape": (".safetensors", lambda file: header(file, entry([-1, -1], [0, 4]))),
    "offsets beyond the end": (".safetensors", lambda file: header(file, entry([2**40], [0, 2**42]))),
    "offsets that run backwards": (".safetensors", lambda file: header(file, entry([0], [8, 0]))),
    "offsets that are texts": (".safetensors", lambda file: header(file, entry([1], ["0", "4"]))),
    "a shape that is a number": (
        ".safetensors",
        lambda file: header(file, {"a": {"dtype": "F32", "shape": 3}}),
    ),
    "an empty zip": (".ckpt", lambda file: zipfile.ZipFile(file, "w").close()),
}


@pytest.mark.parametrize("name", FILES)
def test_a_hostile_file_is_refused_and_runs_nothing(name, tmp_path, tally):
    ending, make = FILES[name]
    file = tmp_path / f"model{ending}"
    make(file)
    count = tally("F1 hostile model files")
    with tried(count, name, "refused"):
        refused(AltDiffusionPipeline, file, file.name, tmp_path)
    count.check(1)


def refused(kind: type, path: Path, named: str, folder: Path) -> None:
    start = time.process_time()
    with pytest.raises(ValueError, match=r"^model: ") as caught:
        kind.from_pretrained(path, device="cpu")
    assert time.process_time() - start < 1
    assert named in str(caught.value) and "\n" not in str(caught.value)
    assert not list(folder.rglob("canary"))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "config.json", "preprocessor_config.json"])
@pytest.mark.parametrize("content", ["a command", "[]", "null", "a bomb of brackets"])
def test_a_hostile_file_of_a_folder_is_refused_and_runs_nothing(name, content, tmp_path, tally):
    folder = tiny_altclip_folder(tmp_path / "model")
    (folder / name).unlink(missing_ok=True)
    if name.endswith(".bin"):
        (folder / "model.safetensors").unlink()
    if content == "a command":
        torch.save({"a": Mischief(folder / "canary")}, folder / name)
    else:
        (folder / name).write_text({"a bomb of brackets": "[" * 100_000}.get(content, content))
    count = tally("F1 hostile model files")
    with tried(count, f"{content} as {name}", "refused"):
        refused(AltCLIP, folder, name, tmp_path)
    count.check(1)


@pytest.fixture(scope="module")
def sources(published, tmp_path_factory) -> dict[str, Path]:
    made = tmp_path_factory.mktemp("sources")
    return {
        "torch": published("C", "m9"),
        "safetensors": write("C", made / "safetensors", "m9", safetensors=True),
        "altclip": published("A", "m9"),
        "pipeline": write("B", made / "sharded", "m9", shards=True),
    }


@pytest.mark.parametrize("source", ["torch", "safetensors", "altclip", "pipeline"])
def test_every_damage_of_a_published_model_is_refused(source, sources, tmp_path, tally):
    cases = getattr(test_bad_files, source.upper())
    path, count = sources[source], tally("F1 damaged model files")
    for name, (break_it, named) in cases.items():
        folder = tmp_path / name.replace(" ", "-")
        shutil.copytree(path if path.is_dir() else path.parent, folder)
        broken = folder if path.is_dir() else folder / path.name
        break_it(broken)
        with tried(count, f"{source} {name}", "refused"):
            refused(AltCLIP if source == "altclip" else AltDiffusionPipeline, broken, named, folder)
        shutil.rmtree(folder)
    count.check(len(cases))
