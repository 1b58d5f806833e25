"""Data whose columns are found and whose captions are read, and what is to be said of it before training."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Any

from training.multilingual import Captions, SourceConfig, Survey, summary, surveyed_texts, usable
from training.samples import Row, Rows

#: Records of a stream that are looked at before training.
LOOKED_AT = 500


@dataclass
class Opened:
    """Data whose columns are found and whose captions are read once; of a stream only the columns."""

    source: str
    config: SourceConfig
    wanted: dict[str, float]
    columns: tuple[str, ...]
    read: Callable[[Row], Captions]
    stream: Any = None
    rows: Rows | None = None
    found: Survey | None = None

    def report(self) -> dict[str, Any]:
        if self.found is None:
            return {"data": self.source}
        texts = {tag: len(numbers) for tag, numbers in self.found.rows.items()}
        return {"data": self.source, "skipped": self.found.bad.count, "texts": texts}


def told(opened: Opened, tokenizer: Any) -> str:
    if opened.rows is None or opened.found is None:
        texts: dict[str, list[str]] = {}
        for row in islice(opened.stream, LOOKED_AT):
            captions = opened.read(row)
            for tag in usable(captions, opened.wanted):
                texts.setdefault(tag, []).append(captions[tag][0])
        counts = {tag: len(found) for tag, found in sorted(texts.items())}
        return summary(f"the first {LOOKED_AT} records", texts, counts, tokenizer)
    found = opened.found
    samples = f"{len(opened.rows):,} samples, {found.bad.count:,} skipped"
    if found.unwanted:
        samples += f", {found.unwanted:,} in no wanted language"
    counts = {tag: len(numbers) for tag, numbers in found.rows.items()}
    return summary(samples, surveyed_texts(opened.rows, opened.read, found), counts, tokenizer)
