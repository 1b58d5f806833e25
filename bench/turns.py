"""Jobs that take turns, so that what a busy machine costs one of them it costs the others."""

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from tqdm import tqdm

Key, Found = TypeVar("Key", str, tuple[str, int]), TypeVar("Found")


def take_turns(jobs: dict[Key, Callable[[], Found]], rounds: int, bar: tqdm) -> dict[Key, list[Found]]:
    """What each job gave, round by round; every other round goes backwards, and one before does not count."""
    found: dict[Key, list[Found]] = {key: [] for key in jobs}
    for number in range(rounds + 1):
        for key in jobs if number % 2 else reversed(jobs):
            bar.set_postfix_str(key if isinstance(key, str) else ", ".join(map(str, key)))
            found[key].append(jobs[key]())
            bar.update()
    return {key: given[1:] for key, given in found.items()}


def median_seconds(jobs: dict[Key, Callable[[], Any]], rounds: int, bar: tqdm) -> dict[Key, float]:
    """The median CPU seconds of each job."""

    def seconds(job: Callable[[], Any]) -> float:
        began = time.process_time()
        job()
        return time.process_time() - began

    took = take_turns({key: partial(seconds, job) for key, job in jobs.items()}, rounds, bar)
    return {key: statistics.median(of_job) for key, of_job in took.items()}
