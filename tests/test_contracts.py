"""What every file of the project keeps to, and what the wheel holds."""

import ast
import re
import subprocess
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest
from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
TEXT = {".py", ".md", ".toml", ".yaml", ".yml", ".json", ".txt", ".cfg", ""}
LONGEST_FILE = 400
LONGEST_FUNCTION = 80  # loop functions; the others stay below 60
MODEL_LIMIT = 64 * 2**20

# Folders of one person's machine. Debian's own places for packages (/usr/share) are the same everywhere.
MACHINE_PATHS = re.compile(
    r"""(?<![\w.~$}*<>/-])/(home|work|root|Users|mnt|scratch|share|data\d?|opt)/[\w.-]+|\b[A-Z]:\\\\?Users"""
)
FORBIDDEN = {
    "weights_only=False": re.compile(r"weights_only\s*=\s*False"),
    "trust_remote_code": re.compile(r"trust_remote_code"),
    "share=True": re.compile(r"\bshare\s*=\s*True"),
    "a state dict read loosely": re.compile(r"load_state_dict\([^\n]*strict\s*=\s*False"),
    "pickle.load": re.compile(r"\bpickle\.(loads?|Unpickler)\b|^\s*from pickle\b", re.MULTILINE),
    "torchvision": re.compile(r"^\s*(import|from) torchvision\b", re.MULTILINE),
}
JUNK_DRAWERS = {"utils.py", "util.py", "common.py", "helpers.py", "misc.py"}


def files() -> list[Path]:
    """What git tracks or would track; in an unpacked sdist, which has no git, every file."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode == 0:
        found = [ROOT / name for name in listed.stdout.split("\0") if name]
    else:
        found = [p for p in ROOT.rglob("*") if not any(part.startswith(".venv") for part in p.parts)]
    return [path for path in found if path.is_file()]


def sources() -> Iterator[tuple[Path, str]]:
    for path in files():
        if path.suffix == ".py" and path != Path(__file__):
            yield path.relative_to(ROOT), path.read_text(encoding="utf-8")


def test_no_file_names_a_folder_of_one_machine():
    hits = []
    for path in files():
        if path.suffix in TEXT and path.name != "LICENSE" and path != Path(__file__):
            text = path.read_text(encoding="utf-8", errors="replace")
            hits += [f"{path.relative_to(ROOT)}: {hit[0]}" for hit in MACHINE_PATHS.finditer(text)]
    assert not hits


@pytest.mark.parametrize("name", FORBIDDEN)
def test_no_source_contains(name: str):
    assert not [str(path) for path, text in sources() if FORBIDDEN[name].search(text)]


def test_no_error_is_swallowed():
    bare = []
    for path, text in sources():
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, ast.ExceptHandler):
                continue
            broad = isinstance(node.type, ast.Name) and node.type.id in {"Exception", "BaseException"}
            silent = all(isinstance(line, ast.Pass | ast.Continue) for line in node.body)
            if node.type is None or (broad and silent):
                bare.append(f"{path}:{node.lineno}")
    assert not bare


def test_no_file_is_longer_than_a_sitting_or_named_for_its_lack_of_a_subject():
    assert not [f"{path}: {n}" for path, text in sources() if (n := text.count("\n")) > LONGEST_FILE]
    assert not [str(path) for path, _ in sources() if path.name in JUNK_DRAWERS]


def test_shapes_are_not_turned_into_strings():
    """jaxtyping cannot check the annotations of a file that postpones them."""
    postponed = "from __future__ import annotations"
    assert not [str(path) for path, text in sources() if "from jaxtyping" in text and postponed in text]


def test_no_function_is_longer_than_a_screen():
    long = []
    for path, text in sources():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                long += [f"{path}: {node.name}: {length}"] if length > LONGEST_FUNCTION else []
    assert not long


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    built = next(
        WheelBuilder(str(ROOT)).build(directory=str(tmp_path_factory.mktemp("wheel")), versions=["standard"])
    )
    with zipfile.ZipFile(built) as archive:
        yield archive


def test_the_wheel_takes_one_top_level_name(wheel: zipfile.ZipFile):
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"altdiffusion"}
    assert len(tops) == 2


def test_the_wheel_is_typed_and_licensed(wheel: zipfile.ZipFile):
    names = set(wheel.namelist())
    assert "altdiffusion/py.typed" in names
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_the_wheel_holds_every_file_of_the_package(wheel: zipfile.ZipFile):
    package = {str(path.relative_to(ROOT)) for path in files() if path.is_relative_to(ROOT / "altdiffusion")}
    assert package <= set(wheel.namelist())


def test_the_wheel_carries_the_app_under_the_package(wheel: zipfile.ZipFile):
    app = [path.relative_to(ROOT / "app") for path in files() if path.is_relative_to(ROOT / "app")]
    assert {f"altdiffusion/_app/{path}" for path in app} <= set(wheel.namelist())


def test_an_editable_install_redirects_to_the_checkout_and_holds_no_copy(tmp_path: Path):
    built = next(WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["editable"]))
    with zipfile.ZipFile(built) as archive:
        tops = {name.split("/")[0] for name in archive.namelist() if ".dist-info" not in name}
        text = "".join(archive.read(top).decode() for top in tops)
    assert tops == {"_editable_impl_altdiffusion.pth", "_editable_impl_altdiffusion.py"}
    assert "map_module('altdiffusion'" in text


@pytest.mark.weights
def test_the_wheel_holds_the_bundled_model_within_its_limit(wheel: zipfile.ZipFile):
    sizes = [info.file_size for info in wheel.infolist() if info.filename.startswith("altdiffusion/weights/")]
    assert 0 < sum(sizes) <= MODEL_LIMIT


def test_the_sdist_holds_the_sources_that_do_not_go_into_the_wheel(tmp_path: Path):
    built = next(SdistBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"]))
    with tarfile.open(built) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames()}
    assert {"Makefile", "constraints.txt", "tests/test_contracts.py", "training/__init__.py"} <= names
    assert not [name for name in names if name.startswith((".venv", "demo/", "runs/"))]


def test_every_requirement_is_pinned():
    """The constraints hold for the whole tested set: nothing is left to the day of installation."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {canonicalize_name(line.split("==")[0]): line.split("==")[1] for line in lines if "==" in line}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for text in [*project["dependencies"], *chain(*project["optional-dependencies"].values())]:
        requirement = Requirement(text)
        assert canonicalize_name(requirement.name) in pinned, requirement
        assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), requirement
