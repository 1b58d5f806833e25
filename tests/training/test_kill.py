"""kill -9 at random moments of a run that saves after every step: what is left always loads."""

import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.training import toy
from training.checkpoints import damaged, latest_checkpoint

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


def trials(folder: Path, count: int) -> int:
    """Kills one run again and again, looks at what is left each time, and returns its last whole step."""
    context, draw = multiprocessing.get_context("fork"), random.Random(0)
    _, pace = killed(context, folder, 5, 0.0)
    last = latest_checkpoint(folder)[1]
    for _ in range(count):
        at, _ = killed(context, folder, draw.randrange(2), draw.uniform(0, 1.5 * pace))
        path, step = latest_checkpoint(folder)
        assert damaged(path) is None and not list(folder.glob(".tmp*"))
        assert max(at, last) <= step <= at + 1, "more than one interval is lost"
        last = step
    return last


def check(folder: Path, count: int) -> None:
    """The run that was killed so often has the weights of one that never was."""
    last = trials(folder / "killed", count)
    assert last >= count // 4
    toy.train(toy.config(folder / "whole", last, MORE.replace("steps 1", "steps 100000")))
    names = ("killed", "whole")
    killed_, whole = (load_file(folder / n / f"checkpoint-{last:08d}/model.safetensors") for n in names)
    assert all(killed_[name].equal(whole[name]) for name in whole)


def test_twenty_kills_lose_no_more_than_a_step_each(tmp_path):
    check(tmp_path, 20)


@pytest.mark.slow
def test_a_hundred_kills_lose_no_more_than_a_step_each(tmp_path):
    check(tmp_path, 100)
