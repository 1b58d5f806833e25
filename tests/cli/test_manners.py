"""Help, exit codes, terminals and pipes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from altdiffusion.images import save_png
from altdiffusion.requests import Provenance
from tests.cli.conftest import Run


@pytest.mark.parametrize(
    "command",
    [[], ["generate"], ["embed"], ["info"], ["convert"], ["show"], ["classify"], ["evaluate"]],
    ids=" ".join,
)
def test_every_command_has_help(run: Run, command: list[str]):
    code, out, err = run(*command, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(" ".join(["usage: altdiffusion", *command]))


def test_control_c_is_130_and_quiet(run: Run, tiny: tuple[str, ...], monkeypatch: pytest.MonkeyPatch):
    from altdiffusion import generation

    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(generation, "generate", interrupted)
    assert run("generate", "cat", *tiny) == (130, "", "")


def test_our_own_mistakes_show_where_they_are(
    run: Run, tiny: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
):
    from altdiffusion import generation

    def broken(*arguments: object) -> None:
        raise ValueError("too many values to unpack")

    monkeypatch.setattr(generation, "generate", broken)
    with pytest.raises(ValueError, match="too many values"):
        run("generate", "cat", *tiny)


def test_the_bar_is_drawn_on_a_terminal_only(
    run: Run, tiny: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
):
    assert run("generate", "cat", "--seed", "7", *tiny)[2] == "seed 7\n"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    code, out, err = run("generate", "cat", "--seed", "7", *tiny)
    assert (code, out) == (0, "cat-7-2.png\n")
    assert "2/2" in err or "step" in err


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path: Path):
    save_png(Image.new("RGB", (8, 8)), tmp_path / "a.png", Provenance("a cat"))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "altdiffusion", "show", "a.png"],
        stdout=write,
        stderr=subprocess.PIPE,
        env=environment,
        cwd=tmp_path,
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")
