"""SIGTERM and Ctrl-C in any pass of any step: a checkpoint of the last whole step, then exit code 143 or 130.

The real process, with its folder's lock, is in tests/training/test_loop.py.
"""

import signal

import pytest

from tests.reliability.saved.trying import tried
from tests.training import toy
from training.checkpoints import damaged, latest_checkpoint

STEPS, PASSES = 5, 2
CASES = [
    (number, step, part, workers)
    for number in (signal.SIGTERM, signal.SIGINT)
    for step in range(STEPS)
    for part, workers in ((0, 0), (1, 0))
]


def stopped(folder, number: int, step: int, part: int) -> int:
    """Sends the signal in that pass of that step; gives the exit code."""

    def each(run, loss):
        if (run.progress.step, run.part) == (step, part) and not run.stop.number:
            signal.raise_signal(number)
        return loss

    more = f"--run.gradient-accumulation-steps {PASSES} --run.checkpointing-steps 1000"
    with pytest.raises(SystemExit) as ended:
        toy.train(toy.config(folder, STEPS, more), each)
    return ended.value.code


def test_a_signal_saves_the_last_whole_step_and_ends_with_its_number(tmp_path, tally):
    count = tally("D2 SIGTERM and SIGINT")
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    for number, step, part, _ in CASES:
        folder = tmp_path / f"{number}-{step}-{part}"
        with tried(count, f"{signal.Signals(number).name} at step {step}, pass {part}"):
            assert stopped(folder, number, step, part) == 128 + number
            whole = step + (part == PASSES - 1)
            path, found = latest_checkpoint(folder)
            assert found == whole and damaged(path) is None and not list(folder.glob(".tmp*"))
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
    count.check(20)
