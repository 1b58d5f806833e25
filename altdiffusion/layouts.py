"""The layouts that AltCLIP and AltDiffusion were published in, told apart by names, shapes and configs.

Each way of telling is a fact about the published files; what none of them fits is refused for what it is.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from altdiffusion import single_files, towers
from altdiffusion.reading import (
    SINGLE_FILES,
    check_tokenizer,
    metadata,
    read_json,
    read_tensors,
    refusal,
    shapes_of,
    tensor_shape,
    tensor_shapes,
)
from altdiffusion.sources import LEFTOVERS, Format, Layout, Part, Source, read

__all__ = ["ALLOWED", "FORMATS", "LEFTOVERS", "Layout", "Part", "Source", "detect", "read"]

#: What each format is, in words.
FORMATS: dict[str, str] = {
    "stock pipeline": "a Stable Diffusion folder of stock diffusers and transformers classes",
    "stock altclip": "a folder of transformers' AltCLIPModel",
    "A": "an AltCLIP folder as published for transformers",
    "B": "an AltDiffusion folder as published for diffusers",
    "C": "a single file in the original Stable Diffusion layout",
    "D": "a training checkpoint of the AltDiffusion paper's code",
    "E": "an AltCLIP folder of FlagAI",
}
ALLOWED = (
    "allowed: a model folder, a Hub name such as 'owner/model', a checkpoint file, "
    "or nothing for the bundled model"
)
#: Components of a pipeline folder, each with the classes that may stand in its model_index.json.
_PARTS = {
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("AltCLIPTextModel",),
    "tokenizer": ("XLMRobertaTokenizer", "XLMRobertaTokenizerFast"),
    "scheduler": None,  # any
}
_STOCK_PIPELINES = re.compile(r"StableDiffusion(ControlNet)?(PAG)?(Img2Img|Inpaint)?Pipeline")
_LEGACY_PIPELINES = re.compile(r"AltDiffusion(Img2Img)?Pipeline")
_LEGACY_ENCODER = "RobertaSeriesModelWithTransformation"
#: Fields that only the published AltCLIP configurations have.
_PUBLISHED_FIELDS = {"direct_kd", "num_layers", "text_model_name", "text_config_dict", "pooler_fn"}
_TEXT, _TOWER = "text_model.", "cond_stage_model."
_WORDS = "roberta.embeddings.word_embeddings.weight"
_FORMS = {
    "m9": "no transformation_pre: the form of m2 and m9",
    "m18": "transformation_pre: the form of m18",
    "own": "the stock formula",
}


def detect(path: Path) -> Layout:
    """What lies at `path`; a ValueError says what it is instead, or what is missing or damaged."""
    path = Path(path)
    if path.is_file():
        return _detect_file(path)
    if not path.is_dir():
        raise refusal(path, f"does not exist; {ALLOWED}")
    if not any(path.iterdir()):
        raise refusal(path, f"is empty; {ALLOWED}")
    if (path / "model_index.json").is_file():
        return _detect_pipeline(path, read_json(path / "model_index.json"))
    if (path / "config.json").is_file():
        return _detect_altclip(path)
    files = [file for file in path.iterdir() if file.suffix in (".ckpt", ".safetensors")]
    if len(files) == 1:
        return _detect_file(files[0])
    raise refusal(path, f"is of another kind: no model_index.json, no config.json; {ALLOWED}")


def _detect_pipeline(folder: Path, index: Mapping[str, Any]) -> Layout:
    name, encoder = str(index.get("_class_name")), _entry(index, "text_encoder")
    legacy = encoder == _LEGACY_ENCODER
    if not (_STOCK_PIPELINES.fullmatch(name) or (legacy and _LEGACY_PIPELINES.fullmatch(name))):
        allowed = "StableDiffusionPipeline and its kin, or a published AltDiffusionPipeline"
        raise refusal(folder, f"is of another kind: {name!r:.80}; allowed: {allowed}")
    for part, classes in _PARTS.items():
        found = _entry(index, part)
        if part == "text_encoder" and legacy:
            continue
        if found is None or (classes and found not in classes):
            allowed = " or ".join(classes) if classes else "any scheduler"
            raise refusal(folder, f"is of another kind: its {part} is {found!r:.80}; allowed: {allowed}")
    shapes = {part: _weights(folder / part) for part in ("unet", "vae", "text_encoder")}
    check_tokenizer(folder / "tokenizer")
    read_json(folder / "scheduler" / "scheduler_config.json")
    altclip = _detect_altclip(folder / "altclip") if (folder / "altclip").is_dir() else None
    if legacy:
        form = towers.form_of(shapes["text_encoder"])
        library = index["text_encoder"][0]
        why = f"its model_index.json names {library}.{_LEGACY_ENCODER}; {_FORMS[form]}"
        return Layout(folder, "B", form, why, vision=altclip is not None)
    notes = metadata(folder / LEFTOVERS) if (folder / LEFTOVERS).is_file() else {}
    why = f"its model_index.json names {name} with AltCLIPTextModel"
    if "format" in notes:
        why += f"; converted from format {notes['format']}"
    form = notes.get("form") or (altclip.form if altclip else "own")
    return Layout(folder, "stock pipeline", form, why, vision=altclip is not None)


def _entry(index: Mapping[str, Any], part: str) -> str | None:
    entry = index.get(part)
    found = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
    return found if isinstance(found, str) else None


def _detect_altclip(folder: Path) -> Layout:
    config = read_json(folder / "config.json")
    kind, text = config.get("model_type"), config.get("text_config")
    text_kind = ""
    if isinstance(text, dict) and "project_dim" in text:
        text_kind = str(text.get("model_type"))
    flagai = kind != "altclip" and text_kind.startswith("xlm-roberta")
    if kind != "altclip" and not flagai:
        raise refusal(folder, f"is of another kind: {kind!r:.80}; allowed: 'altclip', or a pipeline")
    if not isinstance(text, dict) or not isinstance(config.get("vision_config"), dict):
        raise refusal(folder / "config.json", "is damaged: text_config or vision_config is no JSON object")
    shapes = shapes_of(folder)
    tower = {name.removeprefix(_TEXT): shape for name, shape in shapes.items() if name.startswith(_TEXT)}
    if _WORDS not in tower or "transformation.weight" not in tower:
        raise refusal(folder, f"is of another kind: its weights hold no {_TEXT}transformation.weight")
    form = towers.form_of(tower, None if flagai and towers.FORM_FIELD not in text else text)
    if flagai:
        found = f"its text model is {text_kind!r:.40} and has project_dim, as FlagAI writes it"
        return Layout(folder, "E", form, f"{found}; {_FORMS[form]}", vision=True)
    read_json(folder / "preprocessor_config.json")
    check_tokenizer(folder)
    published = sorted(_PUBLISHED_FIELDS & {*config, *text})
    if published:
        found = f"its config.json has {published[0]!r}, as only published ones have"
        return Layout(folder, "A", form, f"{found}; {_FORMS[form]}", vision=True)
    return Layout(
        folder, "stock altclip", form, f"its config.json is transformers' own; {_FORMS[form]}", vision=True
    )


def _detect_file(file: Path) -> Layout:
    if file.suffix not in SINGLE_FILES:
        raise refusal(file, f"is a file of another kind; allowed: {', '.join(SINGLE_FILES)}, or a folder")
    if file.stat().st_size == 0:
        raise refusal(file, "is empty")
    shapes, averaged = _names(file)
    notes = metadata(file)
    noted = {towers.FORM_FIELD: notes[towers.FORM_FIELD]} if towers.FORM_FIELD in notes else None
    whole = f"{_TOWER}ch_clip_model.{_TEXT}"
    if _TEXT + _WORDS in shapes and "configs" in notes:
        form = towers.form_of(_below(_TEXT, shapes), noted)
        return Layout(
            file, "A", form, f"it holds {_TEXT}{_WORDS} and its configs; {_FORMS[form]}", vision=True
        )
    formats: dict[str, Format] = {whole: "D", _TOWER: "C"}
    for start, format in formats.items():
        if start + _WORDS in shapes:
            _check_single(file, shapes)
            form = towers.form_of(_below(start, shapes), noted)
            why = f"it holds {start}{_WORDS}; {_FORMS[form]}"
            ema = averaged or any(name.startswith("model_ema.diffusion_model") for name in shapes)
            return Layout(file, format, form, why, ema=ema, vision=format == "D")
    other = single_files.other_model(shapes)
    found = f"is {other}" if other else f"is of another kind: it holds no {_TOWER}{_WORDS}"
    raise refusal(file, f"{found}; allowed: an AltDiffusion file, or the folder that the file is from")


def _check_single(file: Path, shapes: Mapping[str, Any]) -> None:
    parts = single_files.split(shapes)
    for prefix, part in single_files.PREFIXES.items():
        if part in ("unet", "vae") and part not in parts:
            raise refusal(file, f"is incomplete: it holds no {prefix}…")
    unknown = sorted(name for name in parts[""] if not single_files.SCHEDULE.fullmatch(name))
    if unknown:
        raise refusal(file, f"holds unexpected tensor {unknown[0]!r} of shape {shapes[unknown[0]]}")


def _names(file: Path) -> tuple[dict[str, tuple[int, ...]], bool]:
    """Names and shapes of a single file, out of its wrapper; and whether that holds averaged weights too."""
    if file.suffix == ".safetensors":
        return tensor_shapes(file), False
    content = read_tensors(file)
    state = content["state_dict"] if isinstance(content.get("state_dict"), dict) else content
    shapes = {name: tensor_shape(value) for name, value in state.items() if hasattr(value, "shape")}
    return shapes, isinstance(content.get("state_dict_ema"), dict)


def _below(start: str, shapes: Mapping[str, Any]) -> dict[str, Any]:
    return {name.removeprefix(start): shape for name, shape in shapes.items() if name.startswith(start)}


def _weights(folder: Path) -> dict[str, tuple[int, ...]]:
    read_json(folder / "config.json")
    return shapes_of(folder)
