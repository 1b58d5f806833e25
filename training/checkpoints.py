"""Checkpoints that survive a kill at any moment: written aside, a manifest with hashes last, one rename, then
the old ones go.

accelerate's own `save_state` writes in place; a badly timed kill leaves a folder that looks like the newest
and does not load.
"""

import json
import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from altdiffusion import aside
from altdiffusion.reading import one_line

MANIFEST = "manifest.json"
logger = logging.getLogger(__name__)


def save_checkpoint(
    folder: Path, step: int, write: Callable[[Path], None], keep: int, about: Mapping[str, Any] | None = None
) -> Path:
    """Calls `write(stage)`, seals what it wrote, and keeps the `keep` newest checkpoints of `folder`.

    `about` goes into the manifest. Those of later steps go too: they are damaged, or the run would be there.
    """
    final = folder / f"checkpoint-{step:08d}"
    with aside.folder(final) as stage:  # which is there after a resume from an older one
        write(stage)
        aside.seal(stage, MANIFEST, {"step": step, "about": about or {}})
    found = sorted(folder.glob("checkpoint-*"))
    newest = found.index(final) + 1
    for path in (
        *found[newest:],
        *found[: max(0, newest - keep)],
    ):
        shutil.rmtree(path)
    return final


def latest_checkpoint(folder: Path) -> tuple[Path, int] | None:
    """The newest checkpoint that is whole, with its step; damaged ones are passed over with a warning."""
    for stage in folder.glob(f"{aside.START}*"):  # the folder is this run's alone
        shutil.rmtree(stage, ignore_errors=True)
    for path in sorted(folder.glob("checkpoint-*"), reverse=True):
        if (damage := damaged(path)) is None:
            return path, json.loads((path / MANIFEST).read_text())["step"]
        logger.warning("checkpoint %s is passed over: %s", path, damage)
    return None


def damaged(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        return aside.fault(path, dict(manifest["files"])) or (
            None if isinstance(manifest["step"], int) else f"{MANIFEST} names no step"
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"no readable {MANIFEST} ({one_line(error)})"
