"""The table that says how the tries of the other files ended."""

import pytest

from tests.reliability.conftest import Tally, table


def test_the_table_adds_up_what_several_tests_tried_of_one_case():
    first, second = Tally("A1 generate"), Tally("A1 generate")
    first.add("right")
    first.add("refused")
    second.add("wrong", "steps=-1")
    header, row = table([[("reliability", (tally.case, tally.counts))] for tally in (first, second)])
    assert header.split() == ["case", "tried", "right", "refused", "well", "wrong"]
    assert row.split() == ["A1", "generate", "3", "1", "1", "1"]


def test_a_case_fails_by_what_went_wrong_and_by_too_few_tries():
    wrong, few = Tally("A1"), Tally("A1")
    wrong.add("wrong", "steps=-1")
    few.add("right")
    with pytest.raises(AssertionError, match="1 wrong, the first: \\['steps=-1'\\]"):
        wrong.check(1)
    with pytest.raises(AssertionError, match="only 1 of 2"):
        few.check(2)


def test_a_run_without_tallies_prints_no_table():
    assert table([[]]) == []
