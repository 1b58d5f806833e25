"""The layers that pyproject.toml lays down for import-linter, and a library that costs nothing to import."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import grimp
import pytest
from importlinter import configuration
from importlinter.application import use_cases
from importlinter.application.rendering import render_report
from importlinter.application.user_options import UserOptions
from importlinter.contracts.layers import LayersContract
from importlinter.contracts.protected import ProtectedContract
from importlinter.domain.contract import registry

ROOT = Path(__file__).parent.parent
HEAVY = {"torch", "transformers", "diffusers", "gradio", "datasets"}
TRACES = f"import sys; print(sorted(sys.modules.keys() & {HEAVY}))"


def settings() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]


def packages() -> list[str]:
    return [name for name in settings()["root_packages"] if (ROOT / name / "__init__.py").exists()]


def contracts(known: set[str]) -> list[dict[str, Any]]:
    """The contracts less the modules that do not exist (yet): import-linter takes those for mistakes."""
    kept = []
    for contract in settings()["contracts"]:
        contract = {key: str(value) if isinstance(value, bool) else value for key, value in contract.items()}
        for key in ("protected_modules", "allowed_importers"):
            if key in contract:
                contract[key] = [name for name in contract[key] if name in known]
        if contract["type"] != "protected" or contract["protected_modules"]:
            kept.append(contract)
    return kept


def test_every_import_goes_down_the_layers(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(ROOT)
    configuration.configure()
    registry.register(LayersContract, "layers")
    registry.register(ProtectedContract, "protected")
    graph = grimp.build_graph(*packages(), include_external_packages=True, exclude_type_checking_imports=True)
    session = {key: str(value) for key, value in settings().items() if key != "contracts"}
    session["root_packages"] = packages()
    report = use_cases.create_report(UserOptions(session, contracts(set(graph.modules))), cache_dir=None)
    render_report(report)
    assert not report.contains_failures, capsys.readouterr().out


def test_sisters_use_only_public_names_of_the_library():
    private = []
    for path in [*ROOT.glob("training/**/*.py"), *ROOT.glob("app/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "altdiffusion":
                names = [*node.module.split("."), *(alias.name for alias in node.names)]
                private += [f"{path.relative_to(ROOT)}: {name}" for name in names if name.startswith("_")]
    assert not private


@pytest.mark.parametrize(
    "code",
    [
        f"import altdiffusion; {TRACES}",
        f"import altdiffusion.cli; {TRACES}",
        # runpy is `python -m`; the help ends with SystemExit, so what was imported is looked at after it.
        "import atexit, runpy, sys; sys.argv = ['altdiffusion', '--help']; "
        f"atexit.register(lambda: exec({TRACES!r})); runpy.run_module('altdiffusion', run_name='__main__')",
    ],
    ids=["import", "import of the command line", "help"],
)
def test_nothing_heavy_is_imported_before_it_is_needed(code: str):
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]", done.stdout
