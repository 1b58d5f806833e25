"""The tiny models of the training tests, and how a test that is a try by itself has ended."""

import pytest

from tests.training.conftest import altclip, drawing, teacher

__all__ = ["altclip", "drawing", "teacher"]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo):
    """Counts the test where it has set `request.node.count`."""
    report = yield
    if call.when == "call" and not report.skipped and (count := getattr(item, "count", None)):
        count.add("right" if report.passed else "wrong", item.name)
    return report
