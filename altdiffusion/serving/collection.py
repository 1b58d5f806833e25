"""The emoji of the bundled model as a collection: names in 18 languages, and pictures to search.

The pictures are the font's, not the model's drawings: it draws 639 of the 1,364, which takes eight minutes,
and a search that finds what the same text tower drew would prove little.
"""

import contextlib
import functools
import json
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import save_file

from altdiffusion import bundled
from altdiffusion.images import ImageError, open_image
from altdiffusion.serving.news import Found

if TYPE_CHECKING:
    from altdiffusion import AltCLIP, Hit

NAMES, SHEET, VECTORS = "names.json", "sheet.webp", "vectors.safetensors"
_FOLDER = bundled.FOLDER / "collection"
_AT_ONCE = 32  # pictures that are encoded between two steps
_SHOWN = 512  # pixels of the longer side of a picture that was found


class Collection:
    """Read when it is first asked, from `folder`, or from the bundled model's.

    Its pictures' vectors lie beside it, for the encoder that is named there. With another one the pictures
    are encoded before the first search, some at a time: all of them take seconds, in which nobody else's
    drawing should stand still.
    """

    def __init__(self, folder: Path = _FOLDER) -> None:
        content = json.loads((folder / NAMES).read_text(encoding="utf-8"))
        self._folder = folder
        self.characters: str = content["characters"]
        self.names: dict[str, list[str]] = content["names"]
        self._side: int = content["side"]
        self._covered = set(bundled.covered())
        self._rows: list[np.ndarray] = []
        self._frame: Any = None

    @staticmethod
    def exists() -> bool:
        return (_FOLDER / NAMES).is_file()

    def versions(self, prompt: str, tags: Sequence[str]) -> dict[str, str]:
        """An emoji's name, or the emoji itself, in other languages; nothing where it is none of these."""
        number = self._numbers.get(_folded(prompt))
        if number is None:
            return {}
        return {tag: self.names[tag][number] for tag in tags if tag in self.names}

    def picture(self, number: int) -> Image.Image:
        columns = self._sheet.width // self._side
        left, top = number % columns * self._side, number // columns * self._side
        return self._sheet.crop((left, top, left + self._side, top + self._side))

    def search(self, clip: "AltCLIP", asked: Any, k: int) -> list[Found]:
        """As `ImageIndex.search`, over all pictures. `asked` is `altdiffusion.retrieval.asking.Asked`."""
        query = self._frame.query(asked.parts(clip, self._image_mean, self._text_mean))
        scores = self._stored @ query.vector + query.offset
        best = np.argsort(-scores, kind="stable")[:k]
        return [self._found(int(number), float(scores[number])) for number in best]

    @property
    def ready(self) -> bool:
        return self._frame is not None

    def encode_some(self, clip: "AltCLIP") -> None:
        """The next of the pictures; after the last of them all is ready."""
        if not self._rows and (shipped := self._shipped(clip)) is not None:
            self._rows.append(shipped)
        first = sum(map(len, self._rows))
        numbers = range(first, min(first + _AT_ONCE, len(self.characters)))
        if numbers:
            some = clip.encode_image([self.picture(number) for number in numbers])
            self._rows.append(some.float().cpu().numpy())
        elif not self.ready:
            self._arrange(clip, np.concatenate(self._rows))

    def write_vectors(self, clip: "AltCLIP") -> None:
        """Encodes all pictures and puts their vectors beside them: float16, half a thousandth off at most."""
        rows = clip.encode_image([self.picture(number) for number in range(len(self.characters))])
        vectors = {"pictures": rows.float().cpu().numpy().astype(np.float16)}
        save_file(vectors, self._folder / VECTORS, {"encoder": clip.fingerprint})

    def _shipped(self, clip: "AltCLIP") -> np.ndarray | None:
        """What `write_vectors` wrote, where it is there and of this encoder."""
        if not (file := self._folder / VECTORS).is_file():
            return None
        with safe_open(file, "np") as stored:
            known = (stored.metadata() or {}).get("encoder") == clip.fingerprint
            return stored.get_tensor("pictures").astype(np.float32) if known else None

    def _arrange(self, clip: "AltCLIP", rows: np.ndarray) -> None:
        from altdiffusion.retrieval import asking
        from altdiffusion.retrieval.queries import Frame

        self._image_mean = rows.mean(axis=0)
        self._text_mean = clip.encode_text(asking.PLAIN).float().cpu().numpy().mean(axis=0)
        frame = Frame(self._image_mean, self._text_mean)
        self._stored = frame.picture(rows)
        self._frame = frame

    def _found(self, number: int, score: float) -> Found:
        names: Mapping[str, str] = {tag: of_language[number] for tag, of_language in self.names.items()}
        character = self.characters[number]
        return Found(f"{character} {names['en']}", score, self.picture(number), character, names)

    @functools.cached_property
    def _sheet(self) -> Image.Image:
        with Image.open(self._folder / SHEET) as sheet:
            return sheet.convert("RGB")

    @functools.cached_property
    def _numbers(self) -> dict[str, int]:
        """Emoji by name: of two with one name the one that the model draws, else the earlier."""
        numbers: dict[str, int] = {}
        order = sorted(range(len(self.characters)), key=lambda n: self.characters[n] not in self._covered)
        for number in order:
            for name in (
                self.characters[number],
                *(of_language[number] for of_language in self.names.values()),
            ):
                numbers.setdefault(_folded(name), number)
        return numbers


def opened(hits: "Sequence[Hit]", root: Path) -> Iterator[Found]:
    """What an index found, in pictures small enough to send; files that are gone or damaged are left out."""
    for hit in hits:
        if hit.state == "missing":
            continue
        with contextlib.suppress(ImageError):
            picture = open_image(hit.path)
            picture.thumbnail((_SHOWN, _SHOWN))
            yield Found(hit.path.stem, hit.score, picture, hit.path.relative_to(root).as_posix())


def _folded(text: str) -> str:
    return unicodedata.normalize("NFC", text).replace("\ufe0f", "").strip().casefold()
