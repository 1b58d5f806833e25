"""Local copies of published data sets: what was found, its pictures, captions and labels.

A reader (captioned.py, labelled.py) recognises a folder in its owners' own layout and gives a `Found` for
each data set in it. Nothing is downloaded, unpacked or written.
"""

import contextlib
import gzip
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from altdiffusion.images import ImageError, open_image
from altdiffusion.requests import BadRequest, shorten

Kind = Literal["retrieval", "zero-shot"]

#: Where owners and users keep the pictures of a data set, seen from its annotations.
_PICTURE_FOLDERS = (
    "",
    "images",
    "Images",
    "flickr30k-images",
    "flickr30k_images",
    "train2014",
    "val2014",
    "val2017",
)
#: The tags that data sets write for a language, where they are not its own.
ALIASES = {"cn": "zh", "jp": "ja"}


@dataclass(frozen=True)
class Picture:
    """A file; or a stretch of a tar file; or 3 x 32 x 32 bytes of CIFAR (`planes`)."""

    file: Path
    name: str
    start: int = 0
    size: int | None = None
    planes: bool = False

    def open(self) -> Image.Image:
        if self.size is None:
            return open_image(self.file, "data")
        with self.file.open("rb") as stream:
            stream.seek(self.start)
            content = stream.read(self.size)
        if self.planes:
            colours = [Image.frombytes("L", (32, 32), content[at : at + 1024]) for at in (0, 1024, 2048)]
            return Image.merge("RGB", colours)
        try:
            return open_image(content, "data")
        except ImageError as error:
            where = f"{shorten(str(self.file))}: {shorten(self.name)}"
            raise ImageError(f"data: {where}: {str(error).removeprefix('data: ')}") from None

    @property
    def bytes(self) -> int:
        return self.file.stat().st_size if self.size is None else self.size


@dataclass(frozen=True)
class Captioned:
    """Pictures, and for each its captions in one language."""

    pictures: tuple[Picture, ...]
    captions: tuple[tuple[str, ...], ...]

    @property
    def digest(self) -> str:
        return digest(self.pictures, self.captions)


@dataclass(frozen=True)
class Labelled:
    """Pictures, the number of each one's class, the classes' names in one language, and the data's templates.

    Without templates of its own the classifier's are used, which the papers' figures are not comparable with.
    """

    pictures: tuple[Picture, ...]
    labels: tuple[int, ...]
    class_names: tuple[str, ...]
    templates: tuple[str, ...] | None = None

    @property
    def digest(self) -> str:
        return digest(self.pictures, [self.labels, self.class_names, self.templates])


@dataclass(frozen=True)
class Found:
    """A data set on this machine: its name, its languages, and how to read it in one of them."""

    name: str
    kind: Kind
    folder: Path
    languages: tuple[str, ...]
    reader: Callable[[str], Any]

    def read(self, tag: str) -> Any:
        """`Captioned` or `Labelled`, by kind. What is not in the published layout is refused in one line."""
        with _laid_out(self.folder, f"the published layout of {self.name}"):
            return self.reader(tag)


@contextlib.contextmanager
def _laid_out(folder: Path, how: str) -> Iterator[None]:
    """What goes wrong where files are not as the reader of a layout takes them to be is one line."""
    try:
        yield
    except (BadRequest, ImageError):
        raise
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise BadRequest(f"data: {shorten(str(folder))} is not in {how} ({shorten(repr(error))})") from error


def digest(pictures: Iterable[Picture], rest: object = None) -> str:
    """SHA-256 over the pictures' names and sizes and over all texts and labels; not over the pixels."""
    listed = [(picture.name, picture.bytes) for picture in pictures]
    return hashlib.sha256(json.dumps([listed, rest], ensure_ascii=False).encode()).hexdigest()


def find(
    root: Path, readers: Sequence[Callable[[Path], list[Found]]], kind: Kind | None = None
) -> list[Found]:
    """The data sets in `root` and up to two folders below; of one in one language found twice, the first."""
    found: list[Found] = []
    taken: set[tuple[str, str]] = set()
    for folder in _folders(root, 2):
        for reader in readers:
            for one in recognised(reader, folder):
                languages = tuple(tag for tag in one.languages if (one.name, tag) not in taken)
                if languages and kind in (None, one.kind):
                    taken |= {(one.name, tag) for tag in languages}
                    found.append(Found(one.name, one.kind, one.folder, languages, one.reader))
    return found


def recognised(reader: Callable[[Path], list[Found]], folder: Path) -> list[Found]:
    """The data sets that a reader finds in the folder; files in another layout are refused in one line."""
    with _laid_out(folder, "a published layout"):
        return reader(folder)


def _folders(root: Path, depth: int) -> Iterator[Path]:
    yield root
    if depth:
        below = sorted(entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
        if len(below) < 100:  # more are the classes of a tree
            for folder in below:
                yield from _folders(folder, depth - 1)


def locate(folder: Path, names: Iterable[str]) -> tuple[Picture, ...]:
    """The pictures that an annotation file names: beside it, in the usual folders, or in a sister folder."""
    near = [folder, *_around(folder)]
    places = [place / below for place in near for below in _PICTURE_FOLDERS if (place / below).is_dir()]
    pictures = []
    for name in names:
        # CLIP_benchmark writes the paths of the machine that the file was made on.
        tries = (place / part for part in dict.fromkeys((name, Path(name).name)) for place in places)
        file = next((path for path in tries if path.is_file()), Path())
        if not file.name:
            raise BadRequest(
                f"data: the picture {shorten(name)} of {shorten(str(folder))} is missing; allowed beside the "
                "annotations, in images/ or a folder by its published name, there or in a sister folder"
            )
        places.sort(key=lambda place: place not in file.parents)  # the next one is likely there as well
        pictures.append(Picture(file, name))
    return tuple(pictures)


def _around(folder: Path) -> Iterator[Path]:
    for above in (folder.resolve().parent, folder.resolve().parent.parent):
        yield above
        yield from sorted(entry for entry in above.iterdir() if entry.is_dir())


def read_lines(file: Path) -> list[str]:
    """UTF-8, plain or gzip; without line ends."""
    try:
        raw = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        text = raw.decode("utf-8-sig")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise BadRequest(f"data: {shorten(str(file))} cannot be read ({error})") from None
    lines = [line.rstrip("\r") for line in text.split("\n")]  # captions may hold the other ends of lines
    return lines if lines[-1] else lines[:-1]


def read_json(file: Path) -> Any:
    try:
        return json.loads("\n".join(read_lines(file)))
    except ValueError as error:
        if isinstance(error, BadRequest):
            raise
        raise BadRequest(f"data: {shorten(str(file))} is not JSON ({error})") from None


def read_mapping(file: Path) -> dict[str, Any]:
    content = read_json(file)
    if not isinstance(content, dict):
        raise BadRequest(f"data: {shorten(str(file))} is no JSON object; allowed the published layout")
    return content


def text_of(value: object) -> str:
    """A caption or name as it is, as published figures are of it; refused is what no tokenizer reads."""
    if not isinstance(value, str) or any("\ud800" <= letter <= "\udfff" for letter in value):
        raise BadRequest(f"data: {shorten(value)} is no text; allowed texts without lone surrogates")
    return value.strip()


def tag_of(text: str) -> str:
    """A data set's name of a language as a tag: `jp` is `ja`, `PT-BR` stays `pt-br`."""
    tag = text.lower().replace("_", "-")
    return ALIASES.get(tag, tag)
