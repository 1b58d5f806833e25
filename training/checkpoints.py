"""Checkpoints that survive a kill at any moment: written aside, a manifest with hashes last, one rename, then
the old ones go.

accelerate's own `save_state` writes in place; a badly timed kill leaves a folder that looks like the newest
and does not load.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
logger = logging.getLogger(__name__)


def save_checkpoint(
    folder: Path, step: int, write: Callable[[Path], None], keep: int, about: Mapping[str, Any] | None = None
) -> Path:
    """Calls `write(stage)`, seals what it wrote, and keeps the `keep` newest checkpoints of `folder`.

    `about` goes into the manifest.
    """
    final, stage = folder / f"checkpoint-{step:08d}", folder / f".tmp-checkpoint-{step:08d}"
    shutil.rmtree(stage, ignore_errors=True)
    stage.mkdir(parents=True)
    try:
        write(stage)
        seal(stage, step, about or {})
        if final.exists():  # the same step again, after a resume from an older one
            shutil.rmtree(final)
        stage.rename(final)
        sync(folder)
    except BaseException:
        shutil.rmtree(stage, ignore_errors=True)
        raise
    for old in sorted(folder.glob("checkpoint-*"))[:-keep]:
        shutil.rmtree(old)
    return final


def seal(stage: Path, step: int, about: Mapping[str, Any]) -> None:
    """Flushes every file to the disk, then writes the manifest: where it is, all else is complete."""
    hashes = {}
    for path in sorted(p for p in stage.rglob("*") if p.is_file()):
        with path.open("rb") as file:
            hashes[str(path.relative_to(stage))] = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
    manifest = stage / MANIFEST
    with manifest.open("w") as file:
        json.dump({"step": step, "about": about, "files": hashes}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    sync(stage)


def sync(folder: Path) -> None:
    """Makes the names in `folder` durable, as fsync of a file makes its bytes."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def latest_checkpoint(folder: Path) -> tuple[Path, int] | None:
    """The newest checkpoint that is whole, with its step; damaged ones are passed over with a warning."""
    for stage in folder.glob(".tmp-*"):
        shutil.rmtree(stage, ignore_errors=True)
    for path in sorted(folder.glob("checkpoint-*"), reverse=True):
        if (damage := damaged(path)) is None:
            return path, json.loads((path / MANIFEST).read_text())["step"]
        logger.warning("checkpoint %s is passed over: %s", path, damage)
    return None


def damaged(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    try:
        files = json.loads((path / MANIFEST).read_text())["files"]
    except (OSError, ValueError, KeyError) as error:
        return f"no readable {MANIFEST} ({error})"
    for name, expected in files.items():
        if not (path / name).is_file():
            return f"{name} is missing"
        with (path / name).open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != expected:
                return f"{name} has changed since it was written"
    return None
