"""What is laid over a model for a picture: LoRA and learned words, by file, so that it can be drawn again.

A file counts by its SHA-256, which the picture keeps beside its name; its path would tell of someone's disk.
"""

import hashlib
import importlib.util
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from altdiffusion.requests import Addition, BadRequest, Provenance, shorten

_IN_FOLDERS = {"lora": "pytorch_lora_weights.safetensors", "embedding": "learned_embeds.safetensors"}


@dataclass(frozen=True)
class Chosen:
    """A file and what a picture keeps of it. `said`: the strength was given with it."""

    path: Path
    addition: Addition
    said: bool = False


def chosen(texts: Sequence[str], argument: str) -> list[Chosen]:
    """Of what was given on a command line: `FILE`, a LoRA's also `FILE:0.8`; or the folder that it lies in.

    `argument` is `lora` or `embedding`.
    """
    if texts and argument == "lora" and importlib.util.find_spec("peft") is None:
        raise BadRequest("lora: the package peft is missing; pip install peft")
    return [_chosen(text, argument) for text in texts]


def repeated(given: Sequence[Chosen], made: Sequence[Addition], argument: str) -> list[Chosen]:
    """The same with the strengths that a picture was made with, where none is said; refused unless all that
    it was made with is there."""
    by_digest = {one.digest: one for one in made}
    missing = by_digest.keys() - {one.addition.digest for one in given}
    if missing:
        names = ", ".join(f"{shorten(by_digest[one].name)} (SHA-256 {one[:12]}…)" for one in sorted(missing))
        raise BadRequest(f"from: it was drawn with {names}; give that with --{argument}")
    return [
        one if one.said else replace(one, addition=by_digest.get(one.addition.digest, one.addition))
        for one in given
    ]


def load(pipeline: Any, loras: Sequence[Chosen], embeddings: Sequence[Chosen]) -> None:
    """Lays them over a pipeline, whose pictures tell of them from then on."""
    for one in embeddings:
        with _told("embedding", one):
            pipeline.load_textual_inversion(str(one.path))
    names = [f"lora_{number}" for number, _ in enumerate(loras)]
    for name, one in zip(names, loras, strict=True):
        with _told("lora", one), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already found a .peft_config. attribute", UserWarning)
            folder, file = str(one.path.parent), one.path.name
            pipeline.load_lora_weights(folder, weight_name=file, adapter_name=name)
    if names:
        pipeline.set_adapters(names, [one.addition.scale for one in loras])
    pipeline.additions = tuple(tuple(one.addition for one in several) for several in (loras, embeddings))


def of(made: Provenance | None, argument: str) -> tuple[Addition, ...]:
    if made is None:
        return ()
    return made.loras if argument == "lora" else made.embeddings


class _told:
    """A file that does not fit the model is one line."""

    def __init__(self, argument: str, one: Chosen) -> None:
        self._argument, self._name = argument, shorten(one.addition.name)

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, ValueError | RuntimeError | KeyError | OSError):
            line = shorten(" ".join(str(error).split()), 200)
            raise BadRequest(f"{self._argument}: {self._name} does not fit this model ({line})") from error


def _chosen(text: str, argument: str) -> Chosen:
    name, colon, strength = text.rpartition(":")
    said = argument == "lora" and bool(colon) and not Path(text).exists()
    path = Path(name if said else text)
    scale = _strength(strength) if said else 1.0
    path = path / _IN_FOLDERS[argument] if path.is_dir() else path
    if path.suffix != ".safetensors" or not path.is_file():
        allowed = ".safetensors" + (", with :STRENGTH after it if need be" if argument == "lora" else "")
        raise BadRequest(f"{argument}: no file {shorten(str(path))}; allowed one in {allowed}")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Chosen(path, Addition(path.name, digest, scale), said)


def _strength(text: str) -> float:
    try:
        if -10 <= float(text) <= 10:
            return float(text)
    except ValueError:
        pass
    raise BadRequest(f"lora: strength {shorten(text)}; allowed a number from -10 to 10")
