"""An output folder belongs to one run at a time, and to one stage."""

import contextlib
import json
import os
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from training.checkpoints import MANIFEST
from training.samples import shorten

LOCK, HOLDER = ".lock", ".in-use.json"


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Holds the folder; the system lets go of it however this process ends."""
    folder.mkdir(parents=True, exist_ok=True)
    lock, holder = FileLock(folder / LOCK), folder / HOLDER
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(
            f"output_dir: {shorten(str(folder))} is in use by {named(holder)}; "
            "allowed: another folder, or this one when that run has ended"
        ) from None
    try:
        holder.write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def named(holder: Path) -> str:
    try:
        who = json.loads(holder.read_text())
        return f"process {who['pid']} on {who['host']}"
    except (OSError, ValueError, KeyError):  # it is just being written
        return "another run"


def check(folder: Path, about: Mapping[str, Any]) -> None:
    """Refuses to go on from a checkpoint that another stage, or other parameters, left in `folder`.

    `about` is what this run's manifests say; what an old manifest does not say is not compared.
    """
    for path in sorted(folder.glob(f"checkpoint-*/{MANIFEST}"), reverse=True)[:1]:
        try:
            found = json.loads(path.read_text()).get("about", {})
        except (OSError, ValueError):  # damaged: the search for the newest whole one says so
            return
        for name in about.keys() & found.keys():
            if about[name] != found[name]:
                raise ValueError(
                    f"output_dir: {shorten(str(folder))} holds a checkpoint with {name} {found[name]}, this "
                    f"run has {about[name]}; allowed: the flags of that run, or another folder"
                )


def stage_name(config: Any) -> str:
    """Distill of a DistillConfig."""
    return type(config).__name__.removesuffix("Config")
