"""What `altdiffusion evaluate generation` and `altdiffusion rate` do."""

import contextlib
import importlib.util
import json
import shlex
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from altdiffusion import cards, evaluating
from altdiffusion.languages import LANGUAGES, language
from altdiffusion.requests import BadRequest, shorten
from altdiffusion.terminal import note, progress

if TYPE_CHECKING:
    from altdiffusion.evaluation.generated import Generated, Parallel
    from altdiffusion.evaluation.tasks import Features

_GRID = 8  # pictures of each language in the grid


def evaluate(
    task: str,
    drawing: Mapping[str, str | None],
    *,
    data: str,
    languages: Sequence[str],
    output: str | None,
    model: str | None,
    as_json: bool,
) -> None:
    """Any task of `altdiffusion evaluate`; `drawing` are the flags of generation alone."""
    flags = {name: value for name, value in drawing.items() if value is not None}
    if task == "generation":
        return _generation(flags, data, languages, output, model, as_json)
    for name, value in flags.items():
        raise BadRequest(f"{name}: {shorten(value)} beside {task}; allowed with generation")
    evaluating.evaluate(task, data=data, languages=languages, output=output, model=model, as_json=as_json)


def rate(what: str, paths: Sequence[str], *, output: str | None, pictures: str, as_json: bool) -> None:
    """Makes a page for raters, or says what their files come to."""
    from altdiffusion.evaluation import rating

    if what == "page":
        if len(paths) != 2:
            raise BadRequest(f"paths: {len(paths)} given; allowed two folders of pictures")
        if output is None:
            raise BadRequest("output: missing; allowed a new folder")
        page = rating.make(Path(paths[0]), Path(paths[1]), Path(output), _count(pictures, "pictures", 1))
        print(json.dumps({"page": str(page)}, ensure_ascii=False) if as_json else page)
        return
    if output is not None:
        raise BadRequest(f"output: {shorten(output)} beside results; allowed with page")
    if len(paths) < 2:
        raise BadRequest("paths: allowed the folder that `rate page` made, then the raters' files")
    report = rating.read(Path(paths[0]), [Path(file) for file in paths[1:]])
    print(json.dumps(report.to_dict(), ensure_ascii=False) if as_json else report.to_markdown().rstrip())


def _generation(
    flags: dict[str, str],
    data: str,
    languages: Sequence[str],
    output: str | None,
    model: str | None,
    as_json: bool,
) -> None:
    """Reads and checks all data, then draws, then measures, then writes the report."""
    if not Path(data).is_dir():
        raise BadRequest(f"data: {shorten(data)} is no folder; allowed the folder of one or more data sets")
    file = evaluating.new_report(output)
    count = _count(flags["pictures"], "pictures", 2) if "pictures" in flags else None
    settings = {name: flags[name] for name in ("steps", "guidance_scale") if name in flags}
    if importlib.util.find_spec("torchmetrics") is None:
        raise BadRequest("task: generation needs torchmetrics (pip install torchmetrics)")
    wanted = [part for tags in languages for part in tags.split(",") if part]
    sets = _sets(Path(data), wanted, count)
    from altdiffusion.checkpoints import resolve
    from altdiffusion.evaluation import generated

    work = [[(tag, generated.requests(one, tag, settings)) for tag in one.captions] for one in sets]
    for source in (model, *([flags["encoder"]] if "encoder" in flags else [])):
        resolve(source)
    from altdiffusion.evaluation.generated_report import GenerationReport
    from altdiffusion.evaluation.tasks import Features
    from altdiffusion.model import AltCLIP
    from altdiffusion.pipelines import AltDiffusionPipeline

    pipeline = AltDiffusionPipeline.from_pretrained(model)
    clip = AltCLIP.from_pretrained(flags["encoder"]) if "encoder" in flags else pipeline.altclip
    with _folder(file) as folder:
        parts = None if file is None else file.with_name(f"{file.name}.parts")
        features, outcomes = Features(clip, parts), []
        for one, by_language in zip(sets, work, strict=True):
            outcomes += _measured(pipeline, one, by_language, features, folder / one.name)
        made = _made(flags, data, wanted, model, pipeline, clip)
        report = GenerationReport(tuple(outcomes), made)
    if file is not None:
        evaluating.write_report(report, file)
        shutil.rmtree(file.with_name(f"{file.name}.parts"))
        note(f"pictures in {folder}")
    print(json.dumps(report.to_dict(), ensure_ascii=False) if as_json else report.to_markdown().rstrip())


def _sets(root: Path, wanted: Sequence[str], count: int | None) -> "list[Parallel]":
    """Each data set in the languages asked for, or else in those of its own that models draw from."""
    from altdiffusion.evaluation.datasets import Found
    from altdiffusion.evaluation.generated import parallel

    for tag in wanted:
        language(tag, "languages")
    by_name: dict[str, dict[str, Found]] = {}
    for one in evaluating.find_data(root, "generation"):
        by_name.setdefault(one.name, {}).update(dict.fromkeys(one.languages, one))
    sets = []
    for name, found in by_name.items():
        tags = list(dict.fromkeys(wanted)) or [tag for tag in LANGUAGES if tag in found]
        if tags and all(tag in found for tag in tags):
            sets.append(parallel(found, tags, count))
        elif len(by_name) > 1:
            note(f"{name} is left out: it has {', '.join(sorted(found))}")
    if not sets:
        spoken = "; ".join(f"{name}: {', '.join(sorted(found))}" for name, found in by_name.items())
        raise BadRequest(
            f"languages: no data set has {', '.join(wanted) or 'one that models draw from'}; allowed {spoken}"
        )
    return sets


def _measured(
    pipeline: Any, one: "Parallel", by_language: Sequence[Any], features: "Features", folder: Path
) -> "list[Generated]":
    """Draws all that is not there yet, shows it in a grid, and scores it."""
    from altdiffusion.evaluation import generated
    from altdiffusion.grids import labelled_grid
    from altdiffusion.images import save_png

    drawn, parts = {}, sum(len(requests) for _, requests in by_language)
    with progress(parts) as part:
        for row, (tag, requests) in enumerate(by_language):
            note(f"{one.name}, {tag}")
            first = row * len(requests)
            drawn[tag] = generated.draw(
                pipeline, requests, folder / tag, lambda number, first=first: part(first + number)
            )
    rows = [(language(tag), [picture.open() for picture in some[:_GRID]]) for tag, some in drawn.items()]
    save_png(labelled_grid(rows), folder / "grid.png", overwrite=True)
    return list(generated.scored(one, drawn, features))


@contextlib.contextmanager
def _folder(file: Path | None) -> Iterator[Path]:
    """Where pictures are kept: beside the report; without one they go when they are measured."""
    if file is not None:
        yield file.with_suffix(".pictures")
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def _made(
    flags: dict[str, str], data: str, wanted: Sequence[str], model: str | None, pipeline: Any, clip: Any
) -> dict[str, Any]:
    made = evaluating.provenance("generation", data, wanted, model, clip)
    words = [word for name, value in flags.items() for word in (f"--{name.replace('_', '-')}", value)]
    encoder, defaults = flags.get("encoder"), pipeline.generation_defaults
    more = {name: version(name) for name in ("diffusers", "torchmetrics")}
    return made | {
        "command": " ".join([made["command"], *([shlex.join(words)] if words else [])]),
        "fingerprint": pipeline.fingerprint,
        "encoder": cards.name_of(encoder) if encoder else "the model's own",
        "encoder's fingerprint": clip.fingerprint,
        "seeds": "the number of the picture, from 0, in every language",
        "steps": flags.get("steps", str(defaults.steps)),
        "guidance scale": flags.get("guidance_scale", str(defaults.guidance_scale)),
        "scheduler": defaults.scheduler or type(pipeline.scheduler).__name__,
        "size": f"{defaults.width}x{defaults.height}",
        "versions": made["versions"] | more,
    }


def _count(text: str, argument: str, least: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) >= least):
        raise BadRequest(f"{argument}: {shorten(text)}; allowed a whole number from {least}")
    return int(text)
