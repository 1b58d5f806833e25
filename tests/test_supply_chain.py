"""What this project is made of: every package pinned, nothing in the sources that runs what others wrote, and
an audit that cannot pass by looking away."""

import ast
import importlib.util
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from tests.test_readme import ROOT

#: What `make test` installs; the other two extras are for machines that have a use for them.
EXTRAS = {"app", "train", "retrieval", "eval", "scale", "openvino", "dev"}


@pytest.fixture(scope="module")
def audit() -> Any:
    spec = importlib.util.spec_from_file_location("audit", ROOT / ".ci/audit.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def needed(audit: Any) -> Iterator[tuple[str, str]]:
    """(name, version installed) of all that our extras pull in; the version is empty where there is none."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    own = [*project["dependencies"]]
    own += [line for name in EXTRAS for line in project["optional-dependencies"][name]]
    todo, seen = [(Requirement(line), frozenset({""})) for line in own], set()
    while todo:
        wanted, extras = todo.pop()
        if wanted.marker and not any(wanted.marker.evaluate({"extra": extra}) for extra in extras):
            continue
        name = audit.canonical(wanted.name)
        if (name, frozenset(wanted.extras)) in seen:
            continue
        seen.add((name, frozenset(wanted.extras)))
        try:
            found = distribution(wanted.name)
        except PackageNotFoundError:
            yield name, ""
            continue
        yield name, found.version.partition("+")[0]  # torch 2.13.0+cpu
        inner = frozenset(wanted.extras) | {""}
        todo += [(Requirement(line), inner) for line in found.requires or []]


def test_every_package_of_the_tested_set_is_pinned_and_is_the_one_that_is_installed(audit: Any):
    if any(_missing(name) for name in ("gradio", "ray", "openvino", "schemathesis")):
        pytest.skip("needs all extras, as make test installs them")
    pins, found = audit.pinned(audit.CONSTRAINTS), dict(needed(audit))
    assert len(found) > 150
    assert {name for name, version in found.items() if not version} == set()
    del found["pip"]  # pip-audit's, the one that comes with the interpreter
    others = {name: (version, pins.get(name)) for name, version in found.items()}
    assert {name: pair for name, pair in others.items() if pair[0] != pair[1]} == {}


def _missing(name: str) -> bool:
    return importlib.util.find_spec(name) is None


def test_every_line_of_the_constraints_is_one_exact_version():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    for line in pins:
        (only,) = Requirement(line).specifier
        assert only.operator == "==" and "*" not in only.version, line
    assert len(pins) == len({line.partition("==")[0].lower().replace("_", "-") for line in pins})


#: Beside what tests/test_contracts.py forbids to every file, for the sources that are not tests.
FORBIDDEN = {
    "import pickle": "pickle",
    "from dill import load": "dill",
    "import torch\ntorch.load('a')": "torch.load without weights_only=True",
    "import torch\ntorch.load('a', weights_only=maybe)": "torch.load without weights_only=True",
    "numpy.load('a', allow_pickle=True)": "allow_pickle=True",
    "load(custom_pipeline='a')": "custom_pipeline",
    "eval('1')": "eval",
    "exec('1')": "exec",
    "import yaml\nyaml.load('a')": "yaml.load",
    "import os\nos.system('ls')": "os.system",
    "subprocess.run('ls', shell=True)": "shell=True",
}
_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}


def forbidden(code: str) -> Iterator[tuple[int, str]]:
    """(line, what) of what could run something that others wrote."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = (
                [node.module or ""] if isinstance(node, ast.ImportFrom) else [one.name for one in node.names]
            )
            yield from ((node.lineno, name) for name in names if name.partition(".")[0] in _MODULES)
        elif isinstance(node, ast.Call):
            yield from ((node.lineno, what) for what in _called(node))


def _called(node: ast.Call) -> Iterator[str]:
    given = {word.arg: word.value for word in node.keywords if word.arg}
    constants = {name: one.value for name, one in given.items() if isinstance(one, ast.Constant)}
    function = ast.unparse(node.func)
    if function in ("eval", "exec", "os.system", "yaml.load", "yaml.unsafe_load"):
        yield function
    if function == "torch.load" and constants.get("weights_only") is not True:
        yield "torch.load without weights_only=True"
    if "custom_pipeline" in given:
        yield "custom_pipeline"
    for name in ("allow_pickle", "shell"):
        if constants.get(name) is True:
            yield f"{name}=True"


@pytest.mark.parametrize("code", FORBIDDEN)
def test_what_is_forbidden_is_found(code: str):
    assert FORBIDDEN[code] in {what for _, what in forbidden(code)}


def test_nothing_that_is_forbidden_stands_in_the_sources():
    folders = ["altdiffusion", "app", "training", "bench", "docs", ".ci"]
    files = [ROOT / "hatch_build.py", *(file for name in folders for file in (ROOT / name).rglob("*.py"))]
    assert len(files) > 200
    found = [
        f"{file.relative_to(ROOT)}:{line}: {what}"
        for file in files
        for line, what in forbidden(file.read_text(encoding="utf-8"))
    ]
    assert found == []


def test_the_tests_that_the_threat_model_names_are_there():
    named = re.findall(r"tests/[\w/]+\.py", (ROOT / "docs/threat-model.md").read_text(encoding="utf-8"))
    assert len(named) > 10 and [name for name in named if not (ROOT / name).exists()] == []


WANTED = {"numpy": "2.4.6", "tomli-w": "1.2.0"}
WELL = [
    {"name": "numpy", "version": "2.4.6", "vulns": []},
    {"name": "tomli_w", "version": "1.2.0", "vulns": []},
]
ADVISORY = {"id": "PYSEC-2026-1", "fix_versions": ["2.4.7"], "aliases": [], "description": ""}


@pytest.mark.parametrize(
    ("found", "code", "line"),
    [
        (WELL, 0, "audit: 2 packages looked up, no advisory known"),
        (WELL[:1], 2, "tomli-w: left out of the report"),
        ([], 2, "numpy: left out of the report"),
        ([WELL[0], {"name": "tomli_w", "skip_reason": "away"}], 2, "tomli-w: not looked up: away"),
        ([WELL[1], WELL[0] | {"version": "2.0"}], 2, "numpy: looked up as 2.0; pinned is 2.4.6"),
        ([WELL[1], WELL[0] | {"vulns": [ADVISORY]}], 1, "numpy 2.4.6: PYSEC-2026-1; mended in 2.4.7"),
    ],
)  # fmt: skip
def test_an_audit_passes_only_where_every_package_was_looked_up(
    audit: Any, found: list[dict[str, Any]], code: int, line: str
):
    told = json.dumps({"dependencies": found, "fixes": []})
    ended, lines = audit.verdict(told, "", WANTED)
    assert ended == code and line in lines


@pytest.mark.parametrize("told", ["", "{}", "[]", "no JSON"])
def test_an_audit_that_said_nothing_is_no_audit(audit: Any, told: str):
    code, (line,) = audit.verdict(told, "WARNING: a\nERROR: the service is away\n", WANTED)
    assert (code, line) == (
        2,
        "audit: not made, so nothing is known of 2 packages: ERROR: the service is away",
    )


def test_the_real_audit_fails_without_a_net_and_says_so(tmp_path: Path):
    pytest.importorskip("pip_audit")
    (tmp_path / "constraints.txt").write_text("numpy==2.4.6\n", encoding="utf-8")
    nowhere = dict.fromkeys(("HTTPS_PROXY", "HTTP_PROXY", "https_proxy", "http_proxy"), "http://127.0.0.1:9")
    done = subprocess.run(
        [sys.executable, ROOT / ".ci/audit.py", tmp_path / "constraints.txt"],
        env={**os.environ, **nowhere, "XDG_CACHE_HOME": str(tmp_path)},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("audit: not made, so nothing is known of 1 packages: ")
    assert "Traceback" not in done.stderr
