"""How the time of a picture grows: with its pixels, with the pictures of a batch, with the words of a prompt.

    python -m bench.growth [--shape published|tiny] [--rounds 3] [-o report.json] [--write]

Random models of the published shapes in float32, one thread, seconds of CPU time, medians of rounds after one
that is not counted. The exponent is the slope of a straight line through the points' logarithms: 1 is growth
in proportion. `--write` draws docs/images/growth.png and puts the table into docs/results.md. Needs 6 GB.
"""

import gc
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from altdiffusion.conditioning import MAX_LENGTH, encode_trimmed
from altdiffusion.keys import keys_once
from bench import generate_ways as ways
from bench.encode_ways import captions
from bench.report import RESULTS, Start, origin, parser, tell

PLOT = RESULTS.parent / "images" / "growth.png"
SIDES = {"published": (128, 192, 256, 384, 512), "tiny": (64, 128)}
BATCHES = {"published": (1, 2, 4), "tiny": (1, 2)}
TOKENS = (5, 10, 20, 40, 77)
#: What stands on the axis of each curve.
AXES = {
    "guided UNet call": "pixels",
    "decode": "pixels",
    "guided UNet call of a batch": "pictures",
    "text": "tokens",
    "guided UNet call of a prompt": "tokens",
}
Points = dict[str, dict[int, float]]


def seconds(jobs: dict[tuple[str, int], Callable[[], Any]], rounds: int, bar: tqdm) -> Points:
    """Medians by curve and place on its axis; the jobs take turns."""
    took: dict[tuple[str, int], list[float]] = {key: [] for key in jobs}
    for number in range(rounds + 1):
        for key in jobs if number % 2 else reversed(jobs):
            bar.set_postfix_str(f"{key[0]}, {key[1]}")
            began = time.process_time()
            jobs[key]()
            took[key].append(time.process_time() - began)
            bar.update()
    points: Points = {}
    for (curve, at), times in took.items():
        points.setdefault(curve, {})[at] = statistics.median(times[1:])
    return points


def text_jobs(shape: ways.Shape) -> dict[tuple[str, int], Callable[[], Any]]:
    tower, tokenizer = ways.our_tower(ways.peer_tower(shape, torch.float32)), ways.tokenizer()

    def encode(length: int) -> None:
        with torch.no_grad():
            encode_trimmed(tower, tokenizer, captions([length]))

    return {("text", length): lambda length=length: encode(length) for length in TOKENS}


def picture_jobs(shape: ways.Shape, name: str) -> dict[tuple[str, int], Callable[[], Any]]:
    parts = ways.painters(shape, torch.float32)
    unet, vae = parts["unet"], parts["vae"]

    def call(pictures: int, side: int, words: int = 13) -> None:
        states = torch.randn(2 * pictures, MAX_LENGTH, shape.unet["cross_attention_dim"])
        states[:, words:] = states[:, -1:]
        latents = torch.randn(2 * pictures, 4, side // 8, side // 8)
        with torch.no_grad(), keys_once(unet):
            unet(latents, 500, states)

    def decode(side: int) -> None:
        with torch.no_grad():
            vae.decode(torch.randn(1, 4, side // 8, side // 8))

    jobs: dict[tuple[str, int], Callable[[], Any]] = {}
    for side in SIDES[name]:
        jobs["guided UNet call", side * side] = lambda side=side: call(1, side)
        jobs["decode", side * side] = lambda side=side: decode(side)
    for pictures in BATCHES[name]:
        jobs["guided UNet call of a batch", pictures] = lambda pictures=pictures: call(pictures, shape.pixels)
    for words in TOKENS:
        jobs["guided UNet call of a prompt", words] = lambda words=words: call(1, shape.pixels, words)
    return jobs


def exponent(points: dict[int, float]) -> float:
    at, took = np.log(list(points)), np.log(list(points.values()))
    return float(np.polyfit(at, took, 1)[0])


def measure(shape: str, rounds: int) -> dict[str, Any]:
    start, sizes = Start(), ways.SHAPES[shape]
    with tqdm(disable=None, unit="call") as bar:
        points = seconds(text_jobs(sizes), rounds, bar)
        gc.collect()
        points = seconds(picture_jobs(sizes, shape), rounds, bar) | points
    made = start.made_with("torch", "diffusers", "transformers")
    return {"shape": shape, "rounds": rounds, "points": points, "made with": made}


def table(report: dict[str, Any]) -> str:
    lines = ["| what | against | exponent | from | to |", "|---|---|---|---|---|"]
    for curve, points in report["points"].items():
        ends = [f"{points[at]:.2f} s at {at:,}" for at in (min(points), max(points))]
        lines.append(f"| {curve} | {AXES[curve]} | {exponent(points):.2f} | {' | '.join(ends)} |")
    lines += [
        "",
        origin(report),
    ]
    return "\n".join([*lines, ""])


def plot(report: dict[str, Any], file: Path) -> None:
    """A panel for each axis, both scales logarithmic."""
    from matplotlib.figure import Figure

    axes = list(dict.fromkeys(AXES.values()))
    figure = Figure(figsize=(4 * len(axes), 3.6), layout="constrained")
    panels = figure.subplots(1, len(axes), squeeze=False)[0]
    for panel, axis in zip(panels, axes, strict=True):
        for curve, points in report["points"].items():
            if AXES[curve] == axis:
                label = f"{curve}: exponent {exponent(points):.2f}"
                panel.loglog(list(points), list(points.values()), marker="o", label=label)
        panel.set(xlabel=axis, ylabel="seconds of CPU time")
        panel.grid(visible=True, which="both", alpha=0.3)
        panel.legend(fontsize=7)
    figure.savefig(file, dpi=110)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--shape", choices=ways.SHAPES, default="published")
    options.add_argument("--rounds", type=int, default=3)
    arguments = options.parse_args()
    torch.set_num_threads(1)
    report = measure(arguments.shape, arguments.rounds)
    tell(report, "growth", "growth", table, arguments)


if __name__ == "__main__":
    main()
