"""Models shared by the tests. Heavy imports stay inside the fixtures: many tests need none of them."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--weights", type=Path, help="a folder of published models, for tests/weights")
    parser.addoption("--soak", action="store_true", help="try as often as the plan of tests/reliability says")


@pytest.fixture
def weights(request: pytest.FixtureRequest) -> Path:
    """The folder of published models; without it the tests that need them are skipped."""
    folder = request.config.getoption("--weights")
    if folder is None:
        pytest.skip("needs --weights DIR, a folder of published models")
    return folder


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory) -> Path:
    """A tiny model folder that nobody changes."""
    from tests.fakes import tiny_pipeline_folder

    return tiny_pipeline_folder(tmp_path_factory.mktemp("shared") / "tiny")


@pytest.fixture
def model_folder(shared_folder, tmp_path) -> Path:
    """A copy of the tiny model folder, to be damaged."""
    return Path(shutil.copytree(shared_folder, tmp_path / "tiny"))


@pytest.fixture(scope="session")
def shared_pipeline(shared_folder):
    """The tiny model loaded once; a test that changes a pipeline loads its own."""
    from altdiffusion.pipelines import AltDiffusionPipeline

    pipeline = AltDiffusionPipeline.from_pretrained(shared_folder, device="cpu")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="session")
def stock_pipeline(shared_folder):
    """The same weights in plain diffusers."""
    from diffusers import DiffusionPipeline

    from altdiffusion.checkpoints import quiet

    with quiet():
        pipeline = DiffusionPipeline.from_pretrained(str(shared_folder))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="session")
def published(tmp_path_factory) -> Callable[[str, str], Path]:
    """The path of a published checkpoint by layout and form, written once; nobody changes it."""
    from tests.published import write

    made: dict[tuple[str, str], Path] = {}

    def path(format: str, form: str = "m9") -> Path:
        if (format, form) not in made:
            made[format, form] = write(format, tmp_path_factory.mktemp(f"{format}-{form}"), form)
        return made[format, form]

    return path
