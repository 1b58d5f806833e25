"""kill -9 at random moments of a run that saves after every step: what is left always loads."""

import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from altdiffusion import bundled, checkpoints
from tests.reliability.conftest import Tally
from tests.reliability.saved.trying import tried
from tests.training import toy
from training.checkpoints import damaged, latest_checkpoint, save_checkpoint

STEPS = 100_000
MORE = "--run.ema-decay 0.9 --run.checkpointing-steps 1 --width 64 --run.threads 1"


def train_on(folder: Path, told) -> None:
    """Trains, and tells each step before it is saved."""

    def each(run, loss):
        os.write(told, f"{run.progress.step}\n".encode())
        return loss

    toy.train(toy.config(folder, STEPS, MORE), each)


def killed(context, folder: Path, steps: int, after: float) -> tuple[int, float]:
    """Goes on with the run and kills it so long after it began its `steps`th step.

    Gives the step that it was at, and the seconds that one took with its checkpoint.
    """
    told, tell = os.pipe()
    process = context.Process(target=train_on, args=(folder, tell))
    process.start()
    os.close(tell)
    with os.fdopen(told) as lines:
        said = [int(lines.readline())]
        since = time.perf_counter()
        said += [int(lines.readline()) for _ in range(steps)]
        pace = (time.perf_counter() - since) / max(1, steps)
        time.sleep(after)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        said += [int(line) for line in lines]
    return said[-1], pace


def trials(folder: Path, count: int, tally: Tally) -> int:
    """Kills one run again and again, looks at what is left each time, and returns its last whole step."""
    context, draw = multiprocessing.get_context("fork"), random.Random(0)
    _, pace = killed(context, folder, 5, 0.0)
    last = latest_checkpoint(folder)[1]
    for _ in range(count):
        at, _ = killed(context, folder, draw.randrange(2), draw.uniform(0, 1.5 * pace))
        with tried(tally, f"kill at step {at}"):
            path, step = latest_checkpoint(folder)
            assert damaged(path) is None and not list(folder.glob(".tmp*"))
            assert max(at, last) <= step <= at + 1, "more than one interval is lost"
            last = step
    return last


@pytest.mark.timeout(1800)
def test_kills_lose_no_more_than_a_step_each(tmp_path, tally, amount):
    """The run that was killed so often has the weights of one that never was."""
    count, tries, folder = tally("D1 killed saves of a training"), amount(20, 100), tmp_path
    last = trials(folder / "killed", tries, count)
    count.check(tries)
    assert last >= tries // 4
    toy.train(toy.config(folder / "whole", last, MORE.replace("steps 1", "steps 100000")))
    names = ("killed", "whole")
    killed_, whole = (load_file(folder / n / f"checkpoint-{last:08d}/model.safetensors") for n in names)
    assert all(killed_[name].equal(whole[name]) for name in whole)


def save_for_ever(folder: Path) -> None:
    for step in range(1, 1_000_000):
        save_checkpoint(folder, step, lambda stage: (stage / "part").write_bytes(os.urandom(200_000)), keep=2)


def test_a_kill_at_any_moment_of_the_saver_leaves_a_whole_checkpoint(tmp_path, tally, amount):
    count, tries = tally("D1 killed saves, one after the other"), amount(20, 100)
    context = multiprocessing.get_context("fork")
    for trial in range(tries):
        folder = tmp_path / str(trial)
        save_checkpoint(folder, 0, lambda stage: (stage / "part").write_bytes(b"start"), keep=2)
        process = context.Process(target=save_for_ever, args=(folder,))
        process.start()
        time.sleep(0.02 + 0.26 * trial / tries)
        steps = [int(p.name[-8:]) for p in folder.glob("checkpoint-*")]
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        with tried(count, f"trial {trial}"):
            found = latest_checkpoint(folder)
            assert found is not None and found[1] >= max(steps, default=0) - 1
            assert damaged(found[0]) is None and not list(folder.glob(".tmp*"))
    count.check(tries)


def export_for_ever(pipeline, folder: Path, told: int) -> None:
    torch.set_num_threads(1)
    for number in range(1_000_000):
        os.write(told, b"s")
        pipeline.save_pretrained(folder / str(number))


def test_a_kill_leaves_whole_model_folders_and_no_half_one(shared_pipeline, tmp_path, tally, amount):
    """What has its name loads and is what was saved; what lies aside goes with the next save."""
    count, tries = tally("D1 killed exports of a model"), amount(4, 30)
    context, draw = multiprocessing.get_context("fork"), random.Random(0)
    for trial in range(tries):
        folder = tmp_path / str(trial)
        read, write = os.pipe()
        process = context.Process(target=export_for_ever, args=(shared_pipeline, folder, write))
        process.start()
        os.close(write)
        os.read(read, 1)
        time.sleep(draw.uniform(0, 0.4))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        os.close(read)
        with tried(count, f"trial {trial}"):
            for made in folder.glob("[0-9]*"):
                bundled.verify(made)
                assert checkpoints.load_parts(checkpoints.find(made), {}, dtype=torch.float32)
            shared_pipeline.save_pretrained(folder / "next")
            assert not list(folder.glob(".tmp*"))
    count.check(tries)
