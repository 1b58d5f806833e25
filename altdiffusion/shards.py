"""What is encoded in bulk: folders of pictures, TSV files and tar files, cut into shards of rows.

A tar holds samples as webdatasets do: members of one stem, a picture and its `.txt`. A TSV starts with a line
of column names, `text`, `image` or both; relative pictures start from the TSV's folder.
"""

import itertools
import os
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from altdiffusion.requests import BadRequest, shorten

_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".webp"}
#: Pictures of a folder in one shard: lost at most in an interruption, and one file of features.
PER_SHARD = 10_000


@dataclass(frozen=True)
class Row:
    """A key that is the row's own in its shard, and a text, a picture (its path or bytes), or both."""

    key: str
    text: str | None = None
    picture: Path | bytes | None = None


@dataclass(frozen=True)
class Shard:
    """Rows that become one file of features of this name."""

    name: str
    rows: Callable[[], Iterator[Row]]
    count: int = 0
    """Of rows, where that is known without reading them all."""


def shards_of(paths: Sequence[str], per_shard: int = PER_SHARD) -> list[Shard]:
    """In an order that depends on the names alone, so that every process sees the same."""
    shards: list[Shard] = []
    for given in paths:
        path = Path(given)
        if path.is_dir():
            files = _pictures(path)
            if not files:
                raise BadRequest(f"shards: no pictures in {shorten(given)}; allowed a folder with some")
            for number, at in enumerate(range(0, len(files), per_shard)):
                part = partial(_folder_rows, path, files[at : at + per_shard])
                count = len(files[at : at + per_shard])
                shards.append(Shard(f"{path.resolve().name}-{number:05}", part, count))
        elif path.is_file() and path.suffix.lower() in (".tsv", ".tar"):
            read = _tsv_rows if path.suffix.lower() == ".tsv" else _tar_rows
            shards.append(Shard(path.stem, partial(read, path)))
        else:
            raise BadRequest(f"shards: {shorten(given)}; allowed folders, .tsv and .tar files")
    names = [shard.name for shard in shards]
    for name in names:
        if names.count(name) > 1:
            raise BadRequest(f"shards: {shorten(name)} comes twice; allowed inputs of different names")
    return shards


def _pictures(folder: Path) -> list[Path]:
    """Regular files by their suffix. Links to folders are not followed: they may lead in a circle."""
    found = []
    for place, below, files in os.walk(folder):
        below.sort()
        paths = (Path(place) / name for name in sorted(files))
        found += [path for path in paths if path.suffix.lower() in _SUFFIXES and path.is_file()]
    return found


def _folder_rows(folder: Path, files: Sequence[Path]) -> Iterator[Row]:
    for file in files:
        yield Row(os.fsencode(file.relative_to(folder)).decode("utf-8", "backslashreplace"), picture=file)


def _tsv_rows(file: Path) -> Iterator[Row]:
    with file.open(encoding="utf-8-sig", errors="replace", newline="\n") as stream:
        names = stream.readline().rstrip("\r\n").split("\t")
        if not {"text", "image"} & set(names):
            raise BadRequest(
                f"shards: the first line of {shorten(str(file))} names neither text nor image; allowed "
                "column names"
            )
        for number, line in enumerate(stream, 2):
            cells = dict(itertools.zip_longest(names, line.rstrip("\r\n").split("\t")))
            image = cells.get("image")
            yield Row(f"line {number}", cells.get("text") or None, file.parent / image if image else None)


def _tar_rows(file: Path) -> Iterator[Row]:
    """Members of one stem lie together, as in webdatasets, so one sample is held at a time."""
    try:
        with tarfile.open(file) as tar:
            members = (member for member in tar if member.isfile())
            for stem, group in itertools.groupby(members, lambda member: _stem(member.name)):
                parts = {}
                for member in group:
                    stream = tar.extractfile(member)
                    parts[member.name[len(stem) :].lower()] = stream.read() if stream else b""
                picture = next((parts[part] for part in parts if part in _SUFFIXES), None)
                text = parts[".txt"].decode("utf-8", "replace").strip() if ".txt" in parts else None
                yield Row(stem, text or None, picture)
    except (OSError, tarfile.TarError) as error:
        raise BadRequest(f"shards: {shorten(str(file))} cannot be read ({error})") from None


def _stem(name: str) -> str:
    folder, slash, last = name.rpartition("/")
    return folder + slash + last.partition(".")[0]
