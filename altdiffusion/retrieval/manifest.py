"""The file that makes a folder an index: which encoder, of which pictures, and where its vectors lie."""

import dataclasses
import json
import uuid
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter, ValidationError

from altdiffusion import aside
from altdiffusion.requests import BadRequest, shorten

FILE = "index.json"
_FORMAT = 1


@dataclass(frozen=True)
class Manifest:
    fingerprint: str
    """Of the encoder: weights, tokenizer and preprocessing."""
    dtype: str
    dim: int
    root: str
    """The folder of the pictures; paths in the index are relative to it."""
    image_mean: list[float]
    """This and `text_mean` are how vectors lie in the engine (queries.Frame): any values give the same
    scores, these make signs tell most."""
    text_mean: list[float]
    model: str | None = None
    """As `from_pretrained` takes it; None is the bundled one."""
    only: list[str] | None = None
    """The pictures that were listed, where it was not the whole folder."""
    url: str | None = None
    collection: str | None = None
    signs: bool = False
    complete: bool = False
    """Whether the first build has reached its end."""
    format: int = _FORMAT

    def write(self, folder: Path) -> None:
        """Written aside and renamed: whoever reads meets the old one or the new one."""
        aside.sweep(folder)
        text = json.dumps(dataclasses.asdict(self))  # ASCII: names need not be valid Unicode
        aside.write_text(folder / FILE, text)


def exists(folder: Path) -> bool:
    return (folder / FILE).is_file()


def read(folder: Path) -> Manifest:
    name = shorten(str(folder))
    try:
        text = (folder / FILE).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise BadRequest(
            f"index: {name} is no index; allowed a folder made by `altdiffusion index`"
        ) from None
    except (OSError, ValueError) as error:
        raise BadRequest(f"index: {name} cannot be read ({shorten(str(error))})") from None
    try:
        data = json.loads(text)
        number = data.get("format") if isinstance(data, dict) else None
        if number != _FORMAT:
            raise BadRequest(f"index: {name} has the format {shorten(number)}; allowed {_FORMAT}")
        return _checked(TypeAdapter(Manifest).validate_python(data), name)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"]))
        raise BadRequest(f"index: {name} is damaged ({field}: {first['msg']})") from None
    except ValueError as error:
        if isinstance(error, BadRequest):
            raise
        raise BadRequest(f"index: {name} is damaged ({FILE} is not JSON)") from None


def _checked(manifest: Manifest, name: str) -> Manifest:
    for field in ("image_mean", "text_mean"):
        mean = np.asarray(getattr(manifest, field))
        if mean.shape != (manifest.dim,) or not np.isfinite(mean).all():
            raise BadRequest(f"index: {name} is damaged ({field} is not {manifest.dim} numbers)")
    return manifest


def new_collection() -> str:
    return f"altdiffusion-{uuid.uuid4().hex[:16]}"
