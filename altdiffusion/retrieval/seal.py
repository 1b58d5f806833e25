"""The list of an index's files with their hashes, by which damage is found: the engine sees little of it.

A vector that has changed on the disk is found as ever, somewhere else. The list is there while the files lie
still: taken away before the first change, written anew when the engine is closed.
"""

import json
from pathlib import Path

from altdiffusion import aside
from altdiffusion.requests import BadRequest, shorten
from altdiffusion.retrieval import manifest

#: Bytes up to which all is read when an index is opened, which takes a second at most; sizes are compared
#: whatever they are, and `update` reads everything.
READ_UP_TO = 10**9


def file_of(vectors: Path) -> Path:
    return vectors.with_name(f"{vectors.name}.json")


def check(vectors: Path, *, whole: bool = False) -> None:
    """Refuses files that are not as they were written; those without a list are taken as they are."""
    try:
        listed = json.loads(file_of(vectors).read_text(encoding="utf-8"))
        sizes, hashes = dict(listed["sizes"]), dict(listed["files"])
        total = sum(sizes.values())
    except FileNotFoundError:
        return
    except (OSError, ValueError, KeyError, TypeError):
        raise _damaged(vectors, f"{file_of(vectors).name} cannot be read") from None
    folder = vectors.parent
    for name, size in sizes.items():
        if not (folder / name).is_file():
            raise _damaged(vectors, f"{name} is missing")
        if (found := (folder / name).stat().st_size) != size:
            raise _damaged(vectors, f"{name} has {found:,} bytes, not {size:,}")
    if (whole or total <= READ_UP_TO) and (fault := aside.fault(folder, hashes)):
        raise _damaged(vectors, fault)


def remove(vectors: Path) -> None:
    file_of(vectors).unlink(missing_ok=True)


def write(vectors: Path) -> None:
    """Of the engine's files, and of the index's own manifest beside them."""
    folder = vectors.parent
    hashes = {f"{vectors.name}/{name}": digest for name, digest in aside.hashes(vectors).items()}
    if (folder / manifest.FILE).is_file():
        hashes[manifest.FILE] = aside.sha256(folder / manifest.FILE)
    sizes = {name: (folder / name).stat().st_size for name in hashes}
    aside.write_text(file_of(vectors), json.dumps({"sizes": sizes, "files": hashes}, indent=1))


def _damaged(vectors: Path, what: str) -> BadRequest:
    return BadRequest(
        f"index: {shorten(str(vectors.parent))} is damaged ({what}); allowed one as it was "
        "written: build it again, with another --output"
    )
