"""One of two processes ends badly, with nobody to end the other one: it ends by itself, soon, and says why.

What torchrun does about it is in tests/training/test_processes.py.
"""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.reliability.saved.trying import tried

CASES = [(1, 0, "raises"), (1, 3, "refuses"), (0, 2, "raises"), (1, 1, "is killed"), (1, 2, "has no memory")]
ROOT = Path(__file__).parents[3]
#: Seconds from the first end to the last one.
SOON = 30


def started(folder: Path, rank: int, port: int, case: tuple[int, int, str]) -> subprocess.Popen:
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
    }
    command = [sys.executable, "-m", "tests.reliability.saved.failing", str(folder / "run"), *map(str, case)]
    with (folder / f"said-{rank}").open("w") as said:
        return subprocess.Popen(command, env=environment, cwd=ROOT, stdout=said, stderr=said)


def ended(processes: list[subprocess.Popen], seconds: float) -> list[float]:
    """When each ended."""
    times: list[float | None] = [None, None]
    until = time.monotonic() + seconds
    while None in times and time.monotonic() < until:
        for number, process in enumerate(processes):
            if times[number] is None and process.poll() is not None:
                times[number] = time.monotonic()
        time.sleep(0.1)
    return [when if when is not None else float("inf") for when in times]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_where_one_process_ends_badly_the_other_ends_too(tmp_path, tally):
    count = tally("D8 one of two processes ends badly")
    for number, case in enumerate(CASES):
        folder = tmp_path / str(number)
        folder.mkdir()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        processes = [started(folder, rank, port, case) for rank in (0, 1)]
        try:
            times = ended(processes, 240)
        finally:
            for process in processes:
                process.kill()
                process.wait()
        said = [(folder / f"said-{rank}").read_text() for rank in (0, 1)]
        with tried(count, f"{case}", "refused"):
            assert abs(times[0] - times[1]) < SOON, times
            assert all(process.returncode != 0 for process in processes)
            if case[2] in ("raises", "refuses"):
                assert "the first cause" in said[case[0]]
    count.check(len(CASES))
