"""Runs the benches one after the other and gathers what they report.

    python -m bench [PART…] [--folder FOLDER] [--write]
    make bench ARGS="startup encode"

Parts: see `PARTS`; without one those of the speed, which take an hour on two cores. FOLDER gets a JSON file
of each part, `limits.json` with what this machine can do at most, and `report.md` with all tables. `--write`
also puts the tables into docs/results.md. A part that fails is named at the end, and the exit code is 1.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import torch

from bench import limits

#: Name → options that its command takes of `-o` and `--write`.
PARTS: dict[str, tuple[str, ...]] = {
    "startup": ("-o", "--write"),
    "encode": ("-o", "--write"),
    "generate": ("-o", "--write"),
    "training": ("-o", "--write"),
    "attending": ("-o", "--write"),
    "search": ("-o", "--write"),
    "openvino": ("-o", "--write"),
    "gpu": ("-o",),
    "inputs": ("-o", "--write"),
    "quality": ("-o", "--write"),
}
#: Other questions than speed: the bundled model's pictures, and what is refused.
_NOT_SPEED = {"quality", "inputs"}
_ROOT = Path(__file__).parent.parent


def known() -> list[str]:
    """The parts whose modules are there."""
    return [name for name in PARTS if (_ROOT / f"bench/{name}.py").is_file()]


def run(name: str, folder: Path, write: bool) -> tuple[bool, str]:
    """Whether it went well, and its tables; a process of its own, whose peak and threads are its own."""
    options = {"-o": ["-o", str(folder / f"{name}.json")], "--write": ["--write"] if write else []}
    command = [sys.executable, "-m", f"bench.{name}", *(word for key in PARTS[name] for word in options[key])]
    done = subprocess.run(command, cwd=_ROOT, stdout=subprocess.PIPE, text=True, check=False)
    return done.returncode == 0, done.stdout


def main() -> int:
    speed = [name for name in known() if name not in _NOT_SPEED]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", choices=[*known(), []], default=speed, metavar="PART")
    parser.add_argument("--folder", type=Path, default=Path("runs/bench"))
    parser.add_argument("--write", action="store_true", help="put the tables into docs/results.md")
    arguments = parser.parse_args()
    folder = arguments.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    found = limits.measure(torch.device("cpu"))
    (folder / "limits.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    texts = [f"# Benches\n\nThis machine, one thread: {limits.sentence(found)}\n"]
    failed = []
    for name in arguments.parts:
        print(f"{name}: running", file=sys.stderr)
        start = time.perf_counter()
        well, text = run(name, folder, arguments.write)
        minutes = (time.perf_counter() - start) / 60
        texts.append(f"## {name} ({minutes:.0f} minutes{'' if well else ', failed'})\n\n{text}")
        (folder / "report.md").write_text("\n".join(texts), encoding="utf-8")
        failed += [] if well else [name]
    print("\n".join(texts))
    print(f"reports: {folder}", file=sys.stderr)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    raise SystemExit(main())
