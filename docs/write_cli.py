"""Writes docs/cli.md from what --help prints; with --check, fails where the file says something else."""

import os
import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parent / "cli.md"
HEAD = """# Command line

Results go to stdout, all else to stderr. A mistake in what was asked is one line and exit code 2; Ctrl-C
is 130. This page is what `--help` prints; `make docs` writes it.
"""
# tyro lays its help out for the width of the terminal and marks it up where the terminal can show it.
ENVIRONMENT = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb", "PYTHONUTF8": "1"}


def help_of(*command: str) -> str:
    run = [sys.executable, "-m", "altdiffusion", *command, "--help"]
    done = subprocess.run(
        run, capture_output=True, encoding="utf-8", check=True, env=ENVIRONMENT, cwd=PAGE.parent.parent
    )
    return "\n".join(line.rstrip() for line in done.stdout.strip().splitlines())


def page() -> str:
    top = help_of()
    usage = re.search(r"\{([\w,-]+)\}", top)
    if usage is None:
        raise SystemExit("altdiffusion --help no longer lists its subcommands in braces")
    commands = [
        f"## altdiffusion {command}\n\n```text\n{help_of(command)}\n```\n" for command in usage[1].split(",")
    ]
    return "\n".join([HEAD, f"```text\n{top}\n```\n", *commands])


def main() -> int:
    text = page()
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(text, encoding="utf-8")
        return 0
    if PAGE.exists() and PAGE.read_text(encoding="utf-8") == text:
        return 0
    print("docs/cli.md is not what --help prints; `make docs` writes it anew", file=sys.stderr)
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
