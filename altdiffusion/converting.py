"""What `altdiffusion convert` and `altdiffusion info` do."""

import json
from pathlib import Path
from typing import Any, Literal

from altdiffusion import __version__, bundled, cards, checkpoints, layouts, room, terminal
from altdiffusion.presets import PRESETS
from altdiffusion.requests import BadRequest, shorten

#: What a text's feature is the first row of, and what conditions the UNet, by form (towers.py).
_POOLED = "transformation(pre_LN(h_last))"
_CONDITIONING = {
    "m9": "transformation(h_last)",
    "m18": "transformation_pre(pre_LN(h_penultimate))",
    "own": _POOLED,
}


def convert(
    source: str,
    target: str,
    *,
    single_file: bool = False,
    to: Literal["A", "B", "C"] | None = None,
    tokenizer: str | None = None,
    raw: bool = False,
    as_json: bool = False,
) -> None:
    """Finds, reads, writes aside, compares, puts in place; tells each on stderr."""
    place = _target(target, single_file=single_file or to == "C")
    if single_file and to in ("A", "B"):
        raise BadRequest(f"to: {to!r} is a folder; allowed with --single-file: C, or nothing")
    if tokenizer is not None and not Path(tokenizer).is_dir():
        raise BadRequest(f"tokenizer: {shorten(tokenizer)} is no folder; allowed the folder of a tokenizer")
    found = checkpoints.find(source)
    terminal.note(f"found {layouts.FORMATS[found.format]} ({found.format}, form {found.form}): {found.why}")
    folder = None if tokenizer is None else Path(tokenizer)
    contents = layouts.read(found, ema=False if raw else None, tokenizer=folder)
    terminal.note(f"writing and comparing {room.readable(contents.nbytes)}")
    from altdiffusion import writing

    if to is not None:
        written = writing.save_published(contents, to, place)
    elif single_file:
        written = writing.save_single_file(contents, place)
    else:
        written = writing.save_stock(contents, place, name=cards.name_of(source))
    terminal.note(f"read again: {written.tensors} tensors and an encode are the source's, bit for bit")
    if as_json:
        facts = {"source": source, "format": found.format, "form": found.form, "why": found.why}
        print(
            json.dumps({**facts, "path": str(written.path), "tensors": written.tensors}, ensure_ascii=False)
        )
    else:
        print(written.path)


def describe(model: str | None, *, as_json: bool = False) -> None:
    """Facts about a model and this machine."""
    facts = {"model": model or "bundled", **_model_facts(model), **_machine_facts()}
    if as_json:
        print(json.dumps(facts, ensure_ascii=False))
        return
    for name, value in facts.items():
        print(f"{name}: {_plain(value)}")


def _target(target: str, *, single_file: bool) -> Path:
    place = Path(target).expanduser()
    if single_file and place.suffix != ".safetensors":
        place = place / "model.safetensors"
    if place.is_file() or (place.is_dir() and any(place.iterdir())):
        raise BadRequest(f"target: {shorten(str(place))} exists; allowed a new name, or an empty folder")
    return place


def _model_facts(model: str | None) -> dict[str, Any]:
    found = checkpoints.find(model)
    path = found.path
    contents = layouts.read(found)
    card = bundled.card(path) if (path / bundled.CARD).is_file() else {}
    text = contents.parts["altclip"].config["text_config"] if "altclip" in contents.parts else None
    published = cards.published_model(found.form, cards.name_of(model or path.name), text)
    heads = {"conditioning": _CONDITIONING[found.form], **({"pooled": _POOLED} if found.vision else {})}
    names = [name for name in contents.parts if found.draws or name == "altclip"]
    tensors = {name: contents.parts[name].tensors.values() for name in names}
    return {
        "format": found.format,
        "found": found.why,
        "published_as": " or ".join(cards.base_models(found.form, published, draws=found.draws)) or None,
        "heads": heads,
        "parameters": {name: sum(tensor.numel() for tensor in part) for name, part in tensors.items()},
        "weight_bytes": contents.nbytes,
        "weight_dtypes": sorted({_dtype(tensor.dtype) for part in tensors.values() for tensor in part}),
        "licence": cards.licence(path) or (None if found.form == "own" else cards.OPENRAIL),
        "fingerprint": _fingerprint(model, draws=found.draws),
        "languages": card.get("languages") or cards.languages(found.form, published) or None,
        "defaults": card.get("defaults"),
        "presets": {name: preset.in_words() for name, preset in PRESETS.items()} if found.draws else None,
        "covered": card.get("covered"),
    }


def _fingerprint(model: str | None, *, draws: bool) -> str | None:
    """The one that pictures and indexes note."""
    from altdiffusion import AltCLIP, AltDiffusionPipeline

    kind = AltDiffusionPipeline if draws else AltCLIP
    return kind.from_pretrained(model, device="cpu", dtype="float32").fingerprint


def _machine_facts() -> dict[str, Any]:
    import diffusers
    import torch
    import transformers

    from altdiffusion.runtime import choose_attention, choose_device, choose_dtype

    device = choose_device()
    chosen, reason = choose_attention()
    available = list(dict.fromkeys([chosen, "sdpa"]))
    packages = {"torch": torch, "diffusers": diffusers, "transformers": transformers}
    versions = {name: package.__version__ for name, package in packages.items()}
    return {
        "device": str(device),
        "dtype": _dtype(choose_dtype(device)),
        "attention": {"chosen": chosen, "reason": reason, "available": available},
        "versions": {"altdiffusion": __version__, **versions},
    }


def _dtype(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(inner)}" for key, inner in value.items())
    if isinstance(value, list):
        return f"{len(value)}: {' '.join(map(str, value))}"
    return f"{value:,}" if isinstance(value, int) else str(value)
