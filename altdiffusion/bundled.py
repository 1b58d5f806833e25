"""The emoji model that ships inside the package: where it lies, whether it is whole, what it can draw.

Standard library only, so that `info` and error messages cost no import of torch.
"""

import hashlib
import json
from pathlib import Path

FOLDER = Path(__file__).parent / "weights"
MANIFEST = "manifest.json"
CARD = "emoji.json"


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
    damaged = [
        name for name, digest in manifest.items() if name not in missing and digest != _sha256(folder / name)
    ]
    if missing or damaged:
        faults = [f"missing {name}" for name in missing] + [f"damaged {name}" for name in damaged]
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise ValueError(f"model: {folder} is not as it was saved: {', '.join(faults[:3])}{more}")


def write_manifest(folder: Path) -> Path:
    """Lists the model's files in `folder` with their SHA-256, for `verify`, and no other files there."""
    folder = Path(folder)
    tops = [
        file for pattern in ("*.json", "*.md", "*.safetensors", "LICENSE*") for file in folder.glob(pattern)
    ]
    parts = [part for part in folder.iterdir() if part.is_dir() and any(part.glob("*.json"))]
    files = sorted({*tops, *(file for part in parts for file in part.rglob("*"))})
    files = [file for file in files if file.is_file() and file != folder / MANIFEST]
    manifest = {file.relative_to(folder).as_posix(): _sha256(file) for file in files}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return folder / MANIFEST


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
