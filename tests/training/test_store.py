"""The store of what frozen models made: shared, whole or not at all, and refused where there is no room."""

import logging
import shutil
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch

from training import store
from training.store import Store, check_room, share_of_names

NAMES = ["", "a cat", "一只猫", "a " * 300, "\ud800"]


def tensor(number: int) -> torch.Tensor:
    return torch.randn(number + 1, 8, generator=torch.Generator().manual_seed(number))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_is_written_is_read_bit_for_bit(tmp_path, dtype):
    kept = Store(tmp_path / "new" / "store", dtype)
    kept.write((name, tensor(number)) for number, name in enumerate(NAMES))
    assert "a cat" not in kept  # until it is read
    again = Store(tmp_path / "new" / "store", dtype)
    for number, name in enumerate(NAMES):
        assert name in again and again[name].equal(tensor(number).to(dtype))
    assert "a dog" not in again
    with pytest.raises(KeyError):
        again["a dog"]


def test_parts_of_several_writers_are_one_table(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "PART_BYTES", 100)  # a part for every one or two of them
    one, two = Store(tmp_path, torch.float32), Store(tmp_path, torch.float32)
    one.write((str(n), tensor(n)) for n in range(0, 9, 2))
    two.write((str(n), tensor(n)) for n in range(9))
    assert len(list(tmp_path.glob("part-*"))) > 8
    one.read()
    assert all(one[str(n)].equal(tensor(n)) for n in range(9))


def test_each_name_belongs_to_one_process_whatever_is_there_already():
    names = [str(n) for n in range(200)]
    shares = [set(share_of_names(names, process, 3)) for process in range(3)]
    assert set().union(*shares) == set(names) and sum(map(len, shares)) == 200
    assert all(40 < len(share) < 95 for share in shares)
    assert set(share_of_names(names[50:], 1, 3)) <= shares[1]


@pytest.mark.parametrize("damage", ["values.bin", "keys.npy", "shapes.npy"])
def test_a_part_that_a_power_cut_emptied_is_passed_over_and_made_again(tmp_path, caplog, damage):
    kept = Store(tmp_path, torch.float32)
    kept.write([("a", tensor(1))])
    kept.write([("b", tensor(2))])
    part = next(p for p in tmp_path.glob("part-*") if "a" in only(p, tmp_path / "alone"))
    with (part / damage).open("r+b") as file:
        file.truncate(0)
    kept.read()
    assert "a" not in kept and kept["b"].equal(tensor(2))
    assert f"{part} is passed over" in caplog.text
    kept.write([("a", tensor(1))])
    kept.read()
    assert kept["a"].equal(tensor(1))


def only(part, folder) -> Store:
    """A store of this part alone."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(part, folder / part.name)
    return Store(folder, torch.float32)


def test_a_writer_that_is_killed_leaves_no_half_part(tmp_path):
    code = f"""
import torch
from training import store
store.PART_BYTES = 1
kept = store.Store(__import__("pathlib").Path({str(tmp_path)!r}), torch.float32)
kept.write((str(n), torch.full((64, 64), float(n))) for n in range(10**6))
"""
    writer = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 120
    while len(list(tmp_path.glob("part-*"))) < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    writer.kill()
    writer.wait()
    kept = Store(tmp_path, torch.float32)
    count = len(list(tmp_path.glob("part-*")))
    assert count >= 5 and all(kept[str(n)].equal(torch.full((64, 64), float(n))) for n in range(count))


def test_a_disk_without_room_is_refused_in_one_line(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "training.store")
    check_room(tmp_path / "not" / "there", 5_000, "3 text states")
    assert "3 text states take 5.0 kB in" in caplog.text and "are free" in caplog.text
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2_000_000))
    message = r"^cache: .* has 2\.0 MB free of the 3\.5 GB that 7 text states may take; allowed a folder"
    with pytest.raises(ValueError, match=message):
        check_room(tmp_path, 3_500_000_000, "7 text states")
    with pytest.raises(ValueError, match=r"^output_dir: .* has 2\.0 MB free"):
        check_room(tmp_path, 3_500_000_000, "7 latents", "output_dir")
