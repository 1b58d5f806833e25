"""What became of every file that a build or an update met."""

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

_FIRST = 5


@dataclass(frozen=True)
class Left:
    """Files of one kind that were left out: how many, and the first five of them."""

    count: int
    first: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """Counts of files. `added` includes `renamed` and `duplicates`; `left_out` goes by reason."""

    added: int = 0
    changed: int = 0
    unchanged: int = 0
    deleted: int = 0
    renamed: int = 0
    duplicates: int = 0
    left_out: dict[str, Left] = field(default_factory=dict)

    @property
    def met(self) -> int:
        """All files and links that were there."""
        return self.added + self.changed + self.unchanged + sum(left.count for left in self.left_out.values())

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Tally:
    """A report in the making."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._left: Counter[str] = Counter()
        self._first: dict[str, list[str]] = {}

    def leave_out(self, reason: str, name: str) -> None:
        self._left[reason] += 1
        first = self._first.setdefault(reason, [])
        if len(first) < _FIRST:
            first.append(name)

    def report(self) -> Report:
        left = {reason: Left(n, tuple(self._first[reason])) for reason, n in self._left.items()}
        return Report(**self.counts, left_out=left)
