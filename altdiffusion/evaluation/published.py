"""Published figures (published.json), each with the model and the source, and who gives the data out.

Values are percent, as printed. The AltCLIP paper gives two sets for the Chinese ImageNets, which differ: both
are here.
"""

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

#: Whose rows `evaluate paper` repeats.
OURS = ("AltCLIP", "AltCLIP-m9")


@dataclass(frozen=True)
class Row:
    """One model's published scores on one data set in one language."""

    model: str
    data_set: str
    language: str
    scores: dict[str, float]
    source: str


@functools.cache
def rows() -> tuple[Row, ...]:
    return tuple(Row(**row) for row in _content()["rows"])


def rows_for(data_set: str, language: str, models: Sequence[str] = OURS) -> tuple[Row, ...]:
    return tuple(
        row for row in rows() if (row.data_set, row.language) == (data_set, language) and row.model in models
    )


def where() -> dict[str, str]:
    """Who gives out each data set of the rows."""
    return dict(_content()["where"])


@functools.cache
def _content() -> dict:
    return json.loads((Path(__file__).parent / "published.json").read_text(encoding="utf-8"))
