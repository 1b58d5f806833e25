"""What every bench says of itself, and where its report goes: terminal, JSON file, docs/results.md."""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent.parent / "docs" / "results.md"
_CPUINFO = Path("/proc/cpuinfo")


def parser(description: str | None, *, write: bool = True) -> argparse.ArgumentParser:
    """With the options that say where a report goes; `description` is the module's docstring."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("-o", "--output", type=Path, metavar="FILE", help="report as JSON")
    if write:
        made.add_argument("--write", action="store_true", help="put the tables into docs/results.md")
    return made


def _commit() -> str:
    told = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return told.stdout.strip()


def processor() -> str:
    """The name of the processor, since what is fast differs between them; its kind where none is told."""
    text = _CPUINFO.read_text(encoding="utf-8") if _CPUINFO.exists() else ""
    named = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return named[1].strip() if named else platform.processor() or platform.machine()


@dataclass(frozen=True)
class Start:
    """When a measurement began and by which code, which may be another by its end."""

    at: float = field(default_factory=time.perf_counter)
    commit: str = field(default_factory=_commit)

    def made_with(self, *packages: str, threads: int | None = None) -> dict[str, Any]:
        """Code, machine, versions and minutes, for the report."""
        threads = threads or torch.get_num_threads()
        return {
            "commit": self.commit,
            "machine": f"{processor()}, {threads} of {os.cpu_count()} cores",
            **{name: re.split("[-+]", version(name))[0] for name in packages},
            "minutes": round((time.perf_counter() - self.at) / 60, 1),
        }


def origin(report: dict[str, Any]) -> str:
    """The line under a table that says how it came about."""
    made = dict(report["made with"])
    commit, machine, minutes = made.pop("commit"), made.pop("machine"), made.pop("minutes")
    rounds = [f"{report['rounds']} rounds"] if "rounds" in report else []
    packages = [f"{name} {number}" for name, number in made.items()]
    parts = [f"`{report['command']}`", *rounds, f"commit {commit}", machine, *packages, f"{minutes} minutes"]
    return f"- {', '.join(parts)}"


def command(module: str, words: list[str]) -> str:
    """As it was called, less where its report went, which changes no figure."""
    kept = re.sub(r"(^| )(-o|--output)[ =]\S+|(^| )--write\b", "", " ".join(words))
    return f"python -m bench.{module} {kept.strip()}".strip()


def tell(
    report: dict[str, Any],
    module: str,
    mark: str | None,
    table: Callable[[dict[str, Any]], str],
    arguments: argparse.Namespace,
) -> None:
    """Prints the tables, and puts them and the report where `parser`'s options say; `mark` as in `put`."""
    report["command"] = command(module, sys.argv[1:])
    if arguments.output:
        text = json.dumps(report, ensure_ascii=False, indent=1)
        arguments.output.write_text(text + "\n", encoding="utf-8")
    print(table(report))
    if mark and arguments.write:
        put(RESULTS, mark, table(report))


def put(file: Path, mark: str, text: str) -> None:
    """Writes `text` between the marks of this name in a document."""
    file.write_text(replace_part(file.read_text(encoding="utf-8"), mark, text), encoding="utf-8")


def replace_part(document: str, name: str, text: str) -> str:
    """Puts `text` between `<!-- NAME -->` and `<!-- /NAME -->`."""
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    if start not in document or end not in document:
        raise ValueError(f"document: it does not hold both {start} and {end}")
    return f"{document.partition(start)[0]}{start}\n{text}{end}{document.partition(end)[2]}"
