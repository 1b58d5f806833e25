"""How time grows: of a picture with pixels, batch and prompt, of a text with words, of a search with rows.

    python -m bench.growth [--parts text pictures index] [--rounds 3] [-o report.json] [--write]

Random models of the published shapes in float32, and indexes of emoji; one thread, seconds of CPU
time, medians of rounds after one that is not counted. The exponent is the slope of a straight line through
the points' logarithms: 1 is growth in proportion. What the report in FILE holds of other parts is kept.
`--write` draws docs/images/growth.png and puts the table into docs/results.md. Needs 6 GB.
"""

import gc
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from altdiffusion.conditioning import MAX_LENGTH, encode_trimmed
from altdiffusion.keys import keys_once
from altdiffusion.retrieval.queries import Frame, Part
from altdiffusion.retrieval.where import ANYWHERE
from bench import generate_ways as ways
from bench.encode_ways import captions
from bench.report import RESULTS, Start, origin, parser, tell
from bench.search import EXACT, clusters, emoji, store
from bench.turns import median_seconds

PLOT = RESULTS.parent / "images" / "growth.png"
SIDES = {"published": (128, 192, 256, 384, 512), "tiny": (64, 128)}
BATCHES = {"published": (1, 2, 4), "tiny": (1, 2)}
TOKENS = (5, 10, 20, 40, 77)
#: Up to 100,000 all vectors are compared, beyond those that a graph leads to.
ROWS = {"published": (12_500, 25_000, 50_000, 100_000, 200_000, 400_000), "tiny": (100, 200)}
PARTS = ("text", "pictures", "index")
#: What stands on the axis of each curve.
AXES = {
    "guided UNet call": "pixels",
    "decode": "pixels",
    "guided UNet call of a batch": "pictures",
    "text": "tokens",
    "guided UNet call of a prompt": "tokens",
    "20 searches of all vectors": "vectors",
    "20 searches by a graph": "vectors",
}
Points = dict[str, dict[int, float]]


def seconds(jobs: dict[tuple[str, int], Callable[[], Any]], rounds: int, bar: tqdm) -> Points:
    """Medians by curve and place on its axis; the jobs take turns."""
    points: Points = {}
    for (curve, at), median in median_seconds(jobs, rounds, bar).items():
        points.setdefault(curve, {})[at] = median
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


def index_jobs(shape: str, scratch: Path) -> dict[tuple[str, int], Callable[[], Any]]:
    jobs: dict[tuple[str, int], Callable[[], Any]] = {}
    for rows in ROWS[shape]:
        images, texts = (clusters if shape == "tiny" else emoji)(rows, 20)
        frame = Frame(images[:: max(1, rows // 128)].mean(axis=0), texts.mean(axis=0))
        whole = rows <= EXACT
        engine, _ = store(scratch / str(rows), images, frame, signs=not whole)
        queries = [frame.query([Part(text, text)]).vector for text in texts]
        curve = "20 searches of all vectors" if whole else "20 searches by a graph"
        jobs[curve, rows] = lambda engine=engine, queries=queries: [
            engine.search(query, 10, ANYWHERE) for query in queries
        ]
    return jobs


def exponent(points: dict[int, float]) -> float:
    at, took = np.log(list(points)), np.log(list(points.values()))
    return float(np.polyfit(at, took, 1)[0])


def points_of(file: Path | None, shape: str) -> Points:
    """Of an earlier report of the same shape, if there is one."""
    earlier = json.loads(file.read_text(encoding="utf-8")) if file and file.is_file() else {}
    if earlier.get("shape") != shape:
        return {}
    return {curve: {int(at): took for at, took in row.items()} for curve, row in earlier["points"].items()}


def measure(
    shape: str, rounds: int, parts: Sequence[str] = PARTS, kept: Points | None = None
) -> dict[str, Any]:
    """`kept` are points that were measured before."""
    start, sizes, points = Start(), ways.SHAPES[shape], dict(kept or {})
    with tqdm(disable=None, unit="call") as bar, tempfile.TemporaryDirectory() as scratch:
        jobs = {
            "text": lambda: text_jobs(sizes),
            "pictures": lambda: picture_jobs(sizes, shape),
            "index": lambda: index_jobs(shape, Path(scratch)),
        }
        for part in parts:
            points |= seconds(jobs[part](), rounds, bar)
            gc.collect()
    points = {curve: points[curve] for curve in AXES if curve in points}
    made = start.made_with("torch", "diffusers", "transformers")
    return {"shape": shape, "rounds": rounds, "points": points, "made with": made}


def table(report: dict[str, Any]) -> str:
    lines = ["| what | against | exponent | from | to |", "|---|---|---|---|---|"]
    for curve, points in report["points"].items():
        ends = [f"{points[at]:.3g} s at {at:,}" for at in (min(points), max(points))]
        lines.append(f"| {curve} | {AXES[curve]} | {exponent(points):.2f} | {' | '.join(ends)} |")
    return "\n".join([*lines, "", origin(report), ""])


def plot(report: dict[str, Any], file: Path) -> None:
    """A panel for each axis, both scales logarithmic."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axes = list(dict.fromkeys(AXES[curve] for curve in report["points"]))
    figure = Figure(figsize=(4 * len(axes), 3.6), layout="constrained")
    panels = figure.subplots(1, len(axes), squeeze=False)[0]
    for panel, axis in zip(panels, axes, strict=True):
        shown = {curve: points for curve, points in report["points"].items() if AXES[curve] == axis}
        ticks = sorted({at for points in shown.values() for at in points})
        for curve, points in shown.items():
            label = f"{curve}: exponent {exponent(points):.2f}"
            panel.loglog(list(points), list(points.values()), marker="o", label=label)
        panel.set(xlabel=axis, ylabel="seconds of CPU time")
        panel.xaxis.set_major_locator(FixedLocator(ticks))
        panel.xaxis.set_minor_locator(NullLocator())
        panel.xaxis.set_major_formatter(FuncFormatter(lambda at, _: f"{at:,.0f}"))
        panel.tick_params(axis="x", rotation=45)
        panel.grid(visible=True, which="both", alpha=0.3)
        panel.legend(fontsize=7)
    figure.savefig(file, dpi=110)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--shape", choices=ways.SHAPES, default="published")
    options.add_argument("--parts", nargs="*", choices=PARTS, default=list(PARTS))
    options.add_argument("--rounds", type=int, default=3)
    arguments = options.parse_args()
    torch.set_num_threads(1)
    kept = points_of(arguments.output, arguments.shape)
    report = measure(arguments.shape, arguments.rounds, arguments.parts, kept)
    tell(report, "growth", "growth", table, arguments)
    if arguments.write:
        plot(report, PLOT)


if __name__ == "__main__":
    main()
