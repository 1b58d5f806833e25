"""The emoji model that ships inside the package: where it lies, whether it is whole, what it can draw.

Standard library only, so that `info` and error messages cost no import of torch.
"""

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path

from altdiffusion import aside

FOLDER = Path(__file__).parent / "weights"
MANIFEST = "manifest.json"
CARD = "emoji.json"
_WEIGHTS = (".safetensors", ".bin")


def exists() -> bool:
    return (FOLDER / "model_index.json").is_file()


def card(folder: Path | None = None) -> dict:
    """What `emoji.json` says: covered emoji, languages, defaults, recipe, commit, figures."""
    file = (FOLDER if folder is None else folder) / CARD
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"model: {str(file)!r:.200} is missing; allowed: a complete model") from None
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise ValueError(f"model: {str(file)!r:.200} is damaged: not a JSON object")
    return content


def covered() -> list[str]:
    """The emoji that the bundled model draws."""
    return list(card()["covered"])


def verify(folder: Path | None = None) -> None:
    """Compares every file with the manifest; a ValueError names what is missing or damaged."""
    folder = FOLDER if folder is None else Path(folder)
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"model: {folder} has no {MANIFEST}, so it cannot be checked") from None
    except ValueError:
        raise ValueError(f"model: {folder / MANIFEST} is damaged: not JSON") from None
    missing = [name for name in manifest if not (folder / name).is_file()]
    there = {name: digest for name, digest in manifest.items() if name not in missing}
    damaged = [name for name, digest in there.items() if aside.sha256(folder / name) != digest]
    if missing or damaged:
        faults = [f"missing {name}" for name in missing] + [f"damaged {name}" for name in damaged]
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise ValueError(f"model: {folder} is not as it was saved: {', '.join(faults[:3])}{more}")


@contextlib.contextmanager
def compared(folder: Path, part: str = "") -> Iterator[None]:
    """Compares the weights in `folder/part` with the folder's list meanwhile, in a thread; refuses others.

    A flipped bit draws other pictures without an error. Models without a list are taken as they are, and so
    is the bundled one, which `verify` has read.
    """
    listed = {} if folder.is_file() or folder == FOLDER else _listed(folder)
    weights = {n: digest for n, digest in listed.items() if n.endswith(_WEIGHTS) and n.startswith(part)}
    found: list[str] = []
    stop = threading.Event()

    def compare() -> None:
        for name, digest in weights.items():
            if (folder / name).is_file() and _digest(folder / name, stop) not in (digest, None):
                found.append(name)

    reader = threading.Thread(target=compare, daemon=True)
    reader.start()
    try:
        yield
    except BaseException:
        stop.set()
        raise
    reader.join()
    if found:
        raise ValueError(
            f"model: {str(folder / found[0])!r:.200} is not what its folder's {MANIFEST} says: damaged, or "
            f"replaced; allowed: the file as it was saved, or a folder without {MANIFEST}"
        )


def _listed(folder: Path) -> dict[str, str]:
    """Of a manifest of ours, in the folder or, of a part, around it; another one's says something else."""
    for place, start in ((folder, ""), (folder.absolute().parent, f"{folder.name}/")):
        try:
            content = json.loads((place / MANIFEST).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(content, dict) and all(isinstance(digest, str) for digest in content.values()):
            return {name.removeprefix(start): content[name] for name in content if name.startswith(start)}
    return {}


def _digest(file: Path, stop: threading.Event) -> str | None:
    """SHA-256; None where it was stopped, or the file could not be read, which loading it will say."""
    digest = hashlib.sha256()
    try:
        with file.open("rb") as stream:
            while block := stream.read(2**20):
                if stop.is_set():
                    return None
                digest.update(block)
    except OSError:
        return None
    return digest.hexdigest()


def write_manifest(folder: Path) -> Path:
    """Lists the model's files in `folder` with their SHA-256, for `verify`, and no other files there."""
    folder = Path(folder)
    tops = [
        file for pattern in ("*.json", "*.md", "*.safetensors", "LICENSE*") for file in folder.glob(pattern)
    ]
    parts = [part for part in folder.iterdir() if part.is_dir() and any(part.glob("*.json"))]
    files = sorted({*tops, *(file for part in parts for file in part.rglob("*"))})
    files = [file for file in files if file.is_file() and file != folder / MANIFEST]
    manifest = {file.relative_to(folder).as_posix(): aside.sha256(file) for file in files}
    aside.write_text(folder / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    return folder / MANIFEST
