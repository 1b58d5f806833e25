"""Jobs that take turns."""

import time

from tqdm import tqdm

from bench.turns import median_seconds, take_turns


def test_every_other_round_goes_backwards_and_the_first_does_not_count():
    calls: list[str] = []

    def job(name: str):
        calls.append(name)
        return len(calls)

    with tqdm(disable=True) as bar:
        found = take_turns({name: lambda name=name: job(name) for name in "ab"}, 2, bar)
    assert "".join(calls) == "baabba"
    assert found == {"a": [3, 6], "b": [4, 5]}


def test_what_is_told_are_seconds_of_the_processor():
    jobs = {"waits": lambda: time.sleep(0.2), "works": lambda: sum(range(3_000_000))}
    with tqdm(disable=True) as bar:
        found = median_seconds(jobs, 1, bar)
    assert 0 <= found["waits"] < found["works"]
