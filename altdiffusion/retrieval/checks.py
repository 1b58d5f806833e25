"""What a build or an opening refuses, before any model work where that can be."""

import re
import shlex
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from altdiffusion import aside
from altdiffusion.requests import BadRequest, shorten
from altdiffusion.retrieval import manifest
from altdiffusion.retrieval.manifest import Manifest
from altdiffusion.retrieval.pictures import printed

if TYPE_CHECKING:
    from altdiffusion.model import AltCLIP


def check_encoder(folder: Path, made: Manifest, clip: "AltCLIP") -> None:
    """The same dimension is not enough: another encoder's vectors would be compared without a complaint."""
    if clip.fingerprint != made.fingerprint:
        raise BadRequest(
            f"index: {shorten(str(folder))} was made by the encoder {made.fingerprint[:12]} "
            f"({made.model or 'the bundled one'}), and this is {clip.fingerprint[:12]}; allowed that one, "
            f"or a new index: altdiffusion index {shlex.quote(printed(made.root))} -o NEW --model MODEL"
        )


def check_target(folder: Path, url: str | None = None) -> None:
    """Refuses now what a build would find out after the model is loaded."""
    if url is not None and url != ":memory:" and not re.match(r"https?://[^/]", url):
        raise BadRequest(f"url: {shorten(url)}; allowed a Qdrant server, as http://localhost:6333")
    name = shorten(str(folder))
    try:
        if folder.exists() and (not folder.is_dir() or any(map(_foreign, folder.iterdir()))):
            raise BadRequest(
                f"output: {name} is there and no index; allowed a new folder, an empty one, or an index"
            )
        parent = next(parent for parent in (folder, *folder.parents) if parent.is_dir())
        with tempfile.TemporaryFile(dir=parent):
            return
    except OSError as error:
        raise BadRequest(f"output: {name} cannot be written to ({error.strerror or error})") from None


def refuse_another(folder: Path, root: Path, only: list[str] | None, url: str | None) -> None:
    """An index that is there is gone on with only if it is of the same pictures, in the same place."""
    made = manifest.read(folder)
    for name, asked, kept in (
        ("folder", str(root), made.root),
        ("folder", only, made.only),
        ("url", url, made.url),
    ):
        if asked != kept:
            raise BadRequest(
                f"{name}: {shorten(asked)} is not what the index {shorten(str(folder))} is of, "
                f"{shorten(kept)}; allowed the same, or another output"
            )


def _foreign(path: Path) -> bool:
    """A build that was killed as it began may have left a manifest without its name."""
    return not path.name.startswith(aside.START)
