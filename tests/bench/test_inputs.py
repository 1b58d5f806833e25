"""`bench.inputs`: how an end is counted, and its table."""

from bench.inputs import refused, table
from tests.reliability.apart import Ended, apart


def hang() -> None:
    while True:
        pass


def greedy() -> int:
    return len(bytearray(4 << 30))


def test_calls_apart_end_by_result_name_time_or_memory():
    assert apart(lambda: 7).result == 7
    assert refused(apart(lambda: int("steps")), "steps") == "refused by name"
    assert refused(apart(lambda: int("steps")), "width") == "refused otherwise"
    assert refused(apart(hang, seconds=0.2), "steps") == "over the limits"
    assert refused(apart(greedy, memory=1 << 30), "steps") == "over the limits"
    assert refused(Ended(error="DefaultCPUAllocator: can't allocate memory", kind="RuntimeError"), "a") == (
        "over the limits"
    )


def test_the_table_adds_up_each_row():
    made = {"commit": "a", "machine": "m", "minutes": 1}
    row = {"inputs": "arguments", "program": "ours", "right": 2, "refused by name": 3}
    assert "| arguments | ours | 5 | 2 | 3 | 0 | 0 | 0 |" in table(
        {"rows": [row], "command": "python", "made with": made}
    )
