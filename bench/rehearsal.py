"""The papers' claims in a world of 136 emoji: what the stages of training/recipes/rehearsal are worth.

    bash training/recipes/rehearsal/run.sh        trains and measures; or make rehearse
    python -m bench.rehearsal [ROW…]              measures the stages that are there, and prints the tables
    python -m bench.rehearsal --write             also into docs/results.md

Pictures: all emoji in each language by their plain CLDR names, as bench.quality draws and judges them, in 10
steps; of fewer, two that one seed learns and another does not weigh as much as what two ways differ by.
Towers: bench.quality's retrieval and zero-shot classification. Each row is kept in RUNS/measured as soon as
it is measured, its ranks or recalls with how the stage was trained, and measured again only where the stage
or what is asked of it is another. The tables are of all rows that were asked the same.
"""

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from altdiffusion import AltCLIP, aside
from altdiffusion.bundled import MANIFEST
from altdiffusion.languages import LANGUAGES
from bench.encoder_table import Teacher, rows_of
from bench.judge import Judge
from bench.quality import Prompts, covered, drawing, pictures, sample
from bench.rehearsal_table import tables
from bench.report import Start, parser, tell
from training.checkpoints import MANIFEST as CHECKPOINT
from training.emoji import centred

#: Guidance of the rows that have one: the bundled model's.
GUIDANCE = 3.0
#: Rows that draw, by the stage's folder; `_guided` is the same stage under guidance.
DRAWING = (
    "english_unet",
    "swap",
    "kv",
    "kv_second",
    "kv_mapped",
    "cross_attention",
    "lora",
    "adapter",
    "quality",
    "quality_second",
    "quality_guided",
    "guidance",
    "guidance_guided",
)
TOWERS = (
    "teacher",
    "student_english",
    "student_parallel",
    "student_both",
    "contrast",
    "student_both_second",
    "contrast_second",
)
#: Emoji of the small world, which the stages of its recipes learn.
WORLD = 136
#: What draws the emoji that all rows are asked for, and what a LoRA lies beside.
FIRST, UNDER_LORA = "english_unet", "swap"


@dataclass(frozen=True)
class Asked:
    """What a row is measured on."""

    emoji: int
    steps: int
    scenes: int
    languages: tuple[str, ...]

    def of(self, row: str) -> dict[str, Any]:
        towers = {"scenes": self.scenes, "world": WORLD}
        size = towers if row in TOWERS else {"emoji": self.emoji, "steps": self.steps}
        return {
            "languages": ["en"] if row == "teacher" else list(self.languages),
            "guidance": GUIDANCE if row.endswith("_guided") else 1.0,
            **size,
        }


def models_of(row: str, runs: Path) -> list[Path]:
    """The folders that a row needs: the stage's, and what it is told by or lies beside."""
    stages = [row.removesuffix("_guided")]
    stages += [FIRST] if row in DRAWING and row != FIRST else []
    stages += [UNDER_LORA] if row == "lora" else []
    return [runs / stage / "model" for stage in stages]


def missing(row: str, runs: Path) -> list[str]:
    """The stages that a row waits for. The manifest is what a stage writes last."""
    return [model.parent.name for model in models_of(row, runs) if not (model / MANIFEST).is_file()]


def training_of(folder: Path) -> dict[str, Any]:
    """Steps, samples, seconds and memory by the stage's own metrics, what was trained, and the bytes of its
    file: a UNet's, or the LoRA's or net's beside it."""
    metrics = folder / "metrics.jsonl"
    lines = [json.loads(line) for line in metrics.read_text().splitlines()] if metrics.is_file() else []
    last = lines[-1] if lines else {"step": 0, "samples": 0, "seconds": 0.0, "memory_gb": 0.0}
    checkpoints = sorted(folder.glob(f"checkpoint-*/{CHECKPOINT}"))
    about = json.loads(checkpoints[-1].read_text())["about"] if lines and checkpoints else {}
    model = folder / "model"
    parts = [part for part in (model / "adapter", model / "unet", model) if part.is_dir()]
    return {
        "steps": last["step"],
        "samples": last["samples"],
        "seconds": last["seconds"],
        "memory_gb": max((line["memory_gb"] for line in lines), default=0.0),
        "parameters": about.get("trained numbers", 0),
        "bytes": sum(file.stat().st_size for file in parts[0].glob("*.safetensors")),
    }


def draw(row: str, runs: Path, judge: Judge, asked: Asked) -> dict[str, Any]:
    """Ranks of the wanted emoji in each language; `seen` is whether training showed the name."""
    stage, prompts = runs / row.removesuffix("_guided") / "model", Prompts()
    pipeline = drawing(runs / UNDER_LORA / "model", stage) if row == "lora" else drawing(stage)
    guidance = GUIDANCE if row.endswith("_guided") else 1.0
    chosen = sample(covered(runs / FIRST / "model"), asked.emoji)
    ranks, seen = {}, {}
    for tag in tqdm(asked.languages, desc=row, disable=None):
        texts = [prompts.captions.emoji.names[tag][character] for character in chosen]
        drawn = pictures(pipeline, texts, num_inference_steps=asked.steps, guidance_scale=guidance)
        ranks[tag] = judge.ranks(drawn, chosen).tolist()
        seen[tag] = [prompts.seen(tag, centred(character)) for character in chosen]
    return {"characters": "".join(chosen), "ranks": ranks, "seen": seen}


def encode(row: str, runs: Path, asked: Asked) -> dict[str, Any]:
    """Recalls, MR and zero-shot top-1 in each language; of the teacher in English alone."""
    folder = runs / row / "model"
    if row == "teacher":
        return {"towers": rows_of(Teacher(folder), asked.scenes, ["en"], WORLD)}
    clip = AltCLIP.from_pretrained(folder, device="cpu")
    return {"towers": rows_of(clip, asked.scenes, asked.languages, WORLD)}


def measure(rows: Sequence[str], runs: Path, asked: Asked) -> None:
    """Measures the rows whose stages are there and that are not kept; the others are named."""
    judge = None
    for row in rows:
        if waits := missing(row, runs):
            print(f"{row}: not measured, as {' and '.join(waits)} is not there", file=sys.stderr)
            continue
        start, file = Start(), file_of(row, runs)
        manifests = b"".join((model / MANIFEST).read_bytes() for model in models_of(row, runs))
        known = {"asked": asked.of(row), "models": hashlib.sha256(manifests).hexdigest()}
        if known.items() <= kept(file).items():
            continue
        judge = judge or Judge()
        figures = encode(row, runs, asked) if row in TOWERS else draw(row, runs, judge, asked)
        made = start.made_with("torch", "diffusers", "transformers")
        trained = training_of(runs / row.removesuffix("_guided"))
        file.parent.mkdir(parents=True, exist_ok=True)
        found = {**known, "trained": trained, **figures, "made with": made}
        aside.write_text(file, json.dumps(found, ensure_ascii=False) + "\n")


def file_of(row: str, runs: Path) -> Path:
    return runs / "measured" / f"{row}.json"


def kept(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def report_of(runs: Path, asked: Asked) -> dict[str, Any]:
    """All rows that were asked the same, in their order, and how they were made together."""
    found = {row: kept(file_of(row, runs)) for row in (*DRAWING, *TOWERS)}
    rows = {name: row for name, row in found.items() if row.get("asked") == asked.of(name)}
    made = [row["made with"] for row in rows.values()]
    together = {
        name: ", ".join(dict.fromkeys(str(one[name]) for one in made)) for one in made for name in one
    }
    together["minutes"] = f"{sum(one['minutes'] for one in made):.0f}"
    return {"rows": rows, "made with": together}


def main() -> int:
    options = parser(__doc__)
    options.add_argument("rows", nargs="*", choices=[*DRAWING, *TOWERS, []], default=[], metavar="ROW")
    options.add_argument(
        "--runs", type=Path, default=Path("runs/rehearsal"), help="where the stages' folders are"
    )
    options.add_argument("--languages", nargs="+", choices=list(LANGUAGES), default=list(LANGUAGES))
    options.add_argument("--emoji", type=int, default=WORLD, help="emoji per language")
    options.add_argument("--steps", type=int, default=10, help="steps of a picture")
    options.add_argument("--scenes", type=int, default=1000, help="scenes of retrieval")
    arguments = options.parse_args()
    languages = tuple(dict.fromkeys(("en", *arguments.languages)))
    asked = Asked(arguments.emoji, arguments.steps, arguments.scenes, languages)
    measure(arguments.rows or (*DRAWING, *TOWERS), arguments.runs, asked)
    report = report_of(arguments.runs, asked)
    if not report["rows"]:
        print(f"runs: {arguments.runs} holds no measured stage; allowed: what run.sh left", file=sys.stderr)
        return 2
    tell(report, "rehearsal", "rehearsal", tables, arguments)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
