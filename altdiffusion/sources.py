"""Checkpoints read into stock parts, whatever their layout; nothing of a source is lost.

Every tensor ends under its stock name in one of the parts, or under its published name in `left`.
"""

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from altdiffusion import single_files, towers
from altdiffusion.reading import has_tokenizer, metadata, read_folder, read_json, read_tensors, refusal
from altdiffusion.shapes import altclip_config, names_missing, text_config

Format = Literal["stock pipeline", "stock altclip", "A", "B", "C", "D", "E"]

#: What a converted folder keeps of its source beside the stock parts; its metadata say `form` and `format`.
LEFTOVERS = "published.safetensors"
#: Names on disk → names in memory, by part. transformers 5 renames layers in memory but not in its AltCLIP
#: files; diffusers renamed an attention's projections in 0.17; older transformers nested the vision tower.
RENAMES = {
    "altclip": [(r"\.layer\.", ".layers.")],
    "vae": [
        (r"(attentions\.\d+)\.query\.", r"\1.to_q."),
        (r"(attentions\.\d+)\.key\.", r"\1.to_k."),
        (r"(attentions\.\d+)\.value\.", r"\1.to_v."),
        (r"(attentions\.\d+)\.proj_attn\.", r"\1.to_out.0."),
    ],
    "safety_checker": [(r"^vision_model\.vision_model\.", "vision_model.")],
}
#: Buffers that older versions saved and that are computed today.
_COMPUTED = re.compile(r"embeddings\.(position|token_type)_ids$")
#: A converted AltCLIP's own place for what its class does not hold.
_TEXT = "text_model."


@dataclass(frozen=True)
class Layout:
    """What was found at a path, and why it is taken for that."""

    path: Path
    format: Format
    form: str
    """How the source makes its conditioning: "m9", "m18" or "own" (towers.py)."""
    why: str
    ema: bool = False
    """Averaged UNet weights lie beside the raw ones."""
    vision: bool = False
    """A vision tower comes with it."""

    @property
    def draws(self) -> bool:
        return self.format in ("stock pipeline", "B", "C", "D")


@dataclass(frozen=True)
class Part:
    """One stock model: its config.json, and its tensors under the names that the class has in memory."""

    config: dict[str, Any]
    tensors: dict[str, Any]


@dataclass(frozen=True)
class Source:
    """A whole checkpoint in stock names."""

    layout: Layout
    parts: dict[str, Part]
    """Of: text_encoder (the stock generation tower), unet, vae, safety_checker, image_encoder, altclip."""
    left: dict[str, Any] = field(default_factory=dict)
    """Tensors without a place in the parts: `text_encoder.<published name>`, `altclip.…`, `safety_checker.…`,
    and a single file's own names as they are (`betas`, `model_ema.…`)."""
    scheduler: dict[str, Any] = field(default_factory=dict)
    """Its config with `_class_name`; empty where nothing is drawn."""
    tokenizer: Path | None = None
    """The folder that holds it; None where the source has none."""
    processors: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Image preprocessing: of `altclip`, and the safety checker's as `feature_extractor`."""

    @property
    def nbytes(self) -> int:
        """Of all tensors, those without a place too."""
        tensors = [tensor for part in self.parts.values() for tensor in part.tensors.values()]
        return sum(tensor.nbytes for tensor in [*tensors, *self.left.values()])


def read(
    layout: Layout,
    *,
    ema: bool | None = None,
    tokenizer: Path | None = None,
    variant: str | None = None,
    only: Collection[str] | None = None,
) -> Source:
    """Everything at `layout.path`, or of a folder `only` these parts and nothing that is left over.

    `ema` chooses the averaged UNet weights or the raw ones; by default a training checkpoint (D) gives the
    averaged ones and a single file (C) those that it draws with. The others are then not read; only a C read
    raw keeps its averaged weights in `left`. `tokenizer` is a folder for a source that holds none.
    """
    if ema and not layout.ema:
        raise refusal(layout.path, "holds no averaged weights; allowed: ema=False")
    if variant and not any(layout.path.rglob(f"*.{variant}.*")):
        raise refusal(layout.path, f"holds no weights of the variant {variant!r:.40}; allowed: none named")
    if layout.path.is_file():
        source = _read_file(layout, layout.format == "D" if ema is None else ema)
    elif layout.draws:
        source = _read_pipeline(layout, variant, only)
    else:
        source = _read_altclip(layout, layout.path, variant)
    if tokenizer is not None:
        return Source(**{**vars(source), "tokenizer": Path(tokenizer)})
    return source


def _read_pipeline(layout: Layout, variant: str | None, only: Collection[str] | None) -> Source:
    folder = layout.path
    left: dict[str, Any] = {}
    parts = read_models(folder, variant, left, only)
    if only is None or "text_encoder" in only:
        place = folder / "text_encoder"
        config, tensors = read_json(place / "config.json"), read_folder(place, variant)
        if layout.format == "B":
            parts["text_encoder"] = _text_part(config, tensors, layout.form, left)
        else:
            tensors = {towers.in_memory(name): value for name, value in tensors.items()}
            stock = {name: value for name, value in tensors.items() if not _COMPUTED.search(name)}
            parts["text_encoder"] = Part(config, stock)
    if only is None and layout.format != "B":
        left |= _stored(folder)
    processors = processor(folder / "feature_extractor", "feature_extractor")
    if (folder / "altclip").is_dir() and (only is None or "altclip" in only):
        altclip = _read_altclip(layout, folder / "altclip", variant)
        parts["altclip"] = altclip.parts["altclip"]
        processors |= altclip.processors
    scheduler = read_json(folder / "scheduler/scheduler_config.json")
    return Source(layout, parts, left, scheduler, folder / "tokenizer", processors)


def read_models(
    folder: Path, variant: str | None, left: dict[str, Any], only: Collection[str] | None = None
) -> dict[str, Part]:
    """The models of a pipeline folder that every Stable Diffusion has: all but the text encoder."""
    parts = {}
    for name in ("unet", "vae", "safety_checker", "image_encoder"):
        if (folder / name / "config.json").is_file() and (only is None or name in only):
            tensors = read_folder(folder / name, variant)
            parts[name] = Part(read_json(folder / name / "config.json"), _named(name, tensors, left))
    return parts


def _read_altclip(layout: Layout, folder: Path, variant: str | None) -> Source:
    config, tensors = read_json(folder / "config.json"), read_folder(folder, variant)
    parts, left = _altclip_parts(config, tensors, layout.form, _stored(folder))
    processors = processor(folder, "altclip")
    tokenizer = folder if has_tokenizer(folder) else None
    return Source(layout, parts, left, tokenizer=tokenizer, processors=processors)


def _altclip_parts(
    config: dict[str, Any], tensors: Mapping[str, Any], form: str, stored: Mapping[str, Any]
) -> tuple[dict[str, Part], dict[str, Any]]:
    """The whole AltCLIP and its generation tower, and what neither holds.

    `stored` is what a converted AltCLIP folder keeps of a published text tower.
    """
    left = {name: value for name, value in stored.items() if not name.startswith("text_encoder.")}
    text = {name.removeprefix(_TEXT): value for name, value in tensors.items() if name.startswith(_TEXT)}
    rest = {name: value for name, value in tensors.items() if not name.startswith(_TEXT)}
    whole = _named("altclip", rest, left)
    for name, value in towers.to_stock(text, "own").items():
        if not name.startswith("transformation_pre."):
            whole[_TEXT + name] = value
    text |= {n.removeprefix("text_encoder."): v for n, v in stored.items() if n.startswith("text_encoder.")}
    text = {name.replace("encoder.layers.", "encoder.layer."): value for name, value in text.items()}
    parts = {"altclip": Part(_altclip_fields(config, form), whole)}
    headless = form == "m18" and "transformation_pre.weight" not in text
    if not headless:
        parts["text_encoder"] = _text_part(config["text_config"], text, form, left)
    return parts, left


def _text_part(config: Mapping[str, Any], tensors: dict[str, Any], form: str, left: dict[str, Any]) -> Part:
    left |= {f"text_encoder.{name}": value for name, value in towers.left_over(tensors, form).items()}
    return Part(towers.stock_config(config, form), towers.to_stock(tensors, form))


def _altclip_fields(config: Mapping[str, Any], form: str) -> dict[str, Any]:
    """The stock AltCLIP's configuration. The `…_config_dict` of published ones would undo what it says."""
    from transformers import AltCLIPConfig, AltCLIPVisionConfig

    text = towers.stock_config(config["text_config"], "own")
    if form != "own":  # where a reader of the stock tensors could not tell
        text[towers.FORM_FIELD] = form
    vision = AltCLIPVisionConfig()
    known = {key: value for key, value in config["vision_config"].items() if key in vision.__annotations__}
    whole = {key: config[key] for key in ("projection_dim", "logit_scale_init_value") if key in config}
    return {
        "model_type": AltCLIPConfig.model_type,
        "architectures": ["AltCLIPModel"],
        **whole,
        "text_config": {**text, "architectures": None},
        "vision_config": {"model_type": vision.model_type, **known},
    }


def _read_file(layout: Layout, ema: bool) -> Source:
    file, notes = layout.path, metadata(layout.path)
    content = read_tensors(file)
    state = content["state_dict"] if isinstance(content.get("state_dict"), dict) else content
    noted = json.loads(notes["configs"]) if "configs" in notes else {}
    if layout.format == "A":
        parts, left = _altclip_parts(noted["altclip"], state, layout.form, {})
        return Source(layout, parts, left, tokenizer=tokenizer_beside(file), processors=_size(parts))
    found = single_files.split(state)
    left = {name: value for name, value in found[""].items() if hasattr(value, "shape")}
    averages = found.get("ema", {})
    if ema and isinstance(content.get("state_dict_ema"), dict):
        found["unet"] = single_files.split(content["state_dict_ema"])["unet"]
    elif ema:
        found["unet"] = single_files.averaged(found["unet"], averages, file)
    elif layout.format == "C":
        left |= {f"model_ema.{name}": value for name, value in averages.items()}
    params = single_files.parameters(file, left)
    unet = single_files.unet_part(found["unet"], params, file)
    vae = single_files.vae_part(found["vae"], params, file)
    parts = {"unet": Part(noted.get("unet", unet[0]), unet[1]), "vae": Part(noted.get("vae", vae[0]), vae[1])}
    if layout.format == "D":
        same_tensors(found["altclip"], found.get("text_encoder", {}), file)
        with names_missing(file, "cond_stage_model.ch_clip_model."):
            config = altclip_config(found["altclip"])
        more, extra = _altclip_parts(config, found["altclip"], layout.form, {})
        parts, left = parts | more, left | extra
    else:
        with names_missing(file, "cond_stage_model."):
            config = text_config(found["text_encoder"])
        part = _text_part(config, found["text_encoder"], layout.form, left)
        parts["text_encoder"] = Part(noted.get("text_encoder", part.config), part.tensors)
    scheduler = noted.get("scheduler") or single_files.scheduler(left, params)
    return Source(layout, parts, left, scheduler, tokenizer_beside(file), _size(parts))


def same_tensors(whole: Mapping[str, Any], tower: Mapping[str, Any], file: Path) -> None:
    """The paper's code names its text tower twice; two towers would be two models."""
    import torch

    for name, value in tower.items():
        other = whole.get(_TEXT + name)
        if other is None or (other.data_ptr() != value.data_ptr() and not torch.equal(other, value)):
            raise refusal(file, f"holds two text towers: 'cond_stage_model.text_encoder.{name}' differs")


def tokenizer_beside(file: Path) -> Path | None:
    return next(
        (folder for folder in (file.parent, file.parent / "tokenizer") if has_tokenizer(folder)), None
    )


def _stored(folder: Path) -> dict[str, Any]:
    file = folder / LEFTOVERS
    return read_tensors(file) if file.is_file() else {}


def _named(part: str, tensors: Mapping[str, Any], left: dict[str, Any]) -> dict[str, Any]:
    """Tensors under their names in memory; computed buffers go to `left`."""
    named = {}
    for name, value in tensors.items():
        if _COMPUTED.search(name):
            left[f"{part}.{name}"] = value
            continue
        for pattern, replacement in RENAMES.get(part, ()):
            name = re.sub(pattern, replacement, name)
        named[name] = value
    return named


def processor(folder: Path, name: str) -> dict[str, dict[str, Any]]:
    file = folder / "preprocessor_config.json"
    return {name: read_json(file)} if file.is_file() else {}


def _size(parts: Mapping[str, Part]) -> dict[str, dict[str, Any]]:
    """The preprocessing of a file that says nothing of it: CLIP's, at the vision tower's size."""
    if "altclip" not in parts:
        return {}
    side = parts["altclip"].config["vision_config"]["image_size"]
    return {"altclip": {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}}
