"""Times one training step of each stage on random models of the published shapes, the peers' way and ours.

    python -m bench.training [--shape published|tiny] [--stages …] [--rounds 3] [-o report.json] [--write]

SD 1.5's UNet and autoencoder, XLM-R-large, CLIP-L's text and image towers; pictures of 256 px; one thread.
What the ways are: `bench/training_ways.py`. The parts of a stage that fit into memory together take turns in
one process, in an order that is reversed each round, after one call that is not counted; a figure is the
median of the rounds, in seconds of CPU time, which leaves out waiting for other work on the machine. A way's
time is the sum of its parts.

Memory: each way in a process of its own, highest resident memory during two steps over that before its
models were made. AdamW's two states of a whole UNet or XLM-R are added by their size, 8 bytes a parameter:
they would not fit beside the rest everywhere. The published shapes need 16 GB of free memory. Linux only.
"""

import argparse
import gc
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from bench import training_ways as ways
from bench.limits import PRECISIONS, resident
from bench.report import Start, origin, parser, tell
from bench.training_models import SHAPES, Models
from bench.training_ways import Part
from bench.turns import median_seconds

GB = 1e9
Build = Callable[[Models, int], Part]


@dataclass(frozen=True)
class Stage:
    """Parts by name, in groups that are timed together, and the ways that they make up; ours is the last."""

    batches: tuple[int, ...]
    groups: tuple[dict[str, Build], ...]
    ways: dict[str, tuple[str, ...]]
    whole: Callable[[Models], nn.Module]
    """What the peers' optimizer steps over."""


def both(part: Callable[[Models, int, str], Part], name: str) -> dict[str, Build]:
    return {f"{name} {precision}": partial(part, precision=precision) for precision in PRECISIONS}


def optimizer(whole: Callable[[Models], nn.Module]) -> dict[str, Build]:
    return {"AdamW": lambda models, _batch: ways.whole_update(whole(models))}


def unet_of(models: Models) -> nn.Module:
    return models.unet


def student_of(models: Models) -> nn.Module:
    return models.student


def padded_ways(inputs: str, step: str, ours: str) -> dict[str, tuple[str, ...]]:
    peers = {f"padded, {p}": (f"{inputs} {p}", f"{step} {p}", "AdamW") for p in PRECISIONS}
    return {**peers, ours: ("ours",)}


STAGES = {
    "concept alignment": Stage(
        (1, 8),
        (
            both(ways.diffusers_inputs, "inputs"),
            {
                **both(ways.diffusers_full, "full"),
                "LoRA bf16": partial(ways.diffusers_lora, precision="bf16"),
                "ours": ways.our_alignment,
            },
            optimizer(unet_of),
        ),
        {
            "full UNet, fp32": ("inputs fp32", "full fp32", "AdamW"),
            "full UNet, bf16": ("inputs bf16", "full bf16", "AdamW"),
            "LoRA, bf16": ("inputs bf16", "LoRA bf16"),
            "ours: keys and values, cached inputs, bf16": ("ours",),
        },
        unet_of,
    ),
    "teacher learning": Stage(
        (8,),
        (
            both(ways.teacher_inputs, "teacher"),
            {"ours": ways.our_distillation, **both(ways.peer_student, "student")},
            optimizer(student_of),
        ),
        padded_ways("teacher", "student", "ours: cached teacher, own lengths, frozen embeddings, bf16"),
        student_of,
    ),
    "contrastive learning": Stage(
        (16,),
        (
            both(ways.image_inputs, "image"),
            {"ours": ways.our_contrast, **both(ways.peer_text, "text")},
            optimizer(student_of),
        ),
        padded_ways("image", "text", "ours: cached features, own lengths, frozen embeddings, bf16"),
        student_of,
    ),
}
#: What the design asks for: times our speed, times our memory.
TARGETS = {
    ("concept alignment", 1, "full UNet, fp32"): (4.5, 6.0),
    ("concept alignment", 1, "full UNet, bf16"): (3.0, None),
    ("concept alignment", 8, "full UNet, fp32"): (3.8, None),
    ("concept alignment", 8, "full UNet, bf16"): (2.2, None),
    ("teacher learning", 8, "padded, fp32"): (6.0, None),
    ("contrastive learning", 16, "padded, fp32"): (10.0, None),
}


def time_parts(stage: Stage, shape: str, batch: int, rounds: int, bar: tqdm) -> dict[str, float]:
    seconds = {}
    for group in stage.groups:
        with tempfile.TemporaryDirectory() as folder:
            models = Models(SHAPES[shape], Path(folder))
            parts = {name: build(models, batch) for name, build in group.items()}
            seconds |= median_seconds(parts, rounds, bar)
            del models, parts
            gc.collect()
    return seconds


def peak(stage: Stage, way: str, shape: str, batch: int) -> dict[str, int]:
    """Bytes that two steps of one way take, measured and counted; alone in its process."""
    before = resident("VmRSS")
    builds = {name: build for group in stage.groups for name, build in group.items()}
    with tempfile.TemporaryDirectory() as folder:
        models = Models(SHAPES[shape], Path(folder))
        names = [name for name in stage.ways[way] if name != "AdamW"]
        parts = [builds[name](models, batch) for name in names]
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # sets VmHWM back: proc(5)
        for _ in range(2):
            for part in parts:
                part()
        measured = resident("VmHWM") - before
        counted = len(names) < len(stage.ways[way])
        states = 8 * sum(p.numel() for p in stage.whole(models).parameters()) if counted else 0
    return {"measured": measured, "states": states}


def peak_elsewhere(name: str, way: str, shape: str, batch: int) -> dict[str, int]:
    command = [sys.executable, "-m", "bench.training", "--shape", shape, "--memory-of", name, way, str(batch)]
    done = subprocess.run(command, check=True, capture_output=True, encoding="utf-8")
    return json.loads(done.stdout.splitlines()[-1])


def rows_of(output: Path | None, shape: str, rounds: int) -> list[dict[str, Any]]:
    """What an earlier call of the same kind has measured."""
    if output is None or not output.is_file():
        return []
    report = json.loads(output.read_text(encoding="utf-8"))
    return report["rows"] if (report["shape"], report["rounds"]) == (shape, rounds) else []


def measure(
    shape: str,
    names: list[str],
    batches: list[int],
    rounds: int,
    rows: list[dict[str, Any]],
    memory: bool = True,
) -> dict[str, Any]:
    """The report: a row for each way of each stage and batch size; those that `rows` has are not measured."""
    start, known = Start(), {(row["stage"], row["batch"]) for row in rows}
    jobs = [(name, batch) for name in names for batch in batches or STAGES[name].batches]
    jobs = [job for job in jobs if job not in known]
    total = sum(len(group) for name, _ in jobs for group in STAGES[name].groups) * (rounds + 1)
    with tqdm(total=total, disable=None, unit="step") as bar:
        for name, batch in jobs:
            stage = STAGES[name]
            seconds = time_parts(stage, shape, batch, rounds, bar)
            for way, parts in stage.ways.items():
                times = {part: seconds[part] for part in parts}
                taken = peak_elsewhere(name, way, shape, batch) if memory else {}
                rows.append({"stage": name, "batch": batch, "way": way, "seconds": times, "bytes": taken})
    made = start.made_with("torch", "diffusers")
    return {"shape": shape, "rounds": rounds, "rows": rows, "made with": made}


def figures(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Per sample, and in how many times ours; ours is the last way of each stage and batch size."""
    ours = {(row["stage"], row["batch"]): row for row in report["rows"]}
    found = []
    for row in report["rows"]:
        best = ours[row["stage"], row["batch"]]
        step, memory = sum(row["seconds"].values()), sum(row["bytes"].values())
        found.append(
            {
                **row,
                "per sample": step / row["batch"],
                "memory": memory,
                "slower": step / sum(best["seconds"].values()),
                "larger": memory / (sum(best["bytes"].values()) or 1),
            }
        )
    return found


def table(report: dict[str, Any]) -> str:
    lines = [
        "| stage | batch | way | parts, s | s a sample | times ours | GB | times ours |",
        "|---|---|---|---|---|---|---|---|",
    ]
    targets = TARGETS if report["shape"] == "published" else {}
    for row in figures(report):
        parts = ", ".join(f"{name} {seconds:.2f}" for name, seconds in row["seconds"].items())
        speed, memory = targets.get((row["stage"], row["batch"], row["way"]), (None, None))
        cells = [row["stage"], row["batch"], row["way"], parts, f"{row['per sample']:.2f}"]
        cells.append(against(row["slower"], speed))
        measured = [f"{row['memory'] / GB:.2f}", against(row["larger"], memory)]
        cells += measured if row["bytes"] else ["", ""]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    lines += [
        "",
        origin(report),
    ]
    return "\n".join([*lines, ""])


def against(ratio: float, target: float | None) -> str:
    return f"{ratio:.1f}" if target is None else f"{ratio:.1f} (wanted: {target:g})"


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--shape", choices=SHAPES, default="published")
    options.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    options.add_argument("--batch", nargs="+", type=int, default=[], help="batch sizes; each stage's own")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--no-memory", action="store_true", help="times alone, which takes half as long")
    options.add_argument("--memory-of", nargs=3, help=argparse.SUPPRESS)
    arguments = options.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if arguments.memory_of:
        name, way, batch = arguments.memory_of
        print(json.dumps(peak(STAGES[name], way, arguments.shape, int(batch))))
        return
    kept = rows_of(arguments.output, arguments.shape, arguments.rounds)
    report = measure(
        arguments.shape, arguments.stages, arguments.batch, arguments.rounds, kept, not arguments.no_memory
    )
    tell(report, "training", "training", table, arguments)


if __name__ == "__main__":
    main()
