"""The documents are true: README's blocks run as they stand, and every link leads somewhere."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:|mailto:|#)([^)#\s]+)")
MAKE = re.compile(r"\bmake ([\w-]+)")


def blocks(language: str, path: Path = ROOT / "README.md") -> list[str]:
    return [code for tag, code in BLOCK.findall(path.read_text(encoding="utf-8")) if tag == language]


def run(command: list[str], folder: Path) -> str:
    """Runs as a newcomer would: the virtual environment's commands first in PATH, and no network."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    environment = {**os.environ, "PATH": path, "HF_HUB_OFFLINE": "1", "PYTHONUTF8": "1"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, encoding="utf-8", timeout=600
    )
    assert done.returncode == 0, f"{command[-1]}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.weights
@pytest.mark.timeout(1200)  # some ten commands, each of which imports torch
def test_the_shell_blocks_and_then_the_python_blocks_run_in_one_folder(tmp_path: Path):
    for code in blocks("sh"):
        if "make " not in code:
            run(["bash", "-euo", "pipefail", "-c", code], tmp_path)
    assert list(tmp_path.glob("*.png"))
    run([sys.executable, "-W", "ignore::DeprecationWarning", "-c", "\n".join(blocks("python"))], tmp_path)


def test_every_make_target_that_the_documents_name_exists():
    named = {target for path in DOCUMENTS for target in MAKE.findall("\n".join(blocks("sh", path)))}
    assert {"demo", "test"} <= named
    for target in named:
        run(["make", "--dry-run", target], ROOT)


def test_the_two_commands_come_first():
    assert MAKE.findall(blocks("sh")[0]) == ["demo", "test"]


def test_every_link_leads_to_a_file():
    dead = []
    for path in DOCUMENTS:
        targets = LINK.findall(path.read_text(encoding="utf-8"))
        dead += [f"{path.name}: {target}" for target in targets if not (path.parent / target).exists()]
    assert not dead


def test_the_command_line_page_is_what_help_prints():
    run([sys.executable, "docs/write_cli.py", "--check"], ROOT)
