"""Puts the app into the wheel, and only there.

`force-include` in pyproject.toml would copy it into editable installs too, where a folder `altdiffusion`
without an `__init__` in site-packages hides the package itself.
"""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class Carry(BuildHookInterface):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "standard":
            build_data["force_include"][str(Path(self.root) / "app")] = "altdiffusion/_app"
