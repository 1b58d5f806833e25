"""The one reader of weight files and JSON: nothing that is read can run code, nothing damaged passes.

A file is measured against its own header before its tensors are touched, so that a refusal costs
milliseconds. torch files are opened with `weights_only=True` and mapped, not copied, into memory.
"""

import ctypes
import json
import math
import mmap
import os
import re
import struct
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_WEIGHTS = ("diffusion_pytorch_model.safetensors", "model.safetensors")
_PICKLES = ("diffusion_pytorch_model.bin", "pytorch_model.bin")
_TOKENIZERS = ("tokenizer.json", "sentencepiece.bpe.model")
#: A name of `weight_files`, of a shard or of an index; one of the groups is its variant.
_OF_WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_model|pytorch_model|model)(?:\.(\w+))?(?:-\d+-of-\d+)?(?:\.(\w+))?"
    r"\.(?:safetensors|bin)(?:\.index(?:\.(\w+))?\.json)?"
)
#: Endings of files that hold a whole model.
SINGLE_FILES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
#: safetensors' own limit; a longer header is a damaged or hostile file.
_MAX_HEADER = 100_000_000
_BITS = {"F64": 64, "I64": 64, "U64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16, "I16": 16}
_BITS |= {"U16": 16, "I8": 8, "U8": 8, "BOOL": 8, "F8_E4M3": 8, "F8_E5M2": 8}


def refusal(where: str | os.PathLike, reason: str) -> ValueError:
    """A path that is too long for the message keeps its end, which says more."""
    name = os.fspath(where)
    return ValueError(f"model: {name if len(name) <= 80 else '…' + name[-79:]!r} {reason}")


def one_line(error: Exception) -> str:
    return f"{' '.join(str(error).split()):.120}"


def read_json(file: Path) -> dict:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise refusal(file, "is missing") from None
    except (ValueError, RecursionError, OSError):
        raise refusal(file, "is truncated or damaged: not JSON") from None
    if not isinstance(content, dict):
        raise refusal(file, "is damaged: not a JSON object")
    return content


def has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _TOKENIZERS)


def check_tokenizer(folder: Path) -> None:
    files = [folder / name for name in _TOKENIZERS if (folder / name).is_file()]
    if not files:
        raise refusal(folder, f"holds no tokenizer; allowed: {' or '.join(_TOKENIZERS)}")
    if files[0].suffix == ".json":
        read_json(files[0])
    elif not files[0].stat().st_size:
        raise refusal(files[0], "is empty")


def variant_of(folder: Path, variant: str | None = None) -> str | None:
    """The variant to read: the one asked for where the folder has it, else what lies there alone."""
    names = [file.name for file in folder.iterdir()] if folder.is_dir() else []
    if variant and any(f".{variant}." in name for name in names):
        return variant
    plain = {name for known in (*_WEIGHTS, *_PICKLES) for name in (known, f"{known}.index.json")}
    if plain & set(names):
        return None
    single = re.compile(r"\w+\.(\w+)\.(?:safetensors|bin)|\w+\.(?:safetensors|bin)\.index\.(\w+)\.json")
    found = [match[1] or match[2] for name in names if (match := single.fullmatch(name))]
    return min(found, default=None)


def weight_files(folder: Path, variant: str | None = None) -> list[Path]:
    """The files that hold a model's weights: one, or the shards of an index. safetensors go first."""
    for name in (*_WEIGHTS, *_PICKLES):
        stem, suffix = name.rsplit(".", 1)
        index = folder / (f"{name}.index.{variant}.json" if variant else f"{name}.index.json")
        if index.is_file():
            return _shards(index, stem, suffix, variant)
        single = folder / (f"{stem}.{variant}.{suffix}" if variant else name)
        if single.is_file():
            return [single]
    raise refusal(folder, f"holds no weights; allowed: {', '.join((*_WEIGHTS, *_PICKLES))}")


def _shards(index: Path, stem: str, suffix: str, variant: str | None) -> list[Path]:
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or any(Path(str(name)).name != name for name in shards.values()):
        raise refusal(index, "is damaged: it lists no files of its own folder")
    files = [index.parent / shard for shard in sorted(set(shards.values()))]
    shard, mark = r"-\d+-of-\d+", rf"\.{re.escape(variant)}" if variant else ""
    shape = re.compile(rf"{stem}({mark}{shard}|{shard}{mark})\.{suffix}")
    extra = {file for file in index.parent.iterdir() if shape.fullmatch(file.name)} - set(files)
    if extra:
        raise refusal(min(extra), f"is a shard that {index.name} does not list")
    for file in files:
        if not file.is_file():
            raise refusal(file, "is missing")
    return files


def replaced_weights(folder: Path, saved: Path) -> list[Path]:
    """Weights, shards and indexes of a model in `folder` that is to become the one in `saved`.

    In each part that was saved those of the same variant and another name, which could be read in its place.
    """
    replaced = []
    for place in (saved, *(place for place in saved.rglob("*") if place.is_dir())):
        part, new = folder / place.relative_to(saved), _variants(place)
        old = _variants(part).items()
        replaced += [part / name for name, variant in old if name not in new and variant in new.values()]
    return replaced


def _variants(folder: Path) -> dict[str, str | None]:
    """Of all weights, shards and indexes in the folder, by name."""
    names = [file.name for file in folder.iterdir() if file.is_file()] if folder.is_dir() else []
    matches = {name: match for name in names if (match := _OF_WEIGHTS.fullmatch(name))}
    return {name: match[1] or match[2] or match[3] for name, match in matches.items()}


def shapes_of(path: Path, variant: str | None = None) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a weights file or a folder's weights, without their data."""
    if path.is_dir():
        files = weight_files(path, variant_of(path, variant))
        return _merged(files, [shapes_of(file) for file in files])
    if path.suffix == ".safetensors":
        return tensor_shapes(path)
    return {
        name: tensor_shape(value) for name, value in read_tensors(path).items() if hasattr(value, "shape")
    }


def read_folder(folder: Path, variant: str | None = None) -> dict[str, Any]:
    """Name → tensor of all the folder's weights."""
    files = weight_files(folder, variant_of(folder, variant))
    return _merged(files, [read_tensors(file) for file in files])


def _merged(files: list[Path], contents: list[dict]) -> dict:
    merged = {}
    for file, content in zip(files, contents, strict=True):
        if twice := merged.keys() & content.keys():
            raise refusal(file, f"repeats tensor {min(twice)!r} of another shard")
        merged |= content
    return merged


def tensor_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a safetensors file, from its header alone; a truncated file is refused."""
    header, size, start = _header(file)
    end = start
    try:
        for name, entry in header.items():
            first, last = entry["data_offsets"]
            bits = _BITS.get(entry["dtype"])
            if bits and (last - first) * 8 != math.prod(entry["shape"]) * bits:
                raise refusal(
                    file, f"is damaged: tensor {name!r} of shape {entry['shape']} has {last - first} bytes"
                )
            end = max(end, start + last)
        shapes = {name: tuple(entry["shape"]) for name, entry in header.items()}
    except (KeyError, TypeError, AttributeError):
        raise refusal(file, "is damaged: its header cannot be read") from None
    if size != end:
        raise refusal(file, f"is truncated or damaged: {size:,} bytes, its header says {end:,}")
    return shapes


def metadata(file: Path) -> dict[str, str]:
    """What the writer of a safetensors file noted in it; nothing for a torch file."""
    return _header(file, notes=True)[0] if file.suffix == ".safetensors" else {}


def _header(file: Path, notes: bool = False) -> tuple[dict, int, int]:
    """The header's entries (or only the notes), the file's size, and where the data starts."""
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = struct.unpack("<Q", stream.read(8).ljust(8, b"\0"))[0]
            if size < 8 or length > min(_MAX_HEADER, size - 8):
                raise refusal(
                    file, f"is truncated or no safetensors file ({size:,} bytes{_looks_like(file)})"
                )
            content = json.loads(stream.read(length))
        found = content.pop("__metadata__", None) or {}
    except OSError:
        raise refusal(file, "is missing") from None
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        if isinstance(error, ValueError) and str(error).startswith("model: "):
            raise
        raise refusal(file, "is damaged: its header cannot be read") from None
    return (found if notes else content), size, 8 + length


def read_tensors(path: Path) -> dict[str, Any]:
    """Name → tensor of a weights file: safetensors, or a torch file read so that it cannot run code."""
    path = Path(path)
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        tensor_shapes(path)
        try:
            return load_file(path)
        except SafetensorError as error:
            raise refusal(path, f"is damaged: {one_line(error)}") from None
    import torch

    if not path.is_file():
        raise refusal(path, "is missing")
    if not zipfile.is_zipfile(path):
        raise refusal(
            path, f"is truncated or no torch file ({path.stat().st_size:,} bytes{_looks_like(path)})"
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises half a dozen kinds for a damaged or hostile file
        raise refusal(path, f"cannot be read safely: {_cause(error)}") from None
    if not isinstance(content, dict):
        raise refusal(path, f"holds {type(content).__name__}; allowed: named tensors")
    return content


def mapped_spans() -> list[tuple[int, int]]:
    """Where this process's memory is mapped from files: first addresses and ends; known on Linux only."""
    if sys.platform != "linux":
        return []
    spans = []
    for line in Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines():
        span, _, _, _, inode, *_ = line.split(maxsplit=5)
        if inode != "0":
            first, last = span.split("-")
            spans.append((int(first, 16), int(last, 16)))
    return spans


def let_go(tensor: Any, spans: list[tuple[int, int]]) -> None:
    """Takes the pages of a tensor that lies in one of the `spans` out of memory; read again, they come back.

    Else a model of 3 GB takes 6 while it is copied. Memory of another kind would be lost and is left alone.
    """
    first, last = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
    first, last = -(-first // mmap.PAGESIZE) * mmap.PAGESIZE, last // mmap.PAGESIZE * mmap.PAGESIZE
    if last > first and any(start <= first and last <= end for start, end in spans):
        ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), mmap.MADV_DONTNEED)


def _cause(error: Exception) -> str:
    """torch's advice to load such a file unsafely is left out; which global it met is kept."""
    found = re.search(r"Unsupported global: GLOBAL (\S+)", str(error))
    return f"it would run {found[1]}" if found else one_line(error)


def _looks_like(file: Path) -> str:
    with file.open("rb") as stream:
        start = stream.read(9)
    if start.startswith(b"PK\3\4"):
        return ", by its content a torch file"
    return ", by its content a safetensors file" if start[8:] == b"{" else ""


def check_tensors(expected: Mapping, found: Mapping, where: str | os.PathLike = "weights") -> None:
    """Both map names to tensors or shapes; one that is missing, misshapen or unexpected is named."""
    expected = {name: tensor_shape(value) for name, value in expected.items()}
    found = {name: tensor_shape(value) for name, value in found.items()}
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
        raise refusal(where, f"does not fit its configuration: {faults[0]}{more}")


def tensor_shape(value: Any) -> tuple[int, ...]:
    return tuple(getattr(value, "shape", value))
