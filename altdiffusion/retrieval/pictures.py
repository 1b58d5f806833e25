"""What an index knows of a picture, and the files in a folder that may be one.

A name is whatever bytes the file system holds: NFC and NFD spellings are different files, and bytes that are
no text stay what they are. Links are never followed, pipes and devices never opened.
"""

import hashlib
import os
import stat
import unicodedata
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from altdiffusion.images import MAX_BYTES, ImageError, open_image
from altdiffusion.requests import BadRequest, shorten
from altdiffusion.retrieval.report import Tally
from altdiffusion.retrieval.where import folder_key

#: How the files of the formats that `open_image` takes begin.
_MAGIC = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"RIFF")
#: Windows has neither; it has no pipes among its files, and links to be opened need a privilege there.
_CAREFULLY = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


@dataclass(frozen=True, slots=True)
class Entry:
    """A file as the scan met it; `path` is relative to the root, with `/`."""

    path: str
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, root: Path, path: str, tally: Tally) -> "Entry | None":
        """None for what is no plain file, which `tally` then has."""
        try:
            found = (root / path).lstat()
        except OSError as error:  # gone since its folder was listed, for one
            tally.leave_out("unreadable", f"{printed(path)} ({error.strerror})")
            return None
        if stat.S_ISREG(found.st_mode):
            return cls(path, found.st_size, found.st_mtime_ns)
        tally.leave_out("link" if stat.S_ISLNK(found.st_mode) else "not a plain file", printed(path))
        return None


@dataclass(frozen=True, slots=True)
class Picture:
    """An indexed picture: where it lies under the root, and the file that was read."""

    path: str
    bytes: int
    mtime_ns: int
    sha256: str
    width: int
    height: int

    @property
    def id(self) -> str:
        """The same for the same name, so that nothing is stored twice."""
        return str(uuid.UUID(bytes=hashlib.sha256(os.fsencode(self.path)).digest()[:16]))

    def is_still(self, entry: Entry) -> bool:
        return (self.bytes, self.mtime_ns) == (entry.size, entry.mtime_ns)

    def to_payload(self) -> dict[str, Any]:
        """`folders` holds every folder on the way and the file itself, for `Where.path`."""
        parts = folder_key(shown(self.path)).split("/")
        payload = {
            "path": shown(self.path),
            "folders": ["/".join(parts[:depth]) for depth in range(1, len(parts) + 1)],
            "bytes": self.bytes,
            "mtime_ns": self.mtime_ns,
            "sha256": self.sha256,
            "width": self.width,
            "height": self.height,
        }
        if payload["path"] != self.path:
            payload["path_bytes"] = os.fsencode(self.path).hex()
        return payload

    @classmethod
    def from_payload(cls, payload: Mapping[str, Any]) -> "Picture":
        raw = payload.get("path_bytes")
        return cls(
            path=os.fsdecode(bytes.fromhex(raw)) if raw else payload["path"],
            bytes=int(payload["bytes"]),
            mtime_ns=int(payload["mtime_ns"]),
            sha256=payload["sha256"],
            width=int(payload["width"]),
            height=int(payload["height"]),
        )


def shown(path: str) -> str:
    """A path that is valid Unicode: bytes that are no text become �."""
    return os.fsencode(path).decode("utf-8", "replace")


def printed(path: str) -> str:
    """A path as it may stand on a terminal: composed, with nothing that moves the cursor or turns text."""
    visible = (c if unicodedata.category(c) not in ("Cc", "Cf", "Zl", "Zp") else "�" for c in shown(path))
    return unicodedata.normalize("NFC", "".join(visible))


def scan(root: Path, tally: Tally, leave: Path | None = None) -> tuple[list[Entry], list[str]]:
    """Every plain file below `root`, in an order that stays the same, and the folders that cannot be read.

    What else is there is counted in `tally`. `leave` is a folder of no interest: the index itself may lie
    among the pictures.
    """
    entries: list[Entry] = []
    unread: list[str] = []
    folders = [""]
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(root / folder) as listing:
                items = sorted(listing, key=lambda item: item.name)
        except OSError as error:
            tally.leave_out("unreadable folder", f"{printed(folder) or '.'} ({error.strerror})")
            unread.append(folder)
            continue
        below = []
        for item in items:
            path = f"{folder}/{item.name}" if folder else item.name
            if item.is_dir(follow_symlinks=False):
                below += [path] if Path(item.path) != leave else []
            elif entry := Entry.of(root, path, tally):
                entries.append(entry)
        folders += reversed(below)
    return entries, unread


def listed(source: str | os.PathLike | Sequence[str | os.PathLike]) -> tuple[Path, list[str] | None]:
    """The root of what is to be indexed, and the files under it where they were listed one by one."""
    if isinstance(source, str | os.PathLike):
        root = _absolute(source)
        if not root.is_dir():
            raise BadRequest(f"folder: {shorten(str(source))} is no folder; allowed one with pictures")
        return Path(os.path.realpath(root)), None
    files = [_absolute(path) for path in source]
    if not files:
        raise BadRequest("folder: an empty list; allowed a folder, or the paths of pictures")
    root = Path(os.path.commonpath([file.parent for file in files]))
    return root, sorted({file.relative_to(root).as_posix() for file in files})


def _absolute(path: Any) -> Path:
    if not isinstance(path, str | os.PathLike) or "\0" in os.fspath(path) or not os.fspath(path):
        raise BadRequest(f"folder: {shorten(path)} is no path; allowed a folder, or the paths of pictures")
    return Path(os.path.abspath(path))  # noqa: PTH100 (Path.absolute leaves `..` in)


class LeftOut(Exception):
    """A file that cannot be indexed: the reason's name, and what to say of it."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason, self.detail = reason, detail


def read(root: Path, path: str, known: Mapping[str, Picture]) -> tuple[Picture, Image.Image | None]:
    """What the file is, and its picture, upright and RGB; None where its content is `known` by SHA-256."""
    data, found = _bytes(root / path)
    digest = hashlib.sha256(data).hexdigest()
    if twin := known.get(digest):
        return replace(twin, path=path, bytes=found.st_size, mtime_ns=found.st_mtime_ns), None
    try:
        image = open_image(data, "picture")
    except ImageError as error:
        raise LeftOut("refused picture", str(error).partition(": ")[2]) from None
    return Picture(path, found.st_size, found.st_mtime_ns, digest, *image.size), image


def _bytes(path: Path) -> tuple[bytes, os.stat_result]:
    try:
        with open(os.open(path, os.O_RDONLY | _CAREFULLY), "rb") as file:  # noqa: PTH123 (of a descriptor)
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):  # it was when the folder was listed
                raise LeftOut("not a plain file")
            if not file.peek(16).startswith(_MAGIC):
                raise LeftOut("not a picture")
            if found.st_size > MAX_BYTES:
                raise LeftOut("refused picture", f"over {MAX_BYTES // 10**6} MB")
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise LeftOut("unreadable", error.strerror or str(error)) from None
    return data, found
