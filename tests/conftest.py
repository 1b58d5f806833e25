"""Models shared by the tests. Heavy imports stay inside the fixtures: many tests need none of them."""

import shutil
from pathlib import Path

import pytest


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
