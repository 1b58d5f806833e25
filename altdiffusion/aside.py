"""Files and folders that are whole or not there, however the process ends: the one way here to write them.

They are made aside, in the folder where they will lie, flushed to the disk, and renamed. What is read long
after is sealed by a list of its files' hashes, by which `fault` finds damage. Standard library only.
"""

import contextlib
import ctypes
import errno
import hashlib
import json
import os
import secrets
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

#: How the names begin of what is not whole yet.
START = ".tmp-"
#: Seconds after which it counts as left behind whoever made it: on a shared disk, maybe another machine.
ABANDONED = 24 * 3600
_AT_CWD, _EXCHANGE = -100, 2  # of Linux's renameat2


@contextlib.contextmanager
def file(path: Path, *, overwrite: bool = True, durable: bool = True) -> Iterator[Path]:
    """Where to write a file, which gets its name `path` when the block ends without an error.

    Without `overwrite` a name that is taken raises FileExistsError. What is made anew at no cost need not be
    `durable`: a power cut may then leave an empty file, a kill may not.
    """
    place = path.with_name(_name())
    try:
        yield place
        if durable:
            flush(place)
        if overwrite:
            place.replace(path)
        else:
            rename_new(place, path)
        if durable:
            flush(path.parent)
    finally:
        place.unlink(missing_ok=True)


@contextlib.contextmanager
def folder(path: Path) -> Iterator[Path]:
    """An empty folder to fill, which becomes `path` when the block ends without an error.

    What lies at `path` is gone then, not before.
    """
    stage = make_stage(path.parent)
    try:
        yield stage
        flush_all(stage)
        _take_place(stage, path)
        flush(path.parent)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


@contextlib.contextmanager
def merged(path: Path) -> Iterator[Path]:
    """The same, but what else lies in `path` stays: it may be a folder of someone's own, or a whole disk.

    Where it is there already its files are replaced one by one, each at once.
    """
    if not path.exists():
        with folder(path) as stage:
            yield stage
        return
    stage = make_stage(path)
    try:
        yield stage
        flush_all(stage)
        for place in sorted(place for place in stage.rglob("*") if place.is_file()):
            target = path / place.relative_to(stage)
            target.parent.mkdir(parents=True, exist_ok=True)
            place.replace(target)
        flush(path)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def make_stage(parent: Path) -> Path:
    """A new folder aside in `parent`, for what is given its name by other means; see `sweep`."""
    parent.mkdir(parents=True, exist_ok=True)
    sweep(parent)
    stage = parent / _name()
    stage.mkdir()
    return stage


def sweep(parent: Path) -> None:
    """Removes what processes that died have left aside in `parent`."""
    for place in parent.glob(f"{START}*"):
        with contextlib.suppress(FileNotFoundError):
            if _is_left(place):
                shutil.rmtree(place, ignore_errors=True) if place.is_dir() else place.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    with file(path) as place:
        place.write_text(text, encoding="utf-8")


def hashes(folder: Path, leave: str | None = None) -> dict[str, str]:
    """SHA-256 of every file below `folder` by its name there, but for the file `leave`."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / str(leave))
    return {path.relative_to(folder).as_posix(): sha256(path) for path in files}


def seal(folder: Path, name: str, content: Mapping[str, Any] | None = None) -> None:
    """Writes the list `name` of all other files' hashes: the whole of it, or `files` beside `content`."""
    files = hashes(folder, leave=name)
    written = files if content is None else {**content, "files": files}
    (folder / name).write_text(json.dumps(written, indent=1), encoding="utf-8")


def fault(folder: Path, files: Mapping[str, str]) -> str | None:
    """What is the matter with the first file that is not as the list has it, or None."""
    for name, digest in files.items():
        try:
            if sha256(folder / name) != digest:
                return f"{name} has changed since it was written"
        except OSError as error:
            missing = isinstance(error, FileNotFoundError | NotADirectoryError)
            return f"{name} is missing" if missing else f"{name} cannot be read ({error.strerror})"
    return None


def sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def flush(path: Path) -> None:
    """Makes a file's bytes durable, or the names in a folder."""
    if os.name != "posix" and path.is_dir():
        return  # Windows opens no folders
    descriptor = os.open(path, os.O_RDWR if os.name != "posix" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_all(folder: Path) -> None:
    for path in (*folder.rglob("*"), folder):
        flush(path)


def _name() -> str:
    """Tells whose it is: see `_is_left`."""
    return f"{START}{socket.gethostname()[:64]}-{os.getpid()}-{secrets.token_hex(6)}"


def _is_left(place: Path) -> bool:
    if time.time() - place.stat().st_mtime > ABANDONED:
        return True
    host, _, rest = place.name.removeprefix(START).rpartition("-")[0].rpartition("-")
    if host != socket.gethostname()[:64] or not rest.isdecimal() or os.name != "posix":
        return False
    try:
        os.kill(int(rest), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):  # another user's
        pass
    return False


def _take_place(stage: Path, path: Path) -> None:
    if not path.exists():
        stage.rename(path)
    elif not _exchange(stage, path):
        gone = path.with_name(_name())
        path.rename(gone)
        stage.rename(path)
        shutil.rmtree(gone, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Swaps two names at once, where the system can."""
    try:
        swap = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    return swap(_AT_CWD, os.fsencode(one), _AT_CWD, os.fsencode(other), _EXCHANGE) == 0


def rename_new(place: Path, path: Path) -> None:
    """Gives a file or folder a name that is not taken; one that is raises FileExistsError."""
    try:
        path.hardlink_to(place)  # fails if the name is taken, without a race
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if path.exists():
            raise FileExistsError(errno.EEXIST, "exists already", str(path)) from None
        place.replace(path)
