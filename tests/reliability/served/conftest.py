"""The app as people start it, once for all who break it; and tests that are tries of a case themselves."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.reliability.conftest import Tally, kept
from tests.reliability.served.attacking import Running, running


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item):
    """A test marked `attempt(case, ending)` is one try of that case, and ends so where it passes."""
    marker = item.get_closest_marker("attempt")
    if marker is None:
        return (yield)
    case, ending = marker.args
    tally = kept(Tally(case), item)
    try:
        result = yield
    except (Exception, pytest.fail.Exception):
        tally.add("wrong", item.name)
        raise
    tally.add(ending)
    return result


@pytest.fixture(scope="session")
def app(shared_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("attacks")
    with running(folder, "-m", "app", "--model", str(shared_folder), "--port", "PORT") as found:
        yield found.learn()
