"""Models from the Hugging Face Hub: which files of a repository are fetched, and to where."""

import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from altdiffusion.layouts import ALLOWED
from altdiffusion.reading import one_line, refusal

_TEXTS = (".json", ".md", ".model", ".txt", ".yaml")
_WEIGHTS = re.compile(
    r"(diffusion_pytorch_model|pytorch_model|model)(\.(?P<first>\w+))?(-\d+-of-\d+)?(\.(?P<last>\w+))?"
    r"\.(?P<kind>safetensors|bin)"
)


def wanted(files: Iterable[str], variant: str | None = None) -> list[str]:
    """The files of a repository to download: texts, and each part's weights in one format and one variant.

    Where there are neither parts nor a config.json, a single file.
    """
    paths = [PurePosixPath(file) for file in files]
    texts = [path for path in paths if path.suffix in _TEXTS]
    if not any(path.name in ("model_index.json", "config.json") for path in texts):
        return [str(path) for path in paths if path in texts or path.suffix in (".ckpt", ".safetensors")]
    parts: dict[PurePosixPath, dict[str | None, list[PurePosixPath]]] = {}
    for path in paths:
        if match := _WEIGHTS.fullmatch(path.name):
            parts.setdefault(path.parent, {}).setdefault(match["first"] or match["last"], []).append(path)
    chosen: list[PurePosixPath] = []
    for variants in parts.values():
        of = next(name for name in (variant, None, *variants) if name in variants)
        tensors = [path for path in variants[of] if path.suffix == ".safetensors"]
        chosen += tensors or variants[of]
    return [str(path) for path in texts + chosen]


def download(name: str, revision: str | None, variant: str | None) -> Path:
    """A snapshot from the Hub, or from its cache where the Hub cannot be reached."""
    from huggingface_hub import HfApi, snapshot_download

    # its HTTP library's, which differs by version and is no OSError where the Hub cannot be reached
    from huggingface_hub.errors import HTTPError  # pyright: ignore[reportPrivateImportUsage]

    patterns, unlisted = None, None
    try:
        patterns = wanted(HfApi().list_repo_files(name, revision=revision), variant)
    except (OSError, HTTPError) as error:
        unlisted = error  # without a list it would be the whole repository: whatever the cache holds
    options = {"revision": revision, "allow_patterns": patterns, "local_files_only": unlisted is not None}
    try:
        return Path(snapshot_download(name, **options))
    except (OSError, HTTPError) as error:
        reason = f"is no folder here, and the Hub gave nothing ({one_line(unlisted or error)})"
        raise refusal(name, f"{reason}; {ALLOWED}") from None
