"""Where samples are read from: JSONL, TSV, imagefolder, parquet, webdataset tars, any name of `datasets`,
pictures with text files beside them.

Everything but a stream is read by place (`rows[number]`), pictures undecoded. JSONL and TSV are read here,
line by line: in `datasets` one broken line ends the whole file. The rest is `datasets`' own.
"""

import hashlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from training.samples import SHOWN, BadSample, Row, Rows, shorten

logger = logging.getLogger(__name__)
#: What a folder of data is told by, in this order, and the builder of `datasets` that reads it.
BUILDERS = {".tar": "webdataset", ".parquet": "parquet"}


class Lines:
    """Records of a JSONL or a TSV file with a header. A broken line is one bad sample."""

    def __init__(self, path: Path) -> None:
        if not path.stat().st_size:
            raise ValueError(f"data: {shorten(str(path))} is empty")
        self.path = path
        self.folder: Path | None = path.parent
        self.data = np.memmap(path, np.uint8, mode="r")
        ends = np.flatnonzero(self.data == ord("\n"))
        self.starts = np.concatenate([[0], ends + 1])
        self.ends = np.concatenate([ends, [len(self.data)]])
        self.numbers = np.flatnonzero(self.ends > self.starts)
        self.header: list[str] = []
        if path.suffix == ".tsv":
            self.header = self.line(0).split("\t")
            self.numbers = self.numbers[1:]
            self.columns = tuple(self.header)
        else:
            self.columns = tuple(dict.fromkeys(name for row in self.first(100) for name in row))
        self.fingerprint = stamp(path)

    def __len__(self) -> int:
        return len(self.numbers)

    def line(self, number: int) -> str:
        place = self.numbers[number]
        raw = self.data[self.starts[place] : self.ends[place]].tobytes()
        try:
            return raw.decode("utf-8-sig").rstrip("\r")
        except UnicodeDecodeError as error:
            raise BadSample("is not UTF-8") from error

    def __getitem__(self, number: int) -> Row:
        line = self.line(number)
        if self.header:
            cells = line.split("\t")
            if len(cells) != len(self.header):
                raise BadSample(f"has {len(cells)} columns, the header {len(self.header)}")
            return dict(zip(self.header, cells, strict=True))
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise BadSample(f"is no JSON: {error.msg}") from error
        if not isinstance(row, dict):
            raise BadSample("is no JSON object")
        return row

    def first(self, count: int) -> Iterator[Row]:
        for number in range(min(count, len(self))):
            try:
                yield self[number]
            except BadSample:  # is counted and named when the samples are
                continue

    def name(self, number: int) -> str:
        return f"{self.path.name} line {int(self.numbers[number]) + 1}"

    def without_pictures(self) -> "Lines":
        return self


class Table:
    """A `datasets.Dataset`, its pictures undecoded."""

    def __init__(self, dataset: Any, folder: Path | None = None) -> None:
        self.dataset, self.folder = undecoded(dataset), folder
        self.columns = tuple(dataset.column_names)
        self.fingerprint = dataset._fingerprint  # what `datasets` keys its own caches by

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, number: int) -> Row:
        return self.dataset[int(number)]

    def name(self, number: int) -> str:
        return record_name(self[number], f"row {number}")

    def without_pictures(self) -> "Table":
        kept = [name for name in self.columns if name not in picture_columns(self.dataset.features)]
        return Table(self.dataset.select_columns(kept), self.folder)


def open_rows(source: str, split: str = "train", subset: str = "") -> Rows:
    """The records of a folder, a file, a pattern of files, or a data set's name."""
    path = lines_file(Path(source))
    if path is not None:
        return Lines(path)
    if only_pictures(Path(source)):
        from training.sidecars import Sidecars

        return Sidecars(Path(source))
    dataset = loaded(source, split, subset, streaming=False)
    return Table(dataset, Path(source) if Path(source).is_dir() else None)


def open_stream(source: str, split: str, subset: str) -> Any:
    """A `datasets.IterableDataset`, its pictures undecoded."""
    if lines_file(Path(source)) is not None or only_pictures(Path(source)):
        raise ValueError(f"streaming: {shorten(source)} is read by place as it is; leave streaming False")
    return undecoded(loaded(source, split, subset, streaming=True))


def lines_file(path: Path) -> Path | None:
    """The JSONL or TSV file that `path` is or, as a folder, holds."""
    if path.is_dir():
        named = path / "metadata.jsonl"
        found = [named] if named.is_file() else sorted([*path.glob("*.jsonl"), *path.glob("*.tsv")])
        if len(found) > 1:
            raise ValueError(
                f"data: {shorten(str(path))} holds {len(found)} .jsonl and .tsv files; allowed: name one"
            )
        return found[0] if found else None
    return path if path.is_file() and path.suffix in {".jsonl", ".tsv"} else None


def only_pictures(path: Path) -> bool:
    """Whether a folder holds pictures, and nothing that says more about them than text files."""
    if not path.is_dir():
        return False
    names = [found.name.lower() for found in path.rglob("*")]
    told = ("metadata.csv", "metadata.parquet", "dataset_info.json", "dataset_dict.json")
    return any(name.endswith(SHOWN) for name in names) and not any(
        name in told or name.endswith((".tar", ".parquet", ".jsonl")) for name in names
    )


def loaded(source: str, split: str, subset: str, streaming: bool) -> Any:
    from datasets import IterableDataset, load_dataset, load_from_disk

    path = Path(source)
    if not streaming and ((path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file()):
        dataset = load_from_disk(source)
        return (
            dataset
            if hasattr(dataset, "column_names") and not isinstance(dataset, dict)
            else part(dataset, split, source)
        )
    builder, arguments = recognised(source)
    arguments = {"name": subset or None, "split": split, **arguments}
    try:
        if builder == "webdataset":
            arguments["features"] = whole_json(load_dataset(builder, streaming=True, **arguments).features)
        dataset = load_dataset(builder, streaming=streaming, **arguments)
    except Exception as error:  # a dozen kinds, from the network's to pyarrow's
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"data: {shorten(source)} cannot be read: {shorten(reason, 200)}") from error
    if not isinstance(dataset, IterableDataset) and not len(dataset):
        raise ValueError(f"data: {shorten(source)} is empty")
    return dataset


def part(dataset: Any, split: str, source: str) -> Any:
    if split not in dataset:
        raise ValueError(f"split: {shorten(source)} has no {split[:40]!r}; allowed: {', '.join(dataset)}")
    return dataset[split]


def recognised(source: str) -> tuple[str, dict[str, Any]]:
    """The builder of `datasets` and its arguments."""
    path = Path(source)
    if "*" in source or path.is_file():
        suffix = path.suffix
        files = sorted(str(p) for p in path.parent.glob(path.name)) if "*" in source else [source]
        if suffix not in BUILDERS or not files:
            raise ValueError(
                f"data: {shorten(source)} is no file of a known kind; "
                f"allowed: .jsonl, .tsv, {', '.join(BUILDERS)}"
            )
        return BUILDERS[suffix], {"data_files": files}
    if path.is_dir():
        for suffix, builder in BUILDERS.items():
            if files := sorted(str(p) for p in path.rglob(f"*{suffix}") if p.name != "metadata.parquet"):
                return builder, {"data_files": files}
        if not any(path.rglob("metadata.*")):
            raise ValueError(
                f"data: {shorten(source)} holds no data; allowed: metadata.jsonl, .csv or .parquet, or "
                ".txt files, beside pictures, a .jsonl or .tsv file, .parquet or .tar files"
            )
        return "imagefolder", {"data_dir": source}
    if path.is_absolute() or source.startswith(".") or source.count("/") > 1 or path.suffix in SUFFIXES:
        raise ValueError(f"data: no file or folder {shorten(source)}")
    return source, {}


SUFFIXES = {".jsonl", ".tsv", *BUILDERS}


def whole_json(features: Any) -> Any:
    """Nested fields as they are in each file: `datasets` takes their names from the first five samples of a
    tar and drops captions in every language that it has not met there.
    """
    from datasets import Features, Json, Value

    plain = {name: kind for name, kind in features.items() if isinstance(kind, Value)}
    pictures = {name: features[name] for name in picture_columns(features)}
    return Features({name: {**plain, **pictures}.get(name, Json()) for name in features})


def undecoded(dataset: Any) -> Any:
    """Pictures stay bytes: they are opened here, with their limits, and only where they are needed."""
    from datasets import Image

    for name in picture_columns(dataset.features):
        dataset = dataset.cast_column(name, Image(decode=False))
    return dataset


def picture_columns(features: Any) -> list[str]:
    from datasets import Image

    return [name for name, kind in (features or {}).items() if isinstance(kind, Image)]


def record_name(row: Row, otherwise: str) -> str:
    """How a record is called in messages: its key, or the file of its picture."""
    if row.get("__key__"):
        return str(row["__key__"])
    for value in row.values():
        if isinstance(value, dict) and isinstance(value.get("path"), str):
            return value["path"]
    return otherwise


def stamp(path: Path) -> str:
    """Changes when a file does."""
    state = path.stat()
    return hashlib.sha256(f"{path.resolve()}\0{state.st_size}\0{state.st_mtime_ns}".encode()).hexdigest()
