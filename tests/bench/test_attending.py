"""`bench.attending` on two samples: both ways are measured, and the table has a row of each case."""

from bench.attending import WAYS, measure, table


def test_every_case_is_timed_by_both_ways_and_told():
    report = measure(batch=2, rounds=1, shapes=((1, 2, 8, 4, 16),))
    assert [set(row["cpu_s"]) for row in report["rows"]] == 4 * [set(WAYS)]
    told = table(report | {"command": "python -m bench.attending"})
    assert (
        "| bundled image tower, 2 pictures |" in told
        and "| attention alone, 8 x 4 of width 16, 1 x 2 |" in told
    )
