"""Finds the app: inside the wheel it is carried as `altdiffusion._app`, beside a checkout it is `app/`."""

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

from altdiffusion.requests import BadRequest

_NAME = "altdiffusion._app"


def serve(**options: Any) -> None:
    """Runs the app until it is interrupted."""
    find()
    launching: Any = importlib.import_module(f"{_NAME}.launching")
    launching.serve(launching.Options.from_text(**options))


def find() -> None:
    """Makes `altdiffusion._app` importable; in a checkout it is the folder `app`, under the wheel's name."""
    if _NAME in sys.modules or importlib.util.find_spec(_NAME) is not None:
        return
    folder = Path(__file__).parent.parent / "app"
    spec = importlib.util.spec_from_file_location(
        _NAME, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    if spec is None or spec.loader is None or not (folder / "__init__.py").is_file():
        raise BadRequest("app: not in this installation; pip install 'altdiffusion[app]'")
    module = importlib.util.module_from_spec(spec)
    sys.modules[_NAME] = module
    spec.loader.exec_module(module)
