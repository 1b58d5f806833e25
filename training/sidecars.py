"""A folder of pictures with captions in text files beside them, as kohya's sd-scripts have it.

`cat.png` is described by `cat.txt` (or `cat.caption`), in a language by `cat.zh.txt`; each line is a caption.
Without text files the pictures are read alone, for a stage that is given the prompt.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path

from training.multilingual import ONLY_PICTURES
from training.samples import SHOWN, BadSample, Row

TEXTS = {".txt", ".caption"}


class Sidecars:
    """Records of the pictures of a folder and of the folders in it, by name."""

    def __init__(self, folder: Path) -> None:
        self.folder: Path | None = folder
        found = sorted(path for path in folder.rglob("*") if not hidden(path.relative_to(folder)))
        self.pictures = [path for path in found if path.suffix.lower() in SHOWN]
        stems = {path.with_suffix("") for path in self.pictures}
        self.texts: dict[Path, list[tuple[str, Path]]] = {}
        for path in found:
            if path.suffix.lower() in TEXTS:
                stem, tag = named(path, stems)
                self.texts.setdefault(stem, []).append((tag, path))
        self.columns: tuple[str, ...] = (
            (*ONLY_PICTURES, "captions") if self.texts.keys() & stems else ONLY_PICTURES
        )
        states = ((path, path.stat()) for path in found if path.is_file())
        stamps = [f"{path.relative_to(folder)}\0{s.st_size}\0{s.st_mtime_ns}" for path, s in states]
        self.fingerprint = hashlib.sha256("\n".join([str(folder.resolve()), *stamps]).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, number: int) -> Row:
        path = self.pictures[number]
        row: Row = {"file_name": self.name(number)}
        if "captions" in self.columns:
            row["captions"] = list(self.captions(path.with_suffix("")))
        return row

    def captions(self, stem: Path) -> Iterator[dict[str, str]]:
        for tag, path in self.texts.get(stem, ()):
            try:
                text = path.read_text(encoding="utf-8-sig")
            except UnicodeDecodeError as error:
                raise BadSample(f"{path.name} is not UTF-8") from error
            yield from ({"lang": tag, "text": line} for line in text.splitlines())

    def name(self, number: int) -> str:
        assert self.folder is not None
        return str(self.pictures[number].relative_to(self.folder))

    def without_pictures(self) -> "Sidecars":
        return self


def hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def named(text: Path, stems: set[Path]) -> tuple[Path, str]:
    """The picture that a text file is about, without its ending, and the language or nothing."""
    stem = text.with_suffix("")
    if stem in stems:
        return stem, ""
    return stem.with_suffix(""), stem.suffix.removeprefix(".")
