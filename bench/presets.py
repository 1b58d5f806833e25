"""What presets cost in pictures and save in time: the bundled model's pictures, judged, on the same seeds.

    python -m bench.presets [--emoji 40] [--languages …] [-o report.json] [--write]

Prompts are plain CLDR names in each language, prompt number n with seed n under every preset. A difference is
of top-1 to `exact`, picture by picture, with the interval of `bench.judge`. Seconds are of CPU time.
"""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from altdiffusion import AltDiffusionPipeline
from altdiffusion.languages import LANGUAGES
from altdiffusion.presets import PRESETS
from bench.judge import Judge, interval
from bench.quality import Prompts, covered, pictures, sample
from bench.report import Start, origin, parser, tell

#: How much less than `exact`, in top-1, a preset may get right.
ALLOWED = {"exact": 0.0, "default": 0.01, "fast": 0.03}


def difference(exact: np.ndarray, other: np.ndarray) -> dict[str, float]:
    """Of hits (languages, emoji): how many more `exact` has, and between which bounds that lies."""
    found = interval(exact.astype(float) - other)
    return {"less": found["mean"], "low": found["low"], "high": found["high"]}


def measure(emoji: int, languages: Sequence[str]) -> dict[str, Any]:
    """The ways take turns, language by language."""
    start, judge, prompts = Start(), Judge(), Prompts()
    pipeline = AltDiffusionPipeline.from_pretrained()
    pipeline.set_progress_bar_config(disable=True)
    chosen = sample(covered(None), emoji)
    ranks: dict[str, list[np.ndarray]] = {name: [] for name in PRESETS}
    seconds = dict.fromkeys(PRESETS, 0.0)
    for tag in tqdm(languages, desc="languages", disable=None):
        texts = [prompts.captions.emoji.names[tag][character] for character in chosen]
        pipeline.embed_prompts(texts)  # remembered, so that no way pays for it
        for name in PRESETS:
            began = time.process_time()
            drawn = pictures(pipeline, texts, name)
            seconds[name] += time.process_time() - began
            ranks[name].append(judge.ranks(drawn, chosen))
    table = {name: np.stack(rows) for name, rows in ranks.items()}
    rows = {
        name: {
            "way": PRESETS[name].in_words(),
            "top1": float((rank == 0).mean()),
            "top5": float((rank < 5).mean()),
            "seconds": seconds[name] / rank.size,
            **difference(table["exact"] == 0, rank == 0),
        }
        for name, rank in table.items()
    }
    made = start.made_with("torch", "diffusers")
    return {"presets": rows, "languages": list(languages), "emoji": emoji, "made with": made}


def table(report: dict[str, Any]) -> str:
    lines = [
        "| preset | what it is | top-1 | top-5 | top-1 below exact (95 % interval; allowed) | s a picture |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in report["presets"].items():
        less = f"{row['less']:+.4f} ({row['low']:+.4f} to {row['high']:+.4f}; {ALLOWED[name]:g})"
        cells = [name, row["way"], f"{row['top1']:.4f}", f"{row['top5']:.4f}", less, f"{row['seconds']:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    pictures = report["emoji"] * len(report["languages"])
    lines += [
        "",
        f"{origin(report)}; {pictures:,} pictures of each, {len(report['languages'])} languages",
    ]
    return "\n".join([*lines, ""])


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--emoji", type=int, default=40, help="emoji per language")
    options.add_argument("--languages", nargs="+", choices=list(LANGUAGES), default=list(LANGUAGES))
    arguments = options.parse_args()
    report = measure(arguments.emoji, arguments.languages)
    tell(report, "presets", "presets", table, arguments)


if __name__ == "__main__":
    main()
