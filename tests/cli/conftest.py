"""Running the command line in this process."""

import io
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from altdiffusion.cli import main
from tests.fakes import SENTENCES

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Runs one command in an empty folder: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, stdin: str | None = None) -> tuple[int, str, str]:
        if stdin is not None:
            monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        capfd.readouterr()
        code = main(arguments)
        out, err = capfd.readouterr()
        return code, out, err

    return run


@pytest.fixture
def tiny(shared_folder: Path) -> tuple[str, ...]:
    return ("--model", str(shared_folder), "--steps", "2", "--preset", "exact")


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any attempt to read a model is a failure of the test, not a refusal."""
    from altdiffusion import checkpoints

    def read(*arguments: object, **fields: object) -> None:
        pytest.fail("a model was read before the mistake was refused")

    monkeypatch.setattr(checkpoints, "resolve", read)


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    file = tmp_path / "prompts.txt"
    file.write_text("".join(f"{tag}: {text}\n" for tag, text in SENTENCES.items()), encoding="utf-8")
    return file
