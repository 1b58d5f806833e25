"""Converted checkpoints: the stock folder, the single file, and the way back to a published layout.

Every writer builds its target aside, reads it again, compares every tensor and an encode with the source, and
only then puts it in its place. Weights are written as safetensors.
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from safetensors.torch import save_file
from torch import Tensor
from transformers import AltCLIPModel, AltCLIPTextModel, CLIPVisionModelWithProjection

from altdiffusion import aside, bundled, cards, checkpoints, ldm, room, towers
from altdiffusion.conditioning import encode_prompts
from altdiffusion.layouts import LEFTOVERS, Part, Source, detect, read
from altdiffusion.reading import check_tensors, refusal
from altdiffusion.requests import shorten

Published = Literal["A", "B", "C"]
#: What the verifying encode reads: three scripts, and the empty prompt that guidance needs.
PROBES = ("a red lobster on the beach", "海滩上的龙虾", "كركند", "")
#: Part of a pipeline folder → its class, and the library that model_index.json names for it.
_CLASSES = {
    "text_encoder": (AltCLIPTextModel, "transformers"),
    "unet": (UNet2DConditionModel, "diffusers"),
    "vae": (AutoencoderKL, "diffusers"),
    "safety_checker": (StableDiffusionSafetyChecker, "stable_diffusion"),
    "image_encoder": (CLIPVisionModelWithProjection, "transformers"),
}
_TOWER = "cond_stage_model."
_TEXT = "text_model."
#: Today's names → those of the published folders, which are older.
_OLD_NAMES = {
    "vae": ((".to_q.", ".query."), (".to_k.", ".key."), (".to_v.", ".value."), (".to_out.0.", ".proj_attn.")),
    "safety_checker": (("vision_model.", "vision_model.vision_model."),),
}
#: A trained prompt length of the published pipelines; their AltCLIP's tokenizer allows 512.
_PROMPT_LENGTH = 77
#: Latents, mask, and the latents of what the mask hides.
_INPAINT_CHANNELS = 9


@dataclass(frozen=True)
class Written:
    """What lies at `path`: so many tensors, each compared with the source's; `encoded`: so was an encode."""

    path: Path
    tensors: int
    encoded: bool


def save_stock(source: Source, folder: str | os.PathLike, *, name: str | None = None) -> Written:
    """A folder that plain diffusers opens (its `altclip/` plain transformers), or an AltCLIP folder.

    `name` is what the model card calls the source.
    """

    def write(place: Path) -> None:
        if source.layout.draws:
            _write_pipeline(source, place)
        else:
            _write_altclip(source, place)
        if source.left or source.layout.form != "own":
            _save(_stored(source), place / LEFTOVERS, format=source.layout.format, form=source.layout.form)
        _write_card(source, place, name or source.layout.path.name)
        checkpoints.forget_paths(place)
        bundled.write_manifest(place)

    return _aside(source, Path(folder), write)


def save_single_file(source: Source, file: str | os.PathLike) -> Written:
    """What draws, in the original Stable Diffusion layout; an AltCLIP alone under its published names.

    Its metadata hold the configurations. The tokenizer is put beside it, unless one lies there.
    """
    return _save_single(source, published_tensors(source, "C" if source.layout.draws else "A"), Path(file))


def _save_single(source: Source, tensors: Mapping[str, Tensor], file: Path) -> Written:
    if file.suffix != ".safetensors":
        raise ValueError(f"target: {file.name!r:.80} is no safetensors file; allowed: 'NAME.safetensors'")
    configs = {name: part.config for name, part in source.parts.items()} | {"scheduler": source.scheduler}
    notes = {towers.FORM_FIELD: source.layout.form, "configs": json.dumps(configs)}

    def write(place: Path) -> None:
        _save(tensors, place, **notes)
        _write_tokenizer(source, place.with_name("tokenizer"))

    return _aside(source, file, write)


def save_published(source: Source, layout: Published, target: str | os.PathLike) -> Written:
    """Back to the layout that it was published in, every tensor bit for bit; C is a single file."""
    if source.layout.form == "own":
        raise ValueError("to: a stock model has no published form; allowed: none, and --single-file")
    tensors = published_tensors(source, layout)
    if layout == "C":
        return _save_single(source, tensors, Path(target))
    write = _write_published_altclip if layout == "A" else _write_published_pipeline
    return _aside(source, Path(target), lambda place: write(source, tensors, place))


def check_target(target: Path) -> None:
    if target.is_file() or (target.exists() and any(target.iterdir())):
        raise _taken(target)


def _taken(target: Path) -> ValueError:
    return ValueError(f"target: {shorten(str(target))} exists; allowed: a new name, or an empty folder")


def published_tensors(source: Source, layout: Published) -> dict[str, Tensor]:
    """All tensors of a published layout; those of a folder of parts (B) as `part/name`."""
    needed = ("altclip",) if layout == "A" else ("text_encoder", "unet", "vae")
    for name in needed:
        if name not in source.parts:
            raise ValueError(f"to: the source holds no {name}; allowed for {layout}: a source of {needed}")
    if layout == "A":
        return _altclip_tensors(source)
    tower = _tower_tensors(source)
    if layout == "B":
        tensors = {f"text_encoder/{name}": tensor for name, tensor in tower.items()}
        for part in source.parts.keys() - {"text_encoder", "altclip"}:
            names = {name: _old_name(part, name) for name in source.parts[part].tensors}
            tensors |= {
                f"{part}/{names[name]}": tensor for name, tensor in source.parts[part].tensors.items()
            }
            tensors |= {f"{part}/{name}": tensor for name, tensor in _left(source, part).items()}
        return tensors
    unet, vae = source.parts["unet"], source.parts["vae"]
    foreign = tuple(f"{part}." for part in (*_CLASSES, "altclip"))
    return {
        **{_TOWER + name: tensor for name, tensor in tower.items()},
        **ldm.from_stock(unet.tensors, unet.config, vae.tensors, vae.config),
        **{name: tensor for name, tensor in source.left.items() if not name.startswith(foreign)},
    }


def _verified(source: Source, place: Path, target: Path) -> Written:
    """Reads `place` again. Parts that it has no room for (the AltCLIP in a single file) are not missed."""
    again = read(detect(place))
    for name, part in again.parts.items():
        _equal(name, source.parts[name].tensors, part.tensors)
    whole = again.layout.format.startswith("stock")
    left = {name: tensor for name, tensor in source.left.items() if whole or name in again.left}
    _equal("left", left, again.left)
    encoded = "text_encoder" in source.parts
    if encoded and not torch.equal(_encode(source), _encode(again)):
        raise ValueError("target: an encode is not the source's; allowed: the same bits")
    tensors = sum(len(part.tensors) for part in again.parts.values()) + len(left)
    return Written(target, tensors, encoded)


def _aside(source: Source, target: Path, write: Callable[[Path], Any]) -> Written:
    check_target(target)
    if checkpoints.adapter_config(source.layout.path / checkpoints.ADAPTER):
        found = "has an adapter, for which stock models have no place"
        raise refusal(source.layout.path, f"{found}; allowed: a model whose adapter is folded")
    room.check(target.parent, source.nbytes, "what is to be written", "target")
    stage = aside.make_stage(target.parent)
    try:
        place = stage / target.name
        with checkpoints.quiet():
            write(place)
            written = _verified(source, place, target)
        aside.flush_all(stage)
        check_target(target)  # it may have been filled meanwhile
        if target.is_dir():
            target.rmdir()
        for made in sorted(stage.iterdir(), key=lambda made: made == place):  # what goes with it first
            try:
                aside.rename_new(made, target.with_name(made.name))
            except FileExistsError:
                if made == place:  # a tokenizer that lies there stays
                    raise _taken(target) from None
        aside.flush(target.parent)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    return written


def _equal(part: str, expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    check_tensors(expected, found, part)
    for name, tensor in expected.items():
        same = tensor.dtype == found[name].dtype and torch.equal(_bytes(tensor), _bytes(found[name]))
        if not same:
            raise ValueError(
                f"target: tensor {name!r:.80} of {part} is not the source's; allowed: the same bits"
            )


def _bytes(tensor: Tensor) -> Tensor:
    """Bits, since NaN differs from itself and 0 equals -0."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def _encode(source: Source) -> Tensor:
    part = source.parts["text_encoder"]
    tower = checkpoints.build(AltCLIPTextModel, part, source.layout.path, dtype=_dtype(part))
    tokenizer = _tokenizer(source)
    with torch.no_grad():
        return encode_prompts(tower, tokenizer, PROBES, max_length=_PROMPT_LENGTH)


def _write_pipeline(source: Source, place: Path) -> None:
    for name in _drawing(source):
        _save_model(_CLASSES[name][0], source.parts[name], place / name)
    inpaints = source.parts["unet"].config.get("in_channels") == _INPAINT_CHANNELS
    kind = "StableDiffusionInpaintPipeline" if inpaints else "StableDiffusionPipeline"
    _write_surroundings(source, place, kind, {"text_encoder": ["transformers", "AltCLIPTextModel"]})
    if "altclip" in source.parts:
        _write_altclip(source, place / "altclip")


def _write_altclip(source: Source, place: Path) -> None:
    """m18's generation head goes in as published; transformers passes over it."""
    part = source.parts["altclip"]
    _save_model(AltCLIPModel, Part(part.config, part.tensors | _head(source)), place)
    processor = source.processors.get("altclip", {}) | {"processor_class": "AltCLIPProcessor"}
    _write_json(
        place / "preprocessor_config.json", {"image_processor_type": "CLIPImageProcessor", **processor}
    )
    _write_tokenizer(source, place)


def _write_surroundings(source: Source, place: Path, kind: str, parts: dict[str, list[str]]) -> None:
    """Everything of a pipeline folder but its weights; `parts` replaces entries of model_index.json."""
    index: dict[str, Any] = {"_class_name": kind, "_diffusers_version": version("diffusers")}
    index |= {name: [_CLASSES[name][1], _CLASSES[name][0].__name__] for name in _drawing(source)} | parts
    index |= {name: [None, None] for name in ("safety_checker", "image_encoder") if name not in source.parts}
    index["feature_extractor"] = [None, None]
    if "feature_extractor" in source.processors:
        index["feature_extractor"] = ["transformers", "CLIPImageProcessor"]
        _write_json(
            place / "feature_extractor" / "preprocessor_config.json", source.processors["feature_extractor"]
        )
    index["requires_safety_checker"] = "safety_checker" in source.parts
    index["scheduler"] = ["diffusers", source.scheduler["_class_name"]]
    _write_json(place / "scheduler" / "scheduler_config.json", source.scheduler)
    index["tokenizer"] = ["transformers", "XLMRobertaTokenizer"]
    _write_tokenizer(source, place / "tokenizer", _PROMPT_LENGTH)
    _write_json(place / "model_index.json", index)


def _write_published_altclip(source: Source, tensors: dict[str, Tensor], place: Path) -> None:
    config = dict(source.parts["altclip"].config)
    text = {**config["text_config"], "pooler_fn": "cls"}
    text.pop(towers.FORM_FIELD, None)
    _write_json(place / "config.json", {**config, "text_config": text})
    _write_json(place / "preprocessor_config.json", source.processors.get("altclip", {}))
    _write_tokenizer(source, place)
    _save(tensors, place / "model.safetensors")


def _write_published_pipeline(source: Source, tensors: dict[str, Tensor], place: Path) -> None:
    for part in _drawing(source):
        config = source.parts[part].config
        if part == "text_encoder":
            config = towers.published_config(config, source.layout.form)
        stem = "diffusion_pytorch_model" if _CLASSES[part][1] == "diffusers" else "model"
        _write_json(place / part / "config.json", config)
        own = {name.removeprefix(f"{part}/"): t for name, t in tensors.items() if name.startswith(f"{part}/")}
        _save(own, place / part / f"{stem}.safetensors")
    encoder = ["alt_diffusion", "RobertaSeriesModelWithTransformation"]
    _write_surroundings(source, place, "AltDiffusionPipeline", {"text_encoder": encoder})


def _write_tokenizer(source: Source, place: Path, max_length: int | None = None) -> None:
    tokenizer = _tokenizer(source)
    if max_length is not None:
        tokenizer.model_max_length = min(max_length, tokenizer.model_max_length)
    elif (altclip := source.layout.path / "altclip").is_dir():  # it may allow longer texts than prompts are
        tokenizer = checkpoints.load_tokenizer(altclip)
    tokenizer.save_pretrained(place)


def _tokenizer(source: Source) -> Any:
    if source.tokenizer is None:
        raise ValueError("tokenizer: the source has none; allowed: the folder of an XLM-R tokenizer")
    config = source.parts["text_encoder"].config if "text_encoder" in source.parts else {}
    return checkpoints.load_tokenizer(source.tokenizer, config.get("vocab_size"))


def _write_card(source: Source, place: Path, name: str) -> None:
    """A stock folder keeps its own card and what goes with it; what was published gets a new one."""
    origin, form = source.layout.path, source.layout.form
    if origin.is_dir() and (form == "own" or source.layout.format.startswith("stock")):
        for file in origin.iterdir():
            if file.name in ("README.md", bundled.CARD) or file.name.startswith("LICENSE"):
                shutil.copyfile(file, place / file.name)
    if form != "own" and not (place / "README.md").exists():
        text_config = source.parts["altclip"].config["text_config"] if "altclip" in source.parts else None
        card = cards.card(form, name, draws=source.layout.draws, text_config=text_config)
        (place / "README.md").write_text(card, encoding="utf-8")


def _save_model(kind: Any, part: Part, place: Path) -> None:
    """As the library itself saves it: its names on disk, its configuration file, shards of its size."""
    with torch.device("meta"):
        if hasattr(kind, "config_class"):
            model = kind(kind.config_class.from_dict(part.config)).to(_dtype(part))
            model.save_pretrained(place, state_dict=dict(part.tensors))
        else:
            model = kind.from_config(part.config)
            model.load_state_dict(part.tensors, assign=True)
            model.save_pretrained(place)


def _dtype(part: Part) -> torch.dtype:
    return next(tensor.dtype for tensor in part.tensors.values() if tensor.is_floating_point())


def _tower_tensors(source: Source) -> dict[str, Tensor]:
    """Published. What the generation tower leaves out may lie in the AltCLIP instead, as in D."""
    left, form = _left(source, "text_encoder"), source.layout.form
    if "altclip" in source.parts:
        left = towers.left_over(_whole_tower(source), form) | left
    return towers.to_published(source.parts["text_encoder"].tensors, left, form)


def _whole_tower(source: Source) -> dict[str, Tensor]:
    """The AltCLIP's text tower under its published names."""
    tensors = source.parts["altclip"].tensors.items()
    text = {name.removeprefix(_TEXT): tensor for name, tensor in tensors if name.startswith(_TEXT)}
    return {name.replace(".layers.", ".layer."): tensor for name, tensor in text.items()}


def _altclip_tensors(source: Source) -> dict[str, Tensor]:
    rest = {n: t for n, t in source.parts["altclip"].tensors.items() if not n.startswith(_TEXT)}
    text = {_TEXT + name: tensor for name, tensor in _tower_tensors(source).items()}
    return rest | text | _left(source, "altclip")


def _stored(source: Source) -> dict[str, Tensor]:
    """What is left over; in an AltCLIP folder without what the AltCLIP itself holds."""
    held = set() if source.layout.draws else {f"text_encoder.{name}" for name in _whole_tower(source)}
    return {name: tensor for name, tensor in source.left.items() if name not in held}


def _head(source: Source) -> dict[str, Tensor]:
    """m18's `transformation_pre`, which the stock AltCLIP has no place for: the tower's `transformation`."""
    if source.layout.form != "m18":
        return {}
    tower = source.parts["text_encoder"].tensors
    return {
        f"{_TEXT}transformation_pre.{kind}": tower[f"transformation.{kind}"] for kind in ("weight", "bias")
    }


def _left(source: Source, part: str) -> dict[str, Tensor]:
    start = f"{part}."
    return {name.removeprefix(start): t for name, t in source.left.items() if name.startswith(start)}


def _drawing(source: Source) -> list[str]:
    return [name for name in _CLASSES if name in source.parts]


def _old_name(part: str, name: str) -> str:
    for new, old in _OLD_NAMES.get(part, ()):
        name = name.replace(new, old)
    return name


def _save(tensors: Mapping[str, Tensor], file: Path, **notes: str) -> None:
    """Tensors that share memory, as tied ones do, are written as copies: the format knows no sharing."""
    seen: set[int] = set()
    apart = {}
    for name, tensor in tensors.items():
        place = tensor.untyped_storage().data_ptr()
        apart[name] = (tensor.clone() if place in seen else tensor).contiguous()
        seen.add(place)
    save_file(apart, file, {"format": "pt", **notes})


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
