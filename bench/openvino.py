"""Times the models on random weights of the published shapes, run by PyTorch and by OpenVINO.

    python -m bench.openvino [--shape published|tiny] [--parts unet vision text] [--rounds 5] [--write]

A denoising step with guidance at 256 pixels, four pictures of 224 and one prompt of 13 tokens, in bf16; one
thread. PyTorch and OpenVINO take turns in one process, in an order that is reversed each round, after one
call that is not counted; a figure is the median of the rounds, in seconds of CPU time. `share` is of the
matrix products that this run measured (bench/limits.py); their number is counted on the model itself.
A part at a time, converted in a process of its own: the UNet needs 7 GB for that, for two minutes.
"""

import gc
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from altdiffusion import checkpoints, openvino_cache
from altdiffusion.openvino_parts import KINDS
from altdiffusion.sources import Part
from bench import limits
from bench.published_sizes import TEXT, UNET_1, VISION_L
from bench.report import Start, origin, parser, tell
from bench.turns import median_seconds

#: What the design asks for: how many times as fast as PyTorch, and shares of the measured peak.
TARGETS = {"unet": 1.2, "vision_model": 1.1}
SHARES = {("unet", "PyTorch"): 0.60, ("unet", "OpenVINO"): 0.82}
_SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
_WIDTHS = {"block_out_channels": [32, 32, 64, 64], "norm_num_groups": 8, "cross_attention_dim": 16}
TINY = {
    "unet": {**UNET_1, **_WIDTHS},
    "vision_model": {**_SMALL, "image_size": 28, "patch_size": 14},
    "text_model": {**_SMALL, "vocab_size": 20, "project_dim": 16},
}
PUBLISHED = {
    "unet": UNET_1,
    "vision_model": {**VISION_L, "image_size": 224, "patch_size": 14},
    "text_model": {
        **{key: value for key, value in TEXT.items() if key not in ("pooler_fn", "learn_encoder")},
        "project_dim": 768,
    },
}
NAMES = {"unet": "UNet step, 256 px", "vision_model": "image tower, 4 pictures", "text_model": "one prompt"}


def random_part(name: str, config: dict[str, Any]) -> tuple[Any, Part]:
    """A stock model without weights, and small random ones for it in bf16."""
    from diffusers import UNet2DConditionModel
    from transformers import AltCLIPTextConfig, AltCLIPTextModel, AltCLIPVisionConfig
    from transformers.models.altclip.modeling_altclip import AltCLIPVisionModel

    with torch.device("meta"):
        if name == "unet":
            model: Any = UNet2DConditionModel(**config)
        elif name == "text_model":
            model = AltCLIPTextModel(AltCLIPTextConfig(**config))
        else:
            model = AltCLIPVisionModel(AltCLIPVisionConfig(**config))
    full = dict(model.config) if name == "unet" else model.config.to_dict()
    random = torch.Generator().manual_seed(0)
    tensors = {
        key: torch.empty(value.shape, dtype=torch.bfloat16).normal_(0, 0.02, generator=random)
        for key, value in model.state_dict().items()
    }
    return model, Part(full, tensors)


def inputs(name: str, config: dict[str, Any], tiny: bool) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(1)
    if name == "unet":
        side = 16 if tiny else 32
        return {
            "sample": torch.randn(2, 4, side, side, generator=random),
            "timestep": torch.tensor(501),
            "encoder_hidden_states": torch.randn(2, 77, config["cross_attention_dim"], generator=random),
        }
    if name == "vision_model":
        side = config["image_size"]
        return {"pixel_values": torch.randn(4, 3, side, side, generator=random)}
    return {"input_ids": torch.randint(4, config["vocab_size"], (1, 13), generator=random)}


def call(model: Any, given: dict[str, Tensor], dtype: torch.dtype) -> Tensor:
    cast = {key: value.to(dtype) if value.is_floating_point() else value for key, value in given.items()}
    found = model(**cast)
    names = ("sample", "pooler_output")
    return next(found[name] for name in names if found.get(name) is not None)


def operations(model: Any, given: dict[str, Tensor]) -> int:
    """Of the model on `meta`, which computes nothing."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(**{key: value.to("meta") for key, value in given.items()})
    return counter.get_total_flops()


def measure_part(name: str, shape: str, rounds: int, bar: tqdm, bf16: float) -> list[dict[str, Any]]:
    config = (TINY if shape == "tiny" else PUBLISHED)[name]
    stock, part = random_part(name, config)
    given = inputs(name, config, shape == "tiny")
    flops = operations(stock, given)
    start = time.perf_counter()
    networks = openvino_cache.networks(name, type(stock), part, Path("random"), dtype=torch.bfloat16)
    converting = time.perf_counter() - start
    theirs = KINDS[name](stock.config, networks, {}, torch.bfloat16)
    ours = checkpoints.build(type(stock), part, Path("random"), dtype=torch.bfloat16)
    made: dict[str, Tensor] = {}
    with torch.no_grad():
        ways = {
            "PyTorch": lambda: made.update(PyTorch=call(ours, given, torch.bfloat16)),
            "OpenVINO": lambda: made.update(OpenVINO=call(theirs, given, torch.float32)),
        }
        seconds = median_seconds(ways, rounds, bar)
    cosine = F.cosine_similarity(*(value.float().flatten() for value in made.values()), dim=0).item()
    rows = []
    for way, took in seconds.items():
        row = {"part": name, "way": way, "cpu_s": took, "share": flops / took / bf16, "gflop": flops / 1e9}
        rows.append(row | ({"cosine": cosine, "convert_s": converting} if way == "OpenVINO" else {}))
    return rows


def measure(shape: str, parts: list[str], rounds: int) -> dict[str, Any]:
    start, rows = Start(), []
    size = 256 if shape == "tiny" else 2048
    found = limits.measure(torch.device("cpu"), size, 16 if shape == "tiny" else 512)
    with tempfile.TemporaryDirectory() as folder, tqdm(disable=None, unit="call") as bar:
        os.environ["ALTDIFFUSION_CACHE"] = folder
        for name in parts:
            rows += measure_part(name, shape, rounds, bar, found["gemm bf16"])
            gc.collect()
    made = start.made_with("torch", "openvino", "diffusers", "transformers")
    return {"shape": shape, "rounds": rounds, "limits": found, "rows": rows, "made with": made}


def table(report: dict[str, Any]) -> str:
    lines = [
        "| part | run by | CPU s | times OpenVINO's | share of the peak | cosine |",
        "|---|---|---|---|---|---|",
    ]
    least = {row["part"]: row["cpu_s"] for row in report["rows"]}  # OpenVINO's, which comes last
    published = report["shape"] == "published"
    for row in report["rows"]:
        target = TARGETS.get(row["part"]) if row["way"] == "PyTorch" and published else None
        share = SHARES.get((row["part"], row["way"])) if published else None
        ratio = row["cpu_s"] / least[row["part"]]
        cells = [NAMES[row["part"]], row["way"], f"{row['cpu_s']:.3f}"]
        cells += [f"{ratio:.2f}{f' (wanted: {target:g})' if target else ''}"]
        cells += [f"{row['share']:.2f}{f' (wanted: {share:g})' if share else ''}"]
        cells += [f"{row['cosine']:.6f}" if "cosine" in row else ""]
        lines.append(f"| {' | '.join(cells)} |")
    took = {row["part"]: row["convert_s"] for row in report["rows"] if "convert_s" in row}
    converted = ", ".join(f"{NAMES[part]} {seconds:.0f} s" for part, seconds in took.items())
    lines += [
        "",
        f"- limits measured in this run: {limits.sentence(report['limits'])}",
        f"- converted and compiled once: {converted}",
        origin(report),
    ]
    return "\n".join([*lines, ""])


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--shape", choices=("published", "tiny"), default="published")
    options.add_argument("--parts", nargs="+", choices=NAMES, default=list(NAMES))
    options.add_argument("--rounds", type=int, default=5)
    arguments = options.parse_args()
    torch.set_num_threads(1)
    report = measure(arguments.shape, arguments.parts, arguments.rounds)
    tell(report, "openvino", "openvino", table, arguments)


if __name__ == "__main__":
    main()
