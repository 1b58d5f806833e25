"""Looks every pinned package up among the known advisories, and fails unless each of them was looked up.

    make audit    or    python .ci/audit.py [CONSTRAINTS]

pip-audit does the asking. Its exit code is 1 for a package with an advisory as well as for one that it could
not ask about, so its report is read, and compared with the list. 0: all were looked up and are well; 1: some
have advisories; 2: not all were looked up, which says nothing of them.
"""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

CONSTRAINTS = Path(__file__).parent.parent / "constraints.txt"


def pinned(file: Path) -> dict[str, str]:
    """Version by name, names as indexes write them."""
    lines = [line.partition("#")[0].strip() for line in file.read_text(encoding="utf-8").splitlines()]
    pairs = [line.partition("==")[::2] for line in lines if line]
    return {canonical(name): version for name, version in pairs}


def canonical(name: str) -> str:
    return re.sub("[-_.]+", "-", name).lower()


def verdict(told: str, errors: str, wanted: dict[str, str]) -> tuple[int, list[str]]:
    """Exit code and lines, of what pip-audit said."""
    try:
        found: list[dict[str, Any]] = json.loads(told)["dependencies"]
    except (json.JSONDecodeError, KeyError, TypeError):
        last = errors.strip().splitlines()[-1:] or ["it said nothing"]
        return 2, [f"audit: not made, so nothing is known of {len(wanted)} packages: {last[0]}"]
    skipped = {canonical(one["name"]): one["skip_reason"] for one in found if "skip_reason" in one}
    asked = {canonical(one["name"]): one for one in found if "skip_reason" not in one}
    lines = [f"{name}: not looked up: {reason}" for name, reason in sorted(skipped.items())]
    lines += [f"{name}: left out of the report" for name in sorted(wanted.keys() - asked - skipped.keys())]
    lines += [
        f"{name}: looked up as {asked[name]['version']}; pinned is {version}"
        for name, version in sorted(wanted.items())
        if name in asked and asked[name]["version"] != version
    ]
    if lines:
        return 2, [*lines, f"audit: {len(lines)} of {len(wanted)} packages were not looked up"]
    for name, one in sorted(asked.items()):
        for advisory in one["vulns"]:
            fixed = ", ".join(advisory["fix_versions"]) or "none yet"
            lines.append(f"{name} {one['version']}: {advisory['id']}; mended in {fixed}")
    return (1, lines) if lines else (0, [f"audit: {len(asked)} packages looked up, no advisory known"])


def main() -> int:
    file = Path(sys.argv[1]) if len(sys.argv) > 1 else CONSTRAINTS
    tool = Path(sys.executable).with_name("pip-audit")
    flags = ["--strict", "--format", "json", "--no-deps", "--disable-pip", "--progress-spinner", "off"]
    done = subprocess.run(
        [str(tool), *flags, "--requirement", str(file)], capture_output=True, text=True, check=False
    )
    code, lines = verdict(done.stdout, done.stderr, pinned(file))
    print("\n".join(lines), file=sys.stderr if code else sys.stdout)
    return code


if __name__ == "__main__":
    raise SystemExit(main())
