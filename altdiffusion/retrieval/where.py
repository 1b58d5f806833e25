"""Which pictures a search may find: by folder, date and size of the file."""

import re
import unicodedata
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from altdiffusion.requests import BadRequest, shorten

_DAY = re.compile(r"\d{4}-\d{2}-\d{2}")
_BYTES = re.compile(r"(\d{1,15}(?:\.\d{1,9})?)\s*([kmg]?)b?", re.IGNORECASE)
_UNITS = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3}


@dataclass(frozen=True)
class Where:
    """Only pictures in the folder `path` (relative to what was indexed), or that very file; last changed from
    `since` up to but not at `until` (seconds since 1970); of `smallest` to `largest` bytes."""

    path: str | None = None
    since: float | None = None
    until: float | None = None
    smallest: int | None = None
    largest: int | None = None

    @classmethod
    def build(
        cls,
        *,
        path: str | None = None,
        since: str | datetime | None = None,
        until: str | datetime | None = None,
        smallest: str | int | None = None,
        largest: str | int | None = None,
    ) -> "Where":
        """The same from what people write: `until="2024-05-31"` (that day included), `smallest="200k"`."""
        where = cls(
            _folder(path),
            _moment(since, "since"),
            _moment(until, "until", whole_day=True),
            _size(smallest, "smallest"),
            _size(largest, "largest"),
        )
        if where.since is not None and where.until is not None and where.since >= where.until:
            raise BadRequest(f"until: {shorten(until)} is before since, {shorten(since)}; allowed later")
        if where.smallest is not None and where.largest is not None and where.smallest > where.largest:
            raise BadRequest(
                f"largest: {shorten(largest)} is below smallest, {shorten(smallest)}; allowed at least that"
            )
        return where


ANYWHERE = Where()


def folder_key(path: str) -> str:
    """As folders are compared: é may be one character or two in a file's name, and nobody sees which."""
    return unicodedata.normalize("NFC", path).strip("/")


def _folder(path: Any) -> str | None:
    if path is None:
        return None
    key = folder_key(path) if isinstance(path, str) else ""
    while key.startswith("./"):
        key = key[2:]
    if not key or "\0" in key or any("\ud800" <= c <= "\udfff" for c in key) or ".." in key.split("/"):
        raise BadRequest(f"path: {shorten(path)}; allowed a folder inside the indexed one, as `2024/summer`")
    return None if key == "." else key


def _moment(text: Any, name: str, whole_day: bool = False) -> float | None:
    """Local time, unless it says otherwise; of a day without a time its start, or for `whole_day` its end."""
    if text is None:
        return None
    try:
        moment = text if isinstance(text, datetime) else datetime.fromisoformat(text)
        if whole_day and isinstance(text, str) and _DAY.fullmatch(text):
            moment += timedelta(days=1)
        return moment.timestamp()
    except (TypeError, ValueError, OverflowError, OSError):
        raise BadRequest(
            f"{name}: {shorten(text)}; allowed a date or a time, as 2024-05-31 or 2024-05-31T18:00"
        ) from None


def _size(text: Any, name: str) -> int | None:
    if text is None:
        return None
    match = None if isinstance(text, bool) else _BYTES.fullmatch(str(text).strip())
    if match is None:
        raise BadRequest(f"{name}: {shorten(text)}; allowed a number of bytes, as 5000, 200k or 1.5M")
    return int(float(match[1]) * _UNITS[match[2].lower()])
