"""Checkpoints found, checked and made into stock models, strictly.

What is found is told apart by `layouts` before anything heavy is imported or any weight is read. Making a
model is strict: transformers and diffusers leave a tensor that they do not find at random values and print a
report; here it is an error that names it. Each refusal starts with `model: `.
"""

import contextlib
import functools
import hashlib
import json
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from altdiffusion import aside, bundled, hub, layouts
from altdiffusion.filling import PIECE, filled
from altdiffusion.layouts import ALLOWED, Layout, Part, Source
from altdiffusion.reading import (
    check_tensors,
    check_tokenizer,
    one_line,
    read_folder,
    read_json,
    refusal,
    replaced_weights,
)

#: The published models condition on exactly so many tokens, whatever a tokenizer beside a single file says.
_PROMPT_LENGTH = 77
#: The folder of a text adapter beside a pipeline's parts.
ADAPTER = "adapter"
#: How many are within `quiet`, and what the libraries' settings were before.
_quiet = SimpleNamespace(lock=threading.Lock(), inside=0, before=[])
#: (name, model without weights, its part, where that is from, dtype) → the model, or what stands for it.
Make = Callable[[str, Any, Part, Path, Any], Any]


def resolve(
    name: str | os.PathLike | None = None, *, revision: str | None = None, variant: str | None = None
) -> Path:
    """The checked path of a model: the bundled one for None, a folder, a file, or a snapshot from the Hub."""
    return find(name, revision=revision, variant=variant).path


def find(
    name: str | os.PathLike | None = None, *, revision: str | None = None, variant: str | None = None
) -> Layout:
    """What `resolve` finds, and what it is."""
    if name is None:
        if not bundled.exists():
            raise refusal(bundled.FOLDER, f"should hold the bundled model and does not; {ALLOWED}")
        layout = layouts.detect(bundled.FOLDER)
        _verify_bundled()
        return layout
    return layouts.detect(locate(name, revision=revision, variant=variant))


def locate(name: str | os.PathLike, *, revision: str | None = None, variant: str | None = None) -> Path:
    """Where a model lies, whatever it is: a folder or file of this name, or a snapshot from the Hub."""
    if not isinstance(name, str | os.PathLike):
        raise TypeError(f"model: {name!r:.80} is {type(name).__name__}; {ALLOWED}")
    text = os.fspath(name)
    if not text or "\0" in text:
        raise refusal(text, f"is no name; {ALLOWED}")
    path = Path(text).expanduser()
    if not _exists(path):
        if isinstance(name, Path) or not is_hub_name(text):
            raise refusal(text, f"does not exist; {ALLOWED}")
        path = hub.download(text, revision, variant)
    return path


def is_hub_name(name: str) -> bool:
    """`owner/model`, where nothing of that name lies here."""
    return bool(re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name, re.ASCII)) and not _exists(Path(name))


def load_strict(model_class: Any, folder: Path, *, dtype: Any = None, variant: str | None = None) -> Any:
    """`model_class` with the folder's weights, in eval mode, float32 unless asked; every tensor must fit."""
    folder = Path(folder)
    tensors = {}
    for name, value in read_folder(folder, variant).items():
        name = re.sub(r"\.layer\.", ".layers.", name) if model_class.__name__ == "AltCLIPModel" else name
        tensors[name] = value
    return build(model_class, Part(read_json(folder / "config.json"), tensors), folder, dtype=dtype)


def build(model_class: Any, part: Part, where: Path, *, dtype: Any = None) -> Any:
    """The stock model of a part, in eval mode, float32 unless asked; every tensor must fit."""
    return filled(_checked(model_class, part, where), part, dtype)


def _checked(model_class: Any, part: Part, where: Path) -> Any:
    """The model without its weights, which fit it."""
    import torch

    try:
        with torch.device("meta"), quiet():
            if hasattr(model_class, "config_class"):
                model = model_class(model_class.config_class.from_dict(part.config))
            else:
                model = model_class.from_config(part.config)
    except Exception as error:  # a config that is wrong in any field fails anywhere in the libraries
        file = where / "config.json" if where.is_dir() else where
        raise refusal(file, f"makes no {model_class.__name__}: {one_line(error)}") from None
    check_tensors(model.state_dict(), part.tensors, where)
    return model


def _stock(name: str, model: Any, part: Part, where: Path, dtype: Any) -> Any:
    return filled(model, part, dtype)


def load_parts(
    layout: Layout,
    given: Mapping[str, Any],
    *,
    dtype: Any = None,
    variant: str | None = None,
    ema: bool | None = None,
    make: Make | None = None,
) -> dict[str, Any]:
    """A pipeline's parts, except those `given`. `given["tokenizer"]` may be the folder of one.

    `make` makes a part of a model without weights, its name, its part and where that is from.
    Of a stock folder only what has weights and the tokenizer: diffusers finds the rest there itself.
    """
    if not layout.draws:
        raise refusal(layout.path, "is an AltCLIP model; allowed: a model that draws")
    parts, folder = dict(given), None
    if isinstance(parts.get("tokenizer"), str | os.PathLike):
        folder = Path(parts.pop("tokenizer"))
    needed = model_classes().keys() - parts.keys()
    source = layouts.read(layout, ema=ema, tokenizer=folder, variant=variant, only=needed)
    checked: dict[str, Any] = {}
    for name, kind in model_classes().items():
        if name not in parts and name in source.parts:
            where = layout.path / name if layout.path.is_dir() else layout.path
            checked[name] = _checked(kind, source.parts[name], where)
    models = parts | checked
    tower, unet = models["text_encoder"], models["unet"]
    width = _width(tower, None if "text_encoder" in given else layout.path)
    if tower is not None and unet.config.cross_attention_dim != width:
        raise refusal(
            layout.path,
            f"has a text encoder that gives {width} values a token; "
            f"allowed by its UNet: {unet.config.cross_attention_dim}",
        )
    if "tokenizer" not in parts:
        parts["tokenizer"] = _tokenizer(source, tower.config.vocab_size if tower is not None else None)
    parts |= {
        name: (make or _stock)(name, model, source.parts[name], layout.path, dtype)
        for name, model in checked.items()
    }
    if make or layout.format != "stock pipeline":
        parts = surroundings(source) | parts
    return parts


def adapter_config(folder: Path) -> dict[str, Any] | None:
    """The configuration of the text adapter in `folder`; None where there is none (text_adapter.py)."""
    file = folder / "config.json"
    config = read_json(file) if file.is_file() else {}
    return config if config.get("_class_name") == "TextAdapter" else None


def _width(tower: Any, folder: Path | None) -> int | None:
    """Values a token that reach the UNet: the adapter's where the tower or the model's folder has one."""
    if tower is None:
        return None
    adapter = getattr(tower, "text_adapter", None)
    config = adapter.config if adapter is not None else adapter_config(folder / ADAPTER) if folder else None
    return config["out_dim"] if config else tower.config.project_dim


def load_altclip(
    layout: Layout,
    *,
    dtype: Any = None,
    tokenizer: str | os.PathLike | None = None,
    make: Make | None = None,
) -> dict[str, Any]:
    """The arguments of `AltCLIP`: model, tokenizer, image processor, form, and m18's generation head."""
    from transformers import AltCLIPModel, CLIPImageProcessorPil

    where = layout.path / "altclip" if (layout.path / "altclip").is_dir() else layout.path
    if tokenizer is None and where != layout.path:
        tokenizer = where
    folder = None if tokenizer is None else Path(tokenizer)
    source = layouts.read(layout, tokenizer=folder, only={"altclip", "text_encoder"})
    if "altclip" not in source.parts:
        raise refusal(layout.path, "has no altclip folder and no vision tower; allowed: a model that has")
    part = source.parts["altclip"]
    model = (make or _stock)("altclip", _checked(AltCLIPModel, part, where), part, where, dtype)
    head = None
    if layout.form == "m18" and "text_encoder" in source.parts:
        tower = source.parts["text_encoder"].tensors
        head = {kind: tower[f"transformation.{kind}"].clone() for kind in ("weight", "bias")}
        like = model.text_model.transformation.state_dict()
        expected = {f"transformation_pre.{kind}": tensor for kind, tensor in like.items()}
        found = {f"transformation_pre.{kind}": tensor for kind, tensor in head.items()}
        check_tensors(expected, found, where)
    return {
        "model": model,
        "tokenizer": _tokenizer(source, model.config.text_config.vocab_size),
        "image_processor": CLIPImageProcessorPil.from_dict(source.processors["altclip"]),
        "form": layout.form,
        "generation_head": head,
    }


def model_classes() -> dict[str, Any]:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import AltCLIPTextModel, CLIPVisionModelWithProjection

    return {
        "unet": UNet2DConditionModel,
        "vae": AutoencoderKL,
        "text_encoder": AltCLIPTextModel,
        "safety_checker": StableDiffusionSafetyChecker,
        "image_encoder": CLIPVisionModelWithProjection,
    }


def surroundings(source: Source) -> dict[str, Any]:
    """What a pipeline needs beside models, of a source that diffusers does not open itself."""
    import diffusers
    from transformers import CLIPImageProcessor

    name = source.scheduler.get("_class_name")
    kind = getattr(diffusers, str(name), None)
    if not (isinstance(kind, type) and issubclass(kind, diffusers.SchedulerMixin)):
        raise refusal(source.layout.path, f"names the scheduler {name!r:.80}; allowed: one of diffusers'")
    processor = source.processors.get("feature_extractor")
    with quiet():
        return {
            "scheduler": kind.from_config(source.scheduler),
            "feature_extractor": CLIPImageProcessor.from_dict(processor) if processor else None,
            "safety_checker": None,
            "image_encoder": None,
            "requires_safety_checker": "safety_checker" in source.parts,
        }


def _tokenizer(source: Source, max_ids: int | None) -> Any:
    path = source.layout.path
    if source.tokenizer is None:
        raise refusal(path, "brings no tokenizer; allowed: one in its folder, or tokenizer='FOLDER'")
    tokenizer = load_tokenizer(source.tokenizer, max_ids)
    if path.is_file() and source.layout.draws:
        tokenizer.model_max_length = min(_PROMPT_LENGTH, tokenizer.model_max_length)
    return tokenizer


def load_tokenizer(folder: Path, max_ids: int | None = None):
    """The XLM-R tokenizer of a folder; without its file the class would silently know five tokens."""
    from transformers import XLMRobertaTokenizer

    check_tokenizer(folder)
    try:
        tokenizer = XLMRobertaTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # tokenizers raises bare Exception for a damaged file
        raise refusal(folder, f"holds a tokenizer that cannot be read: {one_line(error)}") from None
    if max_ids is not None and len(tokenizer) > max_ids:
        raise refusal(folder, f"has {len(tokenizer)} ids; allowed by the text encoder: {max_ids}")
    return tokenizer


def stamp(model) -> tuple | None:
    """Changes when the weights of a model do; None where that cannot be told.

    Version counters miss writes through `.data`, as EMA code makes them, so a few values of each tensor
    count.
    """
    import torch

    places, probes = [], []
    for parameter in model.parameters():
        if parameter.is_inference() or parameter.is_meta:
            return None
        values = parameter.detach().flatten()
        places.append((parameter.data_ptr(), parameter._version, parameter.dtype))
        probes.append(values[:: max(1, len(values) // 7)].float())
    return (*places, *torch.cat(probes).tolist()) if probes else None


def fingerprint(models: Iterable, texts: Iterable[str] = ()) -> str:
    """SHA-256 of models or tensors, as they are in memory, and of whatever else decides what comes out."""
    import torch

    digest = hashlib.sha256()
    for model in models:
        tensors = model if isinstance(model, Mapping) else model.state_dict()
        for name, tensor in sorted(tensors.items()):
            digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
            for piece in tensor.detach().contiguous().flatten().split(PIECE):
                plain = piece.cpu()
                plain = plain.float() if plain.is_floating_point() else plain
                digest.update(plain.view(torch.uint8).numpy())
    for text in texts:
        digest.update(text.encode() + b"\0")
    return digest.hexdigest()


def vocabulary(tokenizer) -> str:
    """What a tokenizer knows, less how its latest call cut and padded, which it remembers."""
    from tokenizers import Tokenizer

    known = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    known.no_truncation()
    known.no_padding()
    return known.to_str()


@contextlib.contextmanager
def saving(folder: Path) -> Iterator[Path]:
    """Where to save a model that is to lie in `folder`, with a manifest: see `aside.merged`.

    What else lies there stays, but for the weights of a model that was there before.
    """
    new = not folder.exists()
    with aside.merged(folder) as place, quiet():
        yield place
        forget_paths(place)
        if new:
            bundled.write_manifest(place)
        replaced = replaced_weights(folder, place)
    for file in replaced:
        file.unlink(missing_ok=True)
    if not new:
        bundled.write_manifest(folder)


def forget_paths(folder: Path) -> None:
    """Removes from the configs of a saved model the path that it was loaded from."""
    index = folder / "model_index.json"
    parts = read_json(index) if index.is_file() else {}
    for file in (index, folder / "config.json", *(folder / part / "config.json" for part in parts)):
        content = read_json(file) if file.is_file() else {}
        if content.pop("_name_or_path", None) is not None:
            file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No loading bars or reports from the libraries; what they would report is checked here and raised.

    Their settings are the process's: the first thread to come in turns them down, the last to leave up again.
    """
    import diffusers.utils.logging as diffusers_logging
    import transformers.utils.logging as transformers_logging

    libraries = (diffusers_logging, transformers_logging)
    with _quiet.lock:
        if not _quiet.inside:
            _quiet.before = [(one.is_progress_bar_enabled(), one.get_verbosity()) for one in libraries]
            for library in libraries:
                library.disable_progress_bar()
                library.set_verbosity_error()
        _quiet.inside += 1
    try:
        yield
    finally:
        with _quiet.lock:
            _quiet.inside -= 1
            if not _quiet.inside:
                for library, (bar, verbosity) in zip(libraries, _quiet.before, strict=True):
                    library.set_verbosity(verbosity)
                    if bar:
                        library.enable_progress_bar()


@functools.cache
def _verify_bundled() -> None:
    """Once per process: damaged values would draw nonsense without an error."""
    bundled.verify()


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name longer than the file system takes
        return False
