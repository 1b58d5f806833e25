"""Samples: what a record is, and what becomes of those that cannot be used."""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch.utils.data import get_worker_info

logger = logging.getLogger(__name__)
Row = dict[str, Any]
#: Bad samples that are named one by one; all are counted.
NAMED = 10
#: A stream's share of bad samples is judged as if it had at least so many.
STREAM_LENGTH = 1000
#: Endings of pictures that may have text files beside them.
SHOWN = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp")


class BadSample(ValueError):
    """A sample that cannot be used, with the reason."""


@dataclass
class Bad:
    """Counts and names what was skipped; stops above `share` of `expected` samples."""

    share: float
    expected: int
    argument: str = "data"
    seen: int = 0
    named: list[str] = field(default_factory=list)
    count: int = 0
    untold: list[tuple[str, str]] = field(default_factory=list)

    def add(self, name: str, reason: object) -> None:
        if get_worker_info() is not None:  # one of several, none of which sees them all
            self.untold.append((name, str(reason)))
            return
        self.count += 1
        if self.count <= NAMED:
            self.named.append(f"{shorten(name)} ({shorten(str(reason), 100)})")
            logger.warning("skipped: %s", self.named[-1])
        self.check()

    def taken(self) -> list[tuple[str, str]]:
        """What a worker has found since it was asked last."""
        found, self.untold = self.untold, []
        return found

    def check(self) -> None:
        total = max(self.seen, self.expected)
        if self.count > self.share * total:
            raise ValueError(
                f"{self.argument}: {self.count} of {total} samples cannot be used, more than the share of "
                f"{self.share:g} that max_bad_share allows: {'; '.join(self.named)}"
            )


class Rows(Protocol):
    """Records by place."""

    columns: tuple[str, ...]
    fingerprint: str
    folder: Path | None
    """What relative picture paths start from."""

    def __len__(self) -> int: ...
    def __getitem__(self, number: int) -> Row: ...
    def name(self, number: int) -> str: ...
    def without_pictures(self) -> "Rows": ...


def shorten(text: str, length: int = 80) -> str:
    return text if len(text) <= length else f"…{text[-length + 1 :]}"
