"""The app as people start it, once for all attacks."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.app.attacking import Running, running


@pytest.fixture(scope="session")
def app(shared_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("attacks")
    with running(folder, "-m", "app", "--model", str(shared_folder), "--port", "PORT") as found:
        config = json.loads(found.ask("GET", "/config").body)
        found.numbers = {one["api_name"]: one["id"] for one in config["dependencies"]}
        yield found
