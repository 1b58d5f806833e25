"""Networks for OpenVINO: converted once, kept on disk, compiled when they are needed.

A network lies in a folder named for all that decides what it computes: the weights, the configuration, the
format and the versions of the libraries that converted it. It is written aside and renamed, so that a folder
is whole or not there, and checked by the hash of each file before it is read: a damaged one is made anew.
"""

import functools
import gc
import importlib.util
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from altdiffusion import aside, checkpoints, openvino_parts, room
from altdiffusion.checkpoints import Make
from altdiffusion.sources import Part

#: Raised whenever what is traced changes.
_TRACED = 1
_FILES = "files.json"
#: Bytes of weights from which a part is converted in a process of its own: what that took is given back.
_LARGE = 2**28
#: Room that a part's conversion takes, in sizes of its weights: the networks, and a copy for that process.
_COPIES = {False: 1, True: 2}
_HINTS = {torch.float32: "f32", torch.bfloat16: "bf16"}


def choose_runtime(
    name: str, device: str | torch.device | None = None, allowed: Sequence[str] = ("torch", "openvino")
) -> Make | None:
    """What makes models for a runtime: None where they are PyTorch's own."""
    if name not in allowed:
        raise ValueError(f"runtime: {name!r:.80} is not known here; allowed: {', '.join(allowed)}")
    if name == "torch":
        return None
    if importlib.util.find_spec("openvino") is None:
        raise ValueError(
            "runtime: 'openvino' is not installed (pip install 'altdiffusion[openvino]'); allowed here: torch"
        )
    if device not in (None, "auto") and torch.device(device).type != "cpu":
        raise ValueError(f"device: {str(device)!r:.80} with runtime 'openvino'; allowed: cpu")
    return make


def folder() -> Path:
    """Where converted networks are kept: ALTDIFFUSION_CACHE, else the user's cache folder."""
    named = os.environ.get("ALTDIFFUSION_CACHE")
    if named:
        return Path(named).expanduser() / "openvino"
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "altdiffusion" / "openvino"


def make(name: str, model: Any, part: Part, where: Path, dtype: torch.dtype) -> Any:
    """In the place of a stock model that has no weights yet: the part that OpenVINO runs.

    Parts that are small beside the others, as safety checkers are, stay stock models.
    """
    if name == "altclip":
        return _altclip(model, part, where, dtype)
    if name not in openvino_parts.KINDS:
        return checkpoints.build(type(model), part, where, dtype=torch.float32)
    found = networks(name, type(model), part, where, dtype=dtype)
    return openvino_parts.KINDS[name](model.config, found, part.tensors, dtype)


def _altclip(model: Any, part: Part, where: Path, dtype: torch.dtype) -> Any:
    """An AltCLIP whose towers OpenVINO runs; its projections, one matrix each, stay as they are."""
    rest = {}
    towers: dict[str, dict[str, Any]] = {"text_model": {}, "vision_model": {}}
    for name, tensor in part.tensors.items():
        tower, _, inner = name.partition(".")
        if tower in towers:
            towers[tower][inner] = tensor
        else:
            rest[name] = tensor.float().clone()
    for name, tensors in towers.items():
        stock = getattr(model, name)
        config = {"model_type": stock.config.model_type, **stock.config.to_dict()}
        setattr(model, name, make(name, stock, Part(config, tensors), where, dtype))
    found: dict[str, Any] = dict(model.named_parameters())
    assert found.keys() - rest.keys() == {"text_model.place", "vision_model.place"}
    for name, tensor in rest.items():
        module, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(module), leaf, torch.nn.Parameter(tensor, requires_grad=False))
    return model.eval()


def networks(name: str, model_class: Any, part: Part, where: Path, *, dtype: torch.dtype) -> dict[str, Any]:
    """The compiled networks of a part, by the names of `openvino_parts.graphs`; converted if need be."""
    place = folder() / f"{name}-{_key(name, part, dtype)}"
    if not _is_whole(place):
        _convert_aside(name, model_class, part, where, place, dtype)
    return {file.stem: _compiled(file, dtype) for file in sorted(place.glob("*.xml"))}


def _key(name: str, part: Part, dtype: torch.dtype) -> str:
    packages = ("openvino", "torch", "diffusers", "transformers")
    libraries = [f"{package} {version(package)}" for package in packages]
    config = {key: value for key, value in part.config.items() if not key.startswith("_")}
    texts = [name, json.dumps(config, sort_keys=True), str(dtype), str(_TRACED), *libraries]
    return checkpoints.fingerprint([part.tensors], texts)[:32]


def _is_whole(place: Path) -> bool:
    """Whether every file is as it was written."""
    try:
        files = json.loads((place / _FILES).read_text(encoding="utf-8"))
        return aside.fault(place, files) is None
    except (OSError, ValueError, AttributeError):
        return False


def _convert_aside(
    name: str, model_class: Any, part: Part, where: Path, place: Path, dtype: torch.dtype
) -> None:
    size = sum(tensor.nbytes for tensor in part.tensors.values())
    own = size >= _LARGE
    room.check(place, _COPIES[own] * size, f"{name} converted for OpenVINO", "ALTDIFFUSION_CACHE")
    with aside.folder(place) as stage:  # of two processes that convert the same the last one stays
        run: Callable[..., None] = _convert_in_process if own else convert
        run(name, model_class, part, where, stage, dtype)
        aside.seal(stage, _FILES)


def convert(name: str, model_class: Any, part: Part, where: Path, target: Path, dtype: torch.dtype) -> None:
    """Writes `target`/NETWORK.xml and .bin for each network of the part."""
    import openvino

    model = checkpoints.build(model_class, part, where)
    for network, graph in openvino_parts.graphs(name, model).items():
        shapes = [openvino.PartialShape(shape) for shape in graph.shapes]
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the tracer's, of sizes that `UNet` checks at each call
            converted = openvino.convert_model(graph.module.eval(), example_input=graph.example, input=shapes)
        # 16 bits hold what a bf16 network makes of its weights
        openvino.save_model(converted, target / f"{network}.xml", compress_to_fp16=dtype != torch.float32)
        del converted, graph
        gc.collect()
    torch._C._jit_clear_class_registry()  # which keeps every traced model alive


def _convert_in_process(
    name: str, model_class: Any, part: Part, where: Path, target: Path, dtype: torch.dtype
) -> None:
    from safetensors.torch import save_file

    file = target / "weights.safetensors"
    save_file({key: value.contiguous() for key, value in part.tensors.items()}, file)
    order = {
        "name": name,
        "module": model_class.__module__,
        "class": model_class.__qualname__,
        "config": part.config,
        "where": str(where),
        "dtype": str(dtype).removeprefix("torch."),
    }
    command = [sys.executable, "-m", "altdiffusion.openvino_cache", str(target)]
    done = subprocess.run(command, input=json.dumps(order), capture_output=True, text=True, check=False)
    file.unlink()
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1:] or ["no reason given"]
        raise RuntimeError(f"converting {name} for OpenVINO failed: {reason[0]:.200}")


@functools.cache
def _core() -> Any:
    """Kept as long as the process: OpenVINO's plugin for CPUs gives the thread that loads it a stack for
    signals and frees it when the last Core goes, so that the next one, Ctrl-C too, would end in a crash.
    """
    import openvino

    return openvino.Core()


def _compiled(file: Path, dtype: torch.dtype) -> Any:
    options = {
        "INFERENCE_PRECISION_HINT": _HINTS[dtype],
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    return _core().compile_model(file, "CPU", options)


def _main() -> None:
    """Converts the part that stdin describes, whose weights lie in the target folder."""
    import importlib

    from altdiffusion.reading import read_tensors

    order, target = json.load(sys.stdin), Path(sys.argv[1])
    model_class = getattr(importlib.import_module(order["module"]), order["class"])
    part = Part(order["config"], read_tensors(target / "weights.safetensors"))
    convert(order["name"], model_class, part, Path(order["where"]), target, getattr(torch, order["dtype"]))


if __name__ == "__main__":
    _main()
