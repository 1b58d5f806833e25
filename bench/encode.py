"""Times encoding on random models of the published shapes, the peers' way and ours.

    python -m bench.encode [--shape published|tiny] [--jobs …] [--rounds 5] [-o report.json] [--write]

XLM-R-large and ViT-L/14; one thread. What the ways are: `bench/encode_ways.py`. The ways of a job take turns
in one process, in an order that is reversed each round, after one call that is not counted; a figure is the
median of the rounds, in seconds of CPU time, which leaves out waiting for other work on the machine.

How far a way is from the first, the peers' in float32: the least cosine of a pair, and the error of the
vectors less their mean, relative to their length, since vectors of random weights all lie close together.
Preprocessing: the greatest difference in steps of 255. The texts need 4 GB of free memory.
"""

import gc
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm
from transformers import CLIPImageProcessorPil

from altdiffusion.preprocessing import normalized
from bench import limits
from bench.encode_ways import SHAPES, Shape, Way, jobs
from bench.limits import PRECISIONS
from bench.report import Start, origin, parser, tell
from bench.turns import median_seconds

#: What the design asks for: how many times as fast as this way ours is.
TARGETS = {
    ("texts", "padded to 77, fp32"): 9.0,
    ("texts", "padding=True, fp32"): 2.3,
    ("one prompt", "padded to 77, fp32"): 5.0,
    ("pictures", "transformers, fp32"): 1.7,
    ("preprocessing, 640 x 480", "transformers"): 1.4,
    ("preprocessing, 2048 x 1536", "transformers"): 1.4,
}
#: And how much of what the machine can do at most.
SHARES = {("texts", "ours, bf16"): 0.67}


def apart(found: Tensor, expected: Tensor) -> dict[str, float]:
    """Of vectors."""
    found, expected = found.double(), expected.double()
    figures = {"cosine": F.cosine_similarity(found, expected).min().item()}
    if len(expected) > 1:
        centred = expected - expected.mean(dim=0)
        figures["error"] = ((found - found.mean(dim=0) - centred).norm() / centred.norm()).item()
    return figures


def steps_apart(found: Tensor, expected: Tensor) -> dict[str, float]:
    """Of pixels, in whole steps of 255 of a picture's values."""
    processor = CLIPImageProcessorPil()
    values = normalized(processor, found) if found.dtype == torch.uint8 else found
    deviation = torch.tensor(processor.image_std)[:, None, None]
    return {"steps": ((values - expected) * deviation * 255).abs().max().item()}


def share_of_peak(way: str, call: Way, seconds: float) -> dict[str, float]:
    """Operations a second, as a share of the most that this machine does, measured now.

    A packed batch counts none for padding.
    """
    precision = way.rpartition(", ")[2]
    with FlopCounterMode(display=False) as counter:
        call()
    peak = limits.gemm(PRECISIONS[precision], torch.device("cpu"))
    return {"share": counter.get_total_flops() / seconds / peak}


def measure_job(shape: Shape, job: str, rounds: int, bar: tqdm) -> list[dict[str, Any]]:
    count, build = jobs(shape)[job]
    ways = build()
    made: dict[str, Tensor] = {}
    calls = {name: lambda name=name: made.update({name: ways[name]()}) for name in ways}
    seconds = median_seconds(calls, rounds, bar)
    expected = made[next(iter(ways))]
    encodes = not job.startswith("preprocessing")
    measure = apart if encodes else steps_apart
    return [
        {"job": job, "way": name, "count": count, "seconds": seconds[name], **measure(made[name], expected)}
        | (share_of_peak(name, ways[name], seconds[name]) if encodes and name.startswith("ours") else {})
        for name in ways
    ]


def measure(shape: str, names: list[str], rounds: int) -> dict[str, Any]:
    """The report: a row for each way of each job."""
    start, rows = Start(), []
    with tqdm(disable=None, unit="call") as bar:
        for name in names:
            rows += measure_job(SHAPES[shape], name, rounds, bar)
            gc.collect()
    made = start.made_with("torch", "transformers")
    return {"shape": shape, "rounds": rounds, "rows": rows, "made with": made}


def table(report: dict[str, Any]) -> str:
    lines = [
        "| job | way | s a call | a second | times ours | cosine | centred error | of 255 | of the peak |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    ours = {row["job"]: row["seconds"] for row in report["rows"]}  # the last of each job
    targets = TARGETS if report["shape"] == "published" else {}
    for row in report["rows"]:
        ratio = row["seconds"] / ours[row["job"]]
        target = targets.get((row["job"], row["way"]))
        wanted = "" if target is None else f" (wanted: {target:g})"
        cells = [row["job"], row["way"], f"{row['seconds']:.3f}", f"{row['count'] / row['seconds']:.2f}"]
        cells += [f"{ratio:.2f}{wanted}"]
        cells += [
            f"{row[name]:.{digits}f}" if name in row else ""
            for name, digits in (("cosine", 6), ("error", 4), ("steps", 1), ("share", 2))
        ]
        if (share := SHARES.get((row["job"], row["way"]))) and targets:
            cells[-1] += f" (wanted: {share:g})"
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", origin(report), ""])


def main() -> None:
    names = list(jobs(SHAPES["tiny"]))
    options = parser(__doc__)
    options.add_argument("--shape", choices=SHAPES, default="published")
    options.add_argument("--jobs", nargs="+", choices=names, default=names)
    options.add_argument("--rounds", type=int, default=5)
    arguments = options.parse_args()
    torch.set_num_threads(1)
    report = measure(arguments.shape, arguments.jobs, arguments.rounds)
    tell(report, "encode", "encoding", table, arguments)


if __name__ == "__main__":
    main()
