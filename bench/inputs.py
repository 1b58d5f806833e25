"""What becomes of bad inputs here and in diffusers and transformers: the cases of tests/reliability, by hand.

    python -m bench.inputs [-o report.json] [--write]

Each case runs in a process of its own, for 10 s and 3 GB of address space at most; a picture that takes over
1 s of CPU or 300 MB is over the limits too. "by name" is lenient: the error says the argument's name, or the
file's, anywhere. Only arguments that the peer has are counted, and misspelt ones, on tiny random weights.
"""

import inspect
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from PIL import Image
from transformers import AltCLIPProcessor, CLIPImageProcessorPil

from altdiffusion import AltDiffusionPipeline
from altdiffusion.checkpoints import quiet
from altdiffusion.images import open_image
from altdiffusion.preprocessing import normalized, whole_pixels
from bench import generate_ways as ways
from bench.report import Start, origin, parser, tell
from tests.fakes import tiny_pipeline_folder, tiny_tokenizer, tiny_unet, tiny_vae
from tests.reliability.apart import Ended, apart
from tests.reliability.malformed import FILES
from tests.reliability.test_arguments import LATE, REFUSED, RIGHT, draw, picture_fault

SECONDS, MEMORY = 10, 3 << 30
PICTURE_SECONDS, PICTURE_MEMORY = 1.0, 300 << 20
COLUMNS = ("right", "refused by name", "refused otherwise", "accepted nonsense", "over the limits")
OVER = ("Timeout", "Killed", "MemoryError", "OutOfMemoryError")
Endings = Counter[str]


def refused(ended: Ended, name: str) -> str:
    memory = "allocate memory" in (ended.error or "")
    if ended.kind in OVER or memory:
        return "over the limits"
    return "refused by name" if name in (ended.error or "") else "refused otherwise"


def pipelines(folder: Path) -> Iterator[tuple[str, Any]]:
    """Ours and diffusers' on the same weights, and diffusers' for AltDiffusion, on others of these shapes."""
    with quiet():
        yield "this project", AltDiffusionPipeline.from_pretrained(folder, device="cpu")
        yield "diffusers StableDiffusionPipeline", DiffusionPipeline.from_pretrained(str(folder))
        tower = ways.peer_tower(ways.SHAPES["tiny"], torch.float32)
        yield "diffusers AltDiffusionPipeline", ways.peer(tower, {"unet": tiny_unet(), "vae": tiny_vae()})


def arguments_of(pipeline: Any) -> Endings:
    stock = StableDiffusionPipeline if isinstance(pipeline, StableDiffusionPipeline) else type(pipeline)
    known = inspect.signature(stock.__call__).parameters
    misspelt = {"widht", "negative_prompts"}
    endings: Endings = Counter()
    cases = [
        *((name, given, True) for name, given in REFUSED + LATE),
        *(("", given, False) for given in RIGHT),
    ]
    for name, given, bad in cases:
        if not set(given) <= set(known) | misspelt or "preset" in given:
            continue
        asked = {"prompt": "a"} | given
        ended = apart(
            lambda given=given, asked=asked: picture_fault(draw(pipeline, given), asked),
            seconds=SECONDS,
            memory=MEMORY,
        )
        if ended.error is not None:
            endings[refused(ended, name or "nothing")] += 1
        else:
            endings["accepted nonsense" if bad or ended.result else "right"] += 1
    return endings


def pictures_of(shape: Callable[[Path], torch.Tensor], folder: Path) -> Endings:
    endings: Endings = Counter()
    for number, (make, _) in enumerate(FILES.values()):
        file = folder / f"holiday-{number}.png"
        file.write_bytes(make())
        ended = apart(lambda file=file: bool(shape(file).isfinite().all()), seconds=SECONDS, memory=MEMORY)
        if ended.seconds > PICTURE_SECONDS or ended.grown > PICTURE_MEMORY:
            endings["over the limits"] += 1
        elif ended.error is not None:
            endings[refused(ended, file.name)] += 1
        else:
            endings["right" if ended.result else "accepted nonsense"] += 1
    return endings


def measure() -> dict[str, Any]:
    warnings.simplefilter("ignore")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for name, pipeline in pipelines(tiny_pipeline_folder(Path(scratch) / "tiny")):
            pipeline.set_progress_bar_config(disable=True)
            rows.append({"inputs": "arguments of a pipeline", "program": name, **arguments_of(pipeline)})
        processor = CLIPImageProcessorPil()
        peer = AltCLIPProcessor(processor, tiny_tokenizer())
        shapes: dict[str, Callable[[Path], torch.Tensor]] = {
            "this project": lambda file: normalized(processor, whole_pixels(processor, [open_image(file)])),
            "transformers AltCLIPProcessor": lambda file: (
                peer(images=Image.open(file), return_tensors="pt").pixel_values
            ),
        }
        for name, shape in shapes.items():
            endings = pictures_of(shape, Path(scratch))
            rows.append({"inputs": "malformed picture files", "program": name, **endings})
    return {"rows": rows}


def table(report: dict[str, Any]) -> str:
    lines = [
        f"| inputs | program | tried | {' | '.join(COLUMNS)} |",
        f"|---|---|---|{'---|' * len(COLUMNS)}",
    ]
    for row in report["rows"]:
        counts = [row.get(column, 0) for column in COLUMNS]
        lines.append(
            f"| {row['inputs']} | {row['program']} | {sum(counts)} | {' | '.join(map(str, counts))} |"
        )
    return "\n".join([*lines, "", origin(report), ""])


def main() -> None:
    arguments = parser(__doc__).parse_args()
    start = Start()
    report = measure()
    report["made with"] = start.made_with("torch", "diffusers", "transformers", "pillow")
    tell(report, "inputs", "inputs", table, arguments)


if __name__ == "__main__":
    main()
