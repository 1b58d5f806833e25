"""Batches made ahead by other processes: the same ones, and what is wrong with them is told as ever."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.training.conftest import flags
from tests.training.data_files import image_folder, tar_shards
from tests.training.stages import differences, losses, state
from training.config import parse, save
from training.contrast import ContrastConfig, train
from training.text_to_image import TextToImageConfig


def config(folder, altclip, data, more="") -> ContrastConfig:
    return parse(ContrastConfig, flags(folder, 4, f"--model {altclip} --size 32 --data {data} {more}"))


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    """Twelve pictures, two of which end in their middle."""
    folder = image_folder(tmp_path_factory.mktemp("data") / "pictures", 12)
    for name in ("p003.png", "p007.png"):
        (folder / name).write_bytes((folder / name).read_bytes()[:900])
    return folder


def test_workers_change_no_bit_and_each_damaged_picture_is_counted_once(altclip, damaged, tmp_path, caplog):
    named = {}
    for workers in (0, 2):
        caplog.clear()
        folder = tmp_path / str(workers)
        train(config(folder, altclip, damaged, f"--reading.max-bad-share 0.5 --run.workers {workers}"))
        told = [record.getMessage() for record in caplog.records]
        named[workers] = sorted(line for line in told if line.startswith("skipped: "))
    assert len(named[0]) == 2 and named[0] == named[2]
    assert differences(state(tmp_path / "0", 4), state(tmp_path / "2", 4)) == []


def test_too_many_damaged_pictures_stop_the_run_in_one_line(altclip, damaged, tmp_path):
    with pytest.raises(ValueError, match=r"^data: 2 of 12 samples cannot be used.*\Z") as stopped:
        train(config(tmp_path, altclip, damaged, "--reading.max-bad-share 0.1 --run.workers 2"))
    assert "\n" not in str(stopped.value)
    assert multiprocessing.active_children() == []


def test_a_workers_own_mistake_is_told_in_one_line(altclip, tmp_path):
    folder = image_folder(tmp_path / "pictures", 4)
    for picture in folder.glob("*.png"):
        picture.write_bytes(picture.read_bytes()[:900])
    with pytest.raises(ValueError, match=r"^data: none of the 4 samples of a batch can be used\Z"):
        train(config(tmp_path / "out", altclip, folder, "--reading.max-bad-share 0.99 --run.workers 1"))


def test_what_workers_cannot_do_is_refused(drawing, tmp_path, capsys):
    tars = tar_shards(tmp_path / "tars")
    places = f"--text {drawing / 'altclip'} --vae {drawing / 'vae'} --data {tars} --reading.streaming True"
    for more, message in (
        (f"{places} --run.workers 2", "run.workers: 2 with reading.streaming True"),
        (f"{places} --run.workers -1", "workers: -1; allowed: 0 and up"),
    ):
        with pytest.raises(SystemExit) as stopped:
            parse(TextToImageConfig, flags(tmp_path, 1, more))
        assert stopped.value.code == 2
        assert message in " ".join(capsys.readouterr().err.replace("│", "").split())


@pytest.mark.slow
def test_a_signal_to_all_of_a_jobs_processes_still_saves(altclip, damaged, tmp_path):
    more = "--reading.max-bad-share 0.5 --run.workers 2 --run.max-train-steps 100000"
    save(config(tmp_path / "run", altclip, damaged, more), tmp_path / "config.yaml")
    stage = [sys.executable, "-m", "training.contrast", "--config", str(tmp_path / "config.yaml")]
    job = subprocess.Popen(stage, stderr=subprocess.PIPE, text=True, start_new_session=True)
    metrics = tmp_path / "run/metrics.jsonl"
    while not metrics.is_file():
        assert job.poll() is None
        time.sleep(0.1)
    os.killpg(job.pid, signal.SIGTERM)
    _, error = job.communicate(timeout=120)
    assert job.returncode == 128 + signal.SIGTERM, error[-2000:]
    assert (tmp_path / f"run/checkpoint-{len(losses(tmp_path / 'run')):08d}").is_dir()
