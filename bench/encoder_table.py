"""The encoder after each stage of its training, in the shape of the AltCLIP paper's tables.

    python -m bench.encoder_table                  some eight minutes on one CPU core
    python -m bench.encoder_table --write          also into docs/results.md

Recall in both directions and MR on held-out scenes, zero-shot top-1 over all emoji names, as bench.quality
measures them. The teacher is measured in English alone: it was shown no other language.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm
from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel

from altdiffusion import AltCLIP
from altdiffusion.checkpoints import fingerprint
from altdiffusion.evaluation.metrics import SIX
from altdiffusion.languages import LANGUAGES
from altdiffusion.runtime import choose_dtype
from bench.quality import measure_retrieval, measure_zero_shot
from bench.report import Start, origin, parser, tell

#: The stage's name, what it is, and whether it was shown English alone.
STAGES = {
    "teacher_more": ("teacher", True),
    "distill_lists": ("teacher learning", False),
    "contrast_lists": ("contrastive learning", False),
    "contrast_names_last": ("fourth round", False),
    "distill_apart_words": ("ninth round", False),
}
RECIPES = Path("training/recipes/emoji")


class Teacher:
    """The English CLIP that the student learns from, which is no AltCLIP."""

    def __init__(self, folder: Path) -> None:
        self.clip = CLIPModel.from_pretrained(folder, dtype=choose_dtype(torch.device("cpu"))).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.processor = CLIPImageProcessorPil.from_pretrained(folder)
        self.dtype = self.clip.dtype

    @property
    def fingerprint(self) -> str:
        return fingerprint([self.clip], [self.tokenizer.backend_tokenizer.to_str()])

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        inputs = self.tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
        return F.normalize(self.clip.get_text_features(**inputs).pooler_output, dim=-1)

    def encode_image(self, images: Sequence[Image.Image]) -> Tensor:
        pixels = self.processor(list(images), return_tensors="pt").pixel_values.to(self.dtype)
        return F.normalize(self.clip.get_image_features(pixels).pooler_output, dim=-1)


def measure(runs: Path, stages: list[str], languages: list[str], scenes: int) -> list[dict]:
    """A row for each stage and language: the six recalls, MR and top-1."""
    measured = []
    for stage in tqdm(stages, desc="stages", disable=None):
        kind, english = STAGES[stage]
        folder = runs / stage / "model"
        clip = Teacher(folder) if english else AltCLIP.from_pretrained(folder, device="cpu")
        spoken = ["en"] if english else languages
        rows = rows_of(clip, scenes, spoken)
        numbers = str(clip.dtype).removeprefix("torch.")
        made = {"recipe": str(RECIPES / f"{stage}.yaml"), "fingerprint": clip.fingerprint, "numbers": numbers}
        measured.append({"stage": stage, "kind": kind, **made, "languages": rows})
    return measured


def rows_of(
    clip: AltCLIP | Teacher, scenes: int, languages: Sequence[str], emoji: int = 0
) -> dict[str, dict[str, float]]:
    """The six recalls, MR and top-1 in each language, of all emoji or of so many."""
    retrieval = measure_retrieval(clip, scenes, languages, emoji)["languages"]
    zero_shot = measure_zero_shot(clip, languages, emoji)["languages"]
    return {tag: {**retrieval[tag], "top1": zero_shot[tag]["top1"]} for tag in languages}


def table(report: dict) -> str:
    """In percent, as the paper prints them; the last column is R@1 to R@10's mean, then the names."""
    titles = [f"{way} R@{k}" for way in ("text to image", "image to text") for k in (1, 5, 10)]
    lines = [
        f"| language | after | {' | '.join(titles)} | MR | zero-shot top-1 |",
        f"|{'---|' * (len(titles) + 4)}",
    ]
    for tag in LANGUAGES:
        for stage in report["stages"]:
            if tag in stage["languages"]:
                row = stage["languages"][tag]
                cells = " | ".join(f"{100 * row[name]:.1f}" for name in (*SIX, "MR", "top1"))
                lines.append(f"| {tag} | {stage['kind']} | {cells} |")
    lines.append("")
    lines += [sentence(stage) for stage in report["stages"]]
    lines.append(f"{origin(report)}; {report['scenes']:,} scenes")
    return "\n".join([*lines, ""])


def sentence(stage: dict) -> str:
    """What the stage's rows come to, and which model it was."""
    rows, parts = stage["languages"], []
    for title, name in (("MR", "MR"), ("top-1", "top1")) if len(rows) > 1 else ():
        values = {tag: row[name] for tag, row in rows.items()}
        mean, worst = sum(values.values()) / len(values), min(values, key=values.__getitem__)
        text = f"{title} mean {100 * mean:.1f}, worst {worst} {100 * values[worst]:.1f}"
        if english := values.get("en"):
            text += f" ({mean / english:.3f} and {values[worst] / english:.3f} of English)"
        parts.append(text)
    parts.append(f"`{stage['recipe']}`, {stage['numbers']}, fingerprint {stage['fingerprint'][:12]}")
    return f"- {stage['kind']}: {'; '.join(parts)}"


def main() -> None:
    options = parser(__doc__)
    options.add_argument(
        "--runs", type=Path, default=Path("runs/emoji"), help="where the stages' folders are"
    )
    options.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    options.add_argument("--languages", nargs="+", choices=list(LANGUAGES), default=list(LANGUAGES))
    options.add_argument("--scenes", type=int, default=1000)
    arguments = options.parse_args()
    start = Start()
    stages = measure(arguments.runs, arguments.stages, arguments.languages, arguments.scenes)
    made = start.made_with("torch", "transformers")
    report = {"scenes": arguments.scenes, "stages": stages, "made with": made}
    tell(report, "encoder_table", "encoder", table, arguments)


if __name__ == "__main__":
    main()
