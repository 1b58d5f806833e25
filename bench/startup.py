"""Times whole processes, from nothing to a saved picture: ours, diffusers' and their imports alone.

    python -m bench.startup [--rounds 5] [--threads 1] [-o report.json] [--write]

The bundled model: `altdiffusion generate` by its preset `default`, and by `exact`, which draws what a script
with plain diffusers draws on the same weights. The processes take turns, in an order that is reversed each
round, after one round that is not counted and leaves all files in memory. Figures are medians: seconds of CPU
time, of the process and the system, and seconds by the clock, which other work on the machine lengthens. Then
one picture alone, by the clock, in a process that has drawn before.
"""

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from altdiffusion import bundled
from bench.report import Start, origin, parser, tell
from bench.turns import take_turns

PROMPT, SEED = "a lobster", 7
IMPORTS = "import torch; from diffusers import StableDiffusionPipeline"
STOCK = f"""
import sys, torch
from diffusers import StableDiffusionPipeline
folder, picture, steps, scale = sys.argv[1:]
pipeline = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
drawn = pipeline({PROMPT!r}, num_inference_steps=int(steps), guidance_scale=float(scale),
                 generator=torch.manual_seed({SEED}))
drawn.images[0].save(picture)
"""
SAMPLING = f"""
import time
from altdiffusion import AltDiffusionPipeline
from altdiffusion.generation import generate
from altdiffusion.requests import GenerateRequest
from altdiffusion.runtime import limit_threads
pipeline = AltDiffusionPipeline.from_pretrained()
limit_threads(pipeline.unet)
for seed in range(6):
    began = time.perf_counter()
    generate(pipeline, GenerateRequest.build(prompt={PROMPT!r} + " " * seed, seed=seed, preset="default"))
    print(time.perf_counter() - began)
"""
#: What the design asks for: at most the imports and so many seconds, and so much of diffusers' own script.
MORE_THAN_IMPORTS, OF_STOCK = 3.0, 0.9
#: And of one picture alone, by the clock.
ALONE = 1.5


def commands(folder: Path) -> dict[str, list[str]]:
    """What is timed; ours is last."""
    defaults = bundled.card()["defaults"]
    numbers = [str(defaults["steps"]), str(defaults["guidance_scale"])]
    ours = [sys.executable, "-m", "altdiffusion", "generate", PROMPT, "--seed", str(SEED), "-o", str(folder)]
    return {
        "import torch and StableDiffusionPipeline": [sys.executable, "-c", IMPORTS],
        "script with diffusers": [
            sys.executable, "-c", STOCK, str(bundled.FOLDER), str(folder / "stock.png"), *numbers,
        ],
        "altdiffusion --help": [sys.executable, "-m", "altdiffusion", "--help"],
        "altdiffusion generate --preset exact": [*ours, "--preset", "exact"],
        "altdiffusion generate": ours,
    }  # fmt: skip


def measure(rounds: int, threads: int) -> dict[str, Any]:
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    start = Start()

    def process(command: list[str]) -> tuple[float, float]:
        before, began = _children(), time.perf_counter()
        subprocess.run(command, env=environment, capture_output=True, check=True)
        return _children() - before, time.perf_counter() - began

    with tempfile.TemporaryDirectory() as folder, tqdm(disable=None, unit="process") as bar:
        calls = {name: partial(process, command) for name, command in commands(Path(folder)).items()}
        took = take_turns(calls, rounds, bar)
        assert list(Path(folder).glob("a-lobster*.png")), "nothing was drawn"
    rows = [
        {"way": name, "cpu_s": _median(took[name], 0), "wall_s": _median(took[name], 1)} for name in calls
    ]
    alone = subprocess.run(
        [sys.executable, "-c", SAMPLING], env=environment, capture_output=True, check=True, text=True
    )
    made = start.made_with("torch", "diffusers", "transformers", threads=threads)
    pictures = [float(line) for line in alone.stdout.split()]
    return {"rounds": rounds, "rows": rows, "alone": statistics.median(pictures[1:]), "made with": made}


def _median(took: list[tuple[float, float]], which: int) -> float:
    return round(statistics.median(pair[which] for pair in took), 3)


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def table(report: dict[str, Any]) -> str:
    seconds = {row["way"]: row for row in report["rows"]}
    imports, stock, _, exact, ours = (row["cpu_s"] for row in report["rows"])
    lines = ["| process | CPU s | s by the clock | CPU of ours |", "|---|---|---|---|"]
    lines += [
        f"| {name} | {row['cpu_s']:.2f} | {row['wall_s']:.2f} | {row['cpu_s'] / ours:.2f} |"
        for name, row in seconds.items()
    ]
    lines += [
        "",
        f"- ours is {ours - imports:+.2f} s from the imports alone (wanted: at most {MORE_THAN_IMPORTS:+g}) "
        f"and {ours / stock:.2f} of diffusers' script (wanted: at most {OF_STOCK:g}), "
        f"{exact / stock:.2f} with as many steps",
        f"- one picture alone, in a process that has drawn before: {report['alone']:.2f} s by the clock "
        f"(wanted: at most {ALONE:g})",
        origin(report),
    ]
    return "\n".join([*lines, ""])


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--threads", type=int, default=1, help="of each process: OMP_NUM_THREADS")
    arguments = options.parse_args()
    report = measure(arguments.rounds, arguments.threads)
    tell(report, "startup", "start-up", table, arguments)


if __name__ == "__main__":
    main()
