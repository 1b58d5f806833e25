"""Model folders: found, checked, read strictly.

A folder is checked before anything heavy is imported or any weight is read: its kind, its parts, each
file's length against its own header. Reading is strict: transformers and diffusers leave a tensor that they
do not find at random values and print a report; here it is an error that names it. The only layout read is
the one that we save (stock diffusers and transformers folders); each refusal starts with `model: `.
"""

import contextlib
import functools
import hashlib
import json
import os
import re
import struct
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from altdiffusion import bundled

#: Components of a pipeline folder, each with the classes that may stand in its model_index.json.
PIPELINE_PARTS = {
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("AltCLIPTextModel",),
    "tokenizer": ("XLMRobertaTokenizer", "XLMRobertaTokenizerFast"),
    "scheduler": None,  # any
}
_PIPELINE_CLASSES = (
    "StableDiffusionPipeline",
    "StableDiffusionImg2ImgPipeline",
    "StableDiffusionInpaintPipeline",
)
_WEIGHTS = ("diffusion_pytorch_model.safetensors", "model.safetensors")
_PICKLES = ("diffusion_pytorch_model.bin", "pytorch_model.bin")
_TOKENIZERS = ("tokenizer.json", "sentencepiece.bpe.model")

#: Names on disk → names in memory: transformers 5 renames AltCLIP's layers in memory but not in its files.
_RENAMES = {"AltCLIPModel": [(r"\.layer\.", ".layers.")]}
#: Buffers that older versions saved and that are computed today.
_COMPUTED = re.compile(r"embeddings\.position_ids$")
#: safetensors' own limit; a longer header is a damaged or hostile file.
_MAX_HEADER = 100_000_000
_ALLOWED = "allowed: a model folder, a Hub name such as 'owner/model', or nothing for the bundled model"
_HUB_FILES = ["*.json", "*.md", "*.model", "*.txt", "*/*.safetensors", "model*.safetensors", "*.bin"]


def resolve(name_or_folder: str | os.PathLike | None = None, *, revision: str | None = None) -> Path:
    """The checked folder of a model: the bundled one for None, a local folder, or a snapshot from the Hub."""
    if name_or_folder is None:
        if not bundled.exists():
            raise _refusal(bundled.FOLDER, f"should hold the bundled model and does not; {_ALLOWED}")
        check_folder(bundled.FOLDER)
        _verify_bundled()
        return bundled.FOLDER
    if not isinstance(name_or_folder, str | os.PathLike):
        raise TypeError(f"model: {name_or_folder!r:.80} is {type(name_or_folder).__name__}; {_ALLOWED}")
    name = os.fspath(name_or_folder)
    if not name or "\0" in name:
        raise _refusal(name, f"is no name; {_ALLOWED}")
    folder = Path(name).expanduser()
    if not _exists(folder):
        if isinstance(name_or_folder, Path) or not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name, re.ASCII):
            raise _refusal(name, f"does not exist; {_ALLOWED}")
        folder = _download(name, revision)
    check_folder(folder)
    return folder


def kind_of(folder: Path) -> str:
    """`pipeline` (draws), or `altclip` (encodes)."""
    if (folder / "model_index.json").is_file():
        return "pipeline"
    if not (folder / "config.json").is_file():
        raise _refusal(folder, f"is of another kind: no model_index.json, no config.json; {_ALLOWED}")
    model_type = _read_json(folder / "config.json").get("model_type")
    if model_type != "altclip":
        raise _refusal(folder, f"is of another kind: {model_type!r:.80}; allowed: 'altclip', or a pipeline")
    return "altclip"


def check_folder(folder: Path) -> None:
    """Refuses a folder that is empty, of another kind, incomplete or truncated. Reads headers only."""
    if not folder.is_dir():
        raise _refusal(folder, f"is a file; {_ALLOWED}")
    if not any(folder.iterdir()):
        raise _refusal(folder, f"is empty; {_ALLOWED}")
    if kind_of(folder) == "altclip":
        _check_altclip(folder)
        return
    index = _read_json(folder / "model_index.json")
    class_name = index.get("_class_name")
    if class_name not in _PIPELINE_CLASSES:
        allowed = ", ".join(_PIPELINE_CLASSES)
        raise _refusal(folder, f"is of another kind: {class_name!r:.80}; allowed: {allowed}")
    for part, classes in PIPELINE_PARTS.items():
        entry = index.get(part)
        found = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
        if not isinstance(found, str) or (classes and found not in classes):
            allowed = " or ".join(classes) if classes else "any scheduler"
            raise _refusal(folder, f"is of another kind: its {part} is {found!r:.80}; allowed: {allowed}")
    for part in ("unet", "vae", "text_encoder"):
        _check_weights(folder / part)
    _check_tokenizer(folder / "tokenizer")
    _read_json(folder / "scheduler" / "scheduler_config.json")
    if (folder / "altclip").is_dir():
        _check_altclip(folder / "altclip")


def weight_files(folder: Path, variant: str | None = None) -> list[Path]:
    """The files that hold a model's weights: one, or the shards of an index. safetensors go first."""
    for name in (*_WEIGHTS, *_PICKLES):
        stem, suffix = name.rsplit(".", 1)
        index = folder / (f"{name}.index.{variant}.json" if variant else f"{name}.index.json")
        if index.is_file():
            shards = _read_json(index).get("weight_map")
            if not isinstance(shards, dict) or any(Path(str(name)).name != name for name in shards.values()):
                raise _refusal(index, "is damaged: it lists no files of its own folder")
            return [folder / shard for shard in sorted(set(shards.values()))]
        single = folder / (f"{stem}.{variant}.{suffix}" if variant else name)
        if single.is_file():
            return [single]
    raise _refusal(folder, f"holds no weights; allowed: {', '.join((*_WEIGHTS, *_PICKLES))}")


def tensor_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a safetensors file, from its header alone; a truncated file is refused."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = struct.unpack("<Q", stream.read(8).ljust(8, b"\0"))[0]
        if size < 8 or length > min(_MAX_HEADER, size - 8):
            raise _refusal(file, f"is truncated or no safetensors file ({size:,} bytes)")
        try:
            header = json.loads(stream.read(length))
            header.pop("__metadata__", None)
            end = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
            shapes = {name: tuple(entry["shape"]) for name, entry in header.items()}
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
            raise _refusal(file, "is damaged: its header cannot be read") from None
    if size != end:
        raise _refusal(file, f"is truncated or damaged: {size:,} bytes, its header says {end:,}")
    return shapes


def read_tensors(path: Path) -> dict:
    """Name → tensor of a weights file: safetensors, or a torch file read so that it cannot run code."""
    path = Path(path)
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        tensor_shapes(path)
        return load_file(path)
    import torch

    if not zipfile.is_zipfile(path):
        raise _refusal(path, "is truncated or no torch file")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (
        Exception
    ) as error:  # torch raises half a dozen kinds for a file that is damaged or wants to run code
        raise _refusal(path, f"cannot be read safely: {_one_line(error)}") from None


def check_tensors(expected: Mapping, found: Mapping, where: str | os.PathLike = "weights") -> None:
    """Both map names to tensors or shapes; one that is missing, misshapen or unexpected is named."""
    expected = {name: _shape(value) for name, value in expected.items()}
    found = {name: _shape(value) for name, value in found.items()}
    common, missing = found.keys() & expected.keys(), expected.keys() - found.keys()
    faults = [
        f"tensor {name!r} has shape {found[name]}, expected {expected[name]}"
        for name in sorted(common)
        if found[name] != expected[name]
    ]
    faults += [f"tensor {name!r} is missing, expected shape {expected[name]}" for name in sorted(missing)]
    faults += [
        f"tensor {name!r} is unexpected, found shape {found[name]}"
        for name in sorted(found.keys() - expected.keys())
    ]
    if faults:
        more = f" (and {len(faults) - 1} more tensors do not fit)" if len(faults) > 1 else ""
        raise _refusal(where, f"does not fit its config.json: {faults[0]}{more}")


def load_strict(model_class, folder: Path, *, dtype=None, variant: str | None = None):
    """`model_class` with the folder's weights, in eval mode, float32 unless asked; every tensor must fit."""
    import torch

    folder = Path(folder)
    variant = variant or _only_variant(folder)
    files = weight_files(folder, variant)
    try:
        with torch.device("meta"):
            if hasattr(model_class, "config_class"):
                expected = model_class(model_class.config_class.from_pretrained(folder)).state_dict()
            else:
                expected = model_class.from_config(model_class.load_config(folder)).state_dict()
    except Exception as error:  # a config that is wrong in any field fails anywhere in the libraries
        raise _refusal(
            folder / "config.json", f"makes no {model_class.__name__}: {_one_line(error)}"
        ) from None
    found = {}
    for file in files:
        found |= tensor_shapes(file) if file.suffix == ".safetensors" else read_tensors(file)
    check_tensors(expected, _in_memory(model_class, found, expected), folder)
    with quiet():
        model, report = model_class.from_pretrained(
            str(folder),
            dtype=dtype or torch.float32,
            variant=variant,
            local_files_only=True,
            use_safetensors=files[0].suffix == ".safetensors",
            output_loading_info=True,
        )
    left = {kind: names for kind, names in report.items() if names and kind != "unexpected_keys"}
    if left:
        raise _refusal(folder, f"did not load whole: {left!r:.300}")
    return model.eval()


def load_tokenizer(folder: Path, max_ids: int | None = None):
    """The XLM-R tokenizer of a folder; without its file the class would silently know five tokens."""
    from transformers import XLMRobertaTokenizer

    _check_tokenizer(folder)
    try:
        tokenizer = XLMRobertaTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # tokenizers raises bare Exception for a damaged file
        raise _refusal(folder, f"holds a tokenizer that cannot be read: {_one_line(error)}") from None
    if max_ids is not None and len(tokenizer) > max_ids:
        raise _refusal(folder, f"has {len(tokenizer)} ids; allowed by the text encoder: {max_ids}")
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
    """SHA-256 of weights, as they are in memory, and of whatever else decides what comes out."""
    import torch

    digest = hashlib.sha256()
    for model in models:
        for name, tensor in sorted(model.state_dict().items()):
            digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
            plain = tensor.detach().cpu()
            plain = plain.float() if plain.is_floating_point() else plain
            digest.update(plain.contiguous().flatten().view(torch.uint8).numpy())
    for text in texts:
        digest.update(text.encode() + b"\0")
    return digest.hexdigest()


def forget_paths(folder: Path) -> None:
    """Removes from the configs of a saved model the path that it was loaded from."""
    index = folder / "model_index.json"
    parts = _read_json(index) if index.is_file() else {}
    for file in (index, folder / "config.json", *(folder / part / "config.json" for part in parts)):
        content = _read_json(file) if file.is_file() else {}
        if content.pop("_name_or_path", None) is not None:
            file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No loading bars or reports from the libraries; what they would report is checked here and raised."""
    import diffusers.utils.logging as diffusers_logging
    import transformers.utils.logging as transformers_logging

    libraries = (diffusers_logging, transformers_logging)
    before = [(library.is_progress_bar_enabled(), library.get_verbosity()) for library in libraries]
    try:
        for library in libraries:
            library.disable_progress_bar()
            library.set_verbosity_error()
        yield
    finally:
        for library, (bar, verbosity) in zip(libraries, before, strict=True):
            library.set_verbosity(verbosity)
            if bar:
                library.enable_progress_bar()


@functools.cache
def _verify_bundled() -> None:
    """Once per process: damaged values would draw nonsense without an error."""
    bundled.verify()


def _check_altclip(folder: Path) -> None:
    if kind_of(folder) != "altclip":
        raise _refusal(folder, "is of another kind; allowed: an AltCLIP folder")
    _check_weights(folder)
    _check_tokenizer(folder)
    _read_json(folder / "preprocessor_config.json")


def _check_weights(folder: Path) -> None:
    _read_json(folder / "config.json")
    for file in weight_files(folder, _only_variant(folder)):
        if not file.is_file():
            raise _refusal(file, "is missing")
        if file.suffix == ".safetensors":
            tensor_shapes(file)
        elif not zipfile.is_zipfile(file):
            raise _refusal(file, "is truncated or no torch file")


def _only_variant(folder: Path) -> str | None:
    """`fp16` where a folder holds that variant alone (`model.fp16.safetensors`), else None."""
    names = {file.name for file in folder.glob("*.*")}
    if any(name in names or f"{name}.index.json" in names for name in (*_WEIGHTS, *_PICKLES)):
        return None
    variants = {name.split(".")[1] for name in names if re.fullmatch(r"\w+\.\w+\.safetensors", name)}
    return min(variants, default=None)


def _check_tokenizer(folder: Path) -> None:
    files = [folder / name for name in _TOKENIZERS if (folder / name).is_file()]
    if not files:
        raise _refusal(folder, f"holds no tokenizer; allowed: {' or '.join(_TOKENIZERS)}")
    if files[0].suffix == ".json":
        _read_json(files[0])


def _read_json(file: Path) -> dict:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise _refusal(file, "is missing") from None
    except (ValueError, RecursionError, OSError):
        raise _refusal(file, "is truncated or damaged: not JSON") from None
    if not isinstance(content, dict):
        raise _refusal(file, "is damaged: not a JSON object")
    return content


def _in_memory(model_class, found: Mapping, expected: Mapping) -> dict:
    """`found` under the names that the class uses in memory, without buffers that are computed today."""
    renamed = {}
    for name, value in found.items():
        for pattern, replacement in _RENAMES.get(model_class.__name__, ()):
            name = re.sub(pattern, replacement, name)
        if name in expected or not _COMPUTED.search(name):
            renamed[name] = value
    return renamed


def _shape(value) -> tuple[int, ...]:
    return tuple(getattr(value, "shape", value))


def _exists(folder: Path) -> bool:
    try:
        return folder.exists()
    except OSError:  # a name longer than the file system takes
        return False


def _download(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=_HUB_FILES))
    except (OSError, HfHubHTTPError) as error:
        reason = f"is no folder here, and the Hub gave nothing ({_one_line(error)})"
        raise _refusal(name, f"{reason}; {_ALLOWED}") from None


def _one_line(error: Exception) -> str:
    return f"{' '.join(str(error).split()):.120}"


def _refusal(where: str | os.PathLike, reason: str) -> ValueError:
    """A path that is too long for the message keeps its end, which says more."""
    name = os.fspath(where)
    return ValueError(f"model: {name if len(name) <= 80 else '…' + name[-79:]!r} {reason}")
