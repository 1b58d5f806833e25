"""Counts what each case tried and how it ended, for the table at the end of `make soak`.

A test takes `tally` and says how each try ended; `amount(ci, soak)` is how many tries this run affords.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

#: A try ends right, in a refusal as it should be (one line, the argument or file first), or wrong.
Ending = Literal["right", "refused", "wrong"]
ENDINGS: tuple[Ending, ...] = ("right", "refused", "wrong")
_MARK = "reliability"


@dataclass
class Tally:
    """How the tries of one case ended."""

    case: str
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(ENDINGS, 0))
    """A plain dict, which pytest-xdist can send from its workers."""
    wrongs: list[str] = field(default_factory=list)

    def add(self, ending: Ending, what: str = "") -> None:
        """`what` was tried; it is shown if it went wrong."""
        self.counts[ending] += 1
        if ending == "wrong":
            self.wrongs.append(what)

    def check(self, tries: int) -> None:
        """That so many were tried, and none went wrong."""
        assert not self.wrongs, f"{len(self.wrongs)} wrong, the first: {self.wrongs[:5]}"
        assert (tried := sum(self.counts.values())) >= tries, f"only {tried} of {tries} were tried"


@pytest.fixture
def tally(request: pytest.FixtureRequest):
    """`tally("A1 generate")` is the count of that case, which lands in the table of the run."""

    return lambda case: kept(Tally(case), request.node)


def kept(tally: Tally, test: pytest.Item) -> Tally:
    """A tally whose counts go with the test into the table."""
    test.user_properties.append((_MARK, (tally.case, tally.counts)))
    return tally


@pytest.fixture
def amount(request: pytest.FixtureRequest) -> Callable[[int, int], int]:
    """How many tries: few in the tests, the whole number of the plan with `--soak`."""
    soak = request.config.getoption("--soak")
    return lambda few, all_: all_ if soak else few


def table(found: Iterable[list[tuple[str, Any]]]) -> list[str]:
    """Of what the tests kept: a line for each case, with its heading; none where nothing was tallied."""
    sums: dict[str, Counter[str]] = defaultdict(Counter)
    for properties in found:
        for name, value in properties:
            if name == _MARK:
                case, counts = value
                sums[case].update(counts)
    if not sums:
        return []
    width = max(len(case) for case in sums)
    lines = [f"{'case':{width}}  tried  right  refused well  wrong"]
    for case in sorted(sums):
        right, refused, wrong = (sums[case][ending] for ending in ENDINGS)
        lines.append(f"{case:{width}}  {right + refused + wrong:5,}  {right:5,}  {refused:12,}  {wrong:5,}")
    return lines


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    found = [
        report.user_properties
        for reports in terminalreporter.stats.values()
        for report in reports
        if isinstance(report, pytest.TestReport) and report.when == "call"
    ]
    if lines := table(found):
        terminalreporter.section("reliability")
        terminalreporter.write_line("\n".join(lines))
