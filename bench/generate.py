"""Times one 256 px picture on random models of the published shapes, diffusers' way and ours.

    python -m bench.generate [--rounds 5] [--whole] [-o report.json] [--write]

What the ways are: `bench/generate_ways.py`; one thread. A picture is text, so many UNet calls of each kind,
and decoding: each is timed in short calls of the real pipelines that take turns, in an order that is reversed
each round, and a figure is the median, in seconds of CPU time. `--whole` also draws one picture each way from
beginning to end, to hold the sums against: some 15 minutes of CPU time more. Needs 7 GB of free memory.
"""

import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from tqdm import tqdm

from altdiffusion.presets import PRESETS
from bench import generate_ways as ways
from bench import limits
from bench.limits import PRECISIONS
from bench.report import Start, origin, parser, tell
from bench.turns import take_turns

PEER = "diffusers, fp32"
#: Way: the precision of its models, and the preset. The peer's kinds of calls are those of `exact`.
WAYS = {
    PEER: ("fp32", "exact"),
    "exact, fp32": ("fp32", "exact"),
    "default, fp32": ("fp32", "default"),
    "fast, fp32": ("fp32", "fast"),
    "exact, bf16": ("bf16", "exact"),
    "default, bf16": ("bf16", "default"),
    "fast, bf16": ("bf16", "fast"),
}
#: What the design asks for: how many times as fast as the peer.
TARGETS = {"exact, bf16": 1.8, "default, bf16": 6.0, "fast, bf16": 11.0}
Seconds = dict[str, dict[str, float]]


def medians(jobs: dict[str, Callable[[], dict[str, float]]], rounds: int, bar: tqdm) -> Seconds:
    """Of each part of each job, after one round that is not counted."""
    took = take_turns(jobs, rounds, bar)
    return {
        name: {part: statistics.median(one[part] for one in all_) for part in all_[0]}
        for name, all_ in took.items()
    }


def text_seconds(shape: ways.Shape, rounds: int, bar: tqdm) -> tuple[dict[str, float], Any]:
    """Of a prompt that is new and of the empty one, which ours remembers; and conditioning to draw with."""
    tower, prompts = ways.peer_tower(shape, torch.float32), ways.words()
    idle = ways.painters(ways.SHAPES["tiny"], torch.float32)
    runners = {PEER: ways.peer(tower, idle), "fp32": ways.ours(ways.our_tower(tower), idle)}
    runners["bf16"] = ways.ours(ways.our_tower(tower).to(torch.bfloat16), idle)

    def encode(runner: Any) -> dict[str, float]:
        prompt, began = next(prompts), time.process_time()
        with torch.no_grad():
            runner.encode_prompt(prompt, "cpu", 1, True)
        return {"text": time.process_time() - began}

    jobs = {name: lambda runner=runner: encode(runner) for name, runner in runners.items()}
    seconds = medians(jobs, rounds, bar)
    with torch.no_grad():
        embeds = runners["fp32"].encode_prompt(next(prompts), "cpu", 1, True)
    return {name: row["text"] for name, row in seconds.items()}, embeds


def part_seconds(shape: ways.Shape, rounds: int, embeds: Any, bar: tqdm) -> Seconds:
    """Of UNet calls and decoding."""
    exact = ways.painters(shape, torch.float32)
    runners = {"fp32": ways.ours(None, exact)}
    runners["bf16"] = ways.ours(None, ways.painters(shape, torch.bfloat16))
    peer = ways.peer(None, exact)
    jobs: dict[str, Callable[[], dict[str, float]]] = {PEER: lambda: ways.one_step(peer, shape, embeds)}
    for name, runner in runners.items():
        given = tuple(each.to(PRECISIONS[name]) for each in embeds)
        jobs[name] = lambda runner=runner, given=given: ways.every_kind_of_step(runner, shape, given)
    return medians(jobs, rounds, bar)


def whole_seconds(shape: ways.Shape, bar: tqdm) -> dict[str, float]:
    """Of a picture from its prompt to its pixels, once each way: in bf16 when those in fp32 are drawn."""
    tower, painters = ways.peer_tower(shape, torch.float32), ways.painters(shape, torch.float32)
    runners = {PEER: ways.peer(tower, painters), "fp32": ways.ours(ways.our_tower(tower), painters)}
    took, prompts = {}, ways.words()
    for way, (precision, preset) in WAYS.items():
        if precision == "bf16" and "bf16" not in runners:
            runners = {"bf16": runners["fp32"].to(torch.bfloat16)}  # in place, and the peer's tower goes
            tower = None
            gc.collect()
        runner = runners[PEER if way == PEER else precision]
        named = {} if way == PEER else {"preset": preset}
        bar.set_postfix_str(f"{way}, whole")
        prompt, began = next(prompts), time.process_time()
        runner(prompt, height=shape.pixels, width=shape.pixels, **named)
        took[way] = time.process_time() - began
        bar.update()
    return took


def summed(text: dict[str, float], parts: Seconds) -> list[dict[str, Any]]:
    """A row for each way: what a picture comes to."""
    rows = []
    for way, (precision, name) in WAYS.items():
        preset = PRESETS[name]
        calls = ways.counts(preset, ways.calls_of(preset))
        of = PEER if way == PEER else precision
        unet = sum(number * parts[of][kind] for kind, number in calls.items() if number)
        row = {"text": text[of], "unet": unet, "decode": parts[of][ways.DECODE]}
        rows.append({"way": way, "calls": calls, **row, "sum": sum(row.values())})
    return rows


def measure(shape: str, rounds: int, *, whole: bool) -> dict[str, Any]:
    start, sizes = Start(), ways.SHAPES[shape]
    with tqdm(disable=None, unit="call") as bar:
        text, embeds = text_seconds(sizes, rounds, bar)
        gc.collect()
        parts = part_seconds(sizes, rounds, embeds, bar)
        gc.collect()
        drawn = whole_seconds(sizes, bar) if whole else {}
    peaks = {name: limits.gemm(dtype, torch.device("cpu")) / 1e9 for name, dtype in PRECISIONS.items()}
    flops = ways.guided_flops(sizes)
    shares = {
        name: {"peak": peak, "share": flops / parts[name]["guided"] / 1e9 / peak}
        for name, peak in peaks.items()
    }
    rows = [row | ({"whole": drawn[row["way"]]} if whole else {}) for row in summed(text, parts)]
    made = start.made_with("torch", "diffusers", "transformers")
    report = {"shape": shape, "rounds": rounds, "parts": parts, "rows": rows, "limits": shares}
    return report | {"guided GFLOP": flops / 1e9, "made with": made}


def table(report: dict[str, Any]) -> str:
    lines = [
        "| one part | s, fp32 | s, bf16 | fp32 / bf16 |",
        "|---|---|---|---|",
    ]
    exact, rounded = (report["parts"][name] for name in PRECISIONS)
    for part, seconds in exact.items():
        lines.append(f"| {part} | {seconds:.3f} | {rounded[part]:.3f} | {seconds / rounded[part]:.2f} |")
    peaks = "; ".join(
        f"{name} {limit['peak']:.0f} GFLOP/s, of which a guided call has {limit['share']:.2f}"
        for name, limit in report["limits"].items()
    )
    lines += ["", f"The most that this core multiplies (matrices of 2048 x 2048): {peaks}."]
    lines += [
        "",
        "| way | UNet calls: guided, shallow, unguided, shallow | text | UNet | decode | s a picture "
        "| times as fast | whole, s | times as fast |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    peer = report["rows"][0]
    targets = TARGETS if report["shape"] == "published" else {}
    for row in report["rows"]:
        wanted = f" (wanted: {targets[row['way']]:g})" if row["way"] in targets else ""
        cells = [row["way"], ", ".join(map(str, row["calls"].values()))]
        cells += [f"{row[name]:.2f}" for name in ("text", "unet", "decode", "sum")]
        cells.append(f"{peer['sum'] / row['sum']:.2f}{wanted}")
        drawn = "whole" in row
        cells += [f"{row['whole']:.1f}", f"{peer['whole'] / row['whole']:.2f}"] if drawn else ["", ""]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        origin(report),
    ]
    return "\n".join([*lines, ""])


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--shape", choices=ways.SHAPES, default="published")
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--whole", action="store_true", help="also draw one picture each way")
    arguments = options.parse_args()
    torch.set_num_threads(1)
    report = measure(arguments.shape, arguments.rounds, whole=arguments.whole)
    tell(report, "generate", "generation", table, arguments)


if __name__ == "__main__":
    main()
