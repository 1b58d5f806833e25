"""What `altdiffusion evaluate` does."""

import json
import platform
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from altdiffusion import __version__, aside, cards
from altdiffusion.images import destination
from altdiffusion.requests import BadRequest, shorten
from altdiffusion.terminal import note

if TYPE_CHECKING:
    from altdiffusion.evaluation.datasets import Found
    from altdiffusion.evaluation.generated_report import GenerationReport
    from altdiffusion.evaluation.reports import Report


def evaluate(
    task: str, *, data: str, languages: Sequence[str], output: str | None, model: str | None, as_json: bool
) -> None:
    """Finds the data, then runs set by set and language by language, then writes the report."""
    root, report_file = Path(data), new_report(output)
    if not root.is_dir():
        raise BadRequest(f"data: {shorten(data)} is no folder; allowed the folder of one or more data sets")
    wanted = [part for tags in languages for part in tags.split(",") if part]
    found = find_data(root, task)
    pairs = _pairs(found, wanted, task)
    from altdiffusion.checkpoints import resolve

    resolve(model)
    from altdiffusion.evaluation.tasks import Features, run
    from altdiffusion.model import AltCLIP

    clip = AltCLIP.from_pretrained(model)
    parts = None if report_file is None else report_file.with_name(f"{report_file.name}.parts")
    features = Features(clip, parts)
    outcomes = []
    for one, tag in pairs:
        note(f"{one.name}, {tag}")
        outcomes.append(run(one, tag, features))
    report = _report(outcomes, task, found, provenance(task, data, wanted, model, clip))
    if report_file is not None:
        write_report(report, report_file)
        shutil.rmtree(report_file.with_name(f"{report_file.name}.parts"))
    text = json.dumps(report.to_dict(), ensure_ascii=False) if as_json else report.to_markdown().rstrip()
    print(text)


def find_data(root: Path, task: str) -> "list[Found]":
    from altdiffusion.evaluation import captioned, datasets, labelled

    kind = {"generation": "retrieval", "retrieval": "retrieval", "zero-shot": "zero-shot"}.get(task)
    found = datasets.find(root, [*captioned.READERS, *labelled.READERS], kind)  # pyright: ignore[reportArgumentType]
    if not found and task == "zero-shot":
        found = datasets.recognised(labelled.plain_tree, root)
    if not found and task != "paper":
        raise BadRequest(
            f"data: nothing for {task} in {shorten(str(root))}; allowed the layouts of docs/evaluation.md"
        )
    return found


def _pairs(found: "list[Found]", wanted: Sequence[str], task: str) -> "list[tuple[Found, str]]":
    """What to run, the languages in the order asked for."""
    spoken = sorted({tag for one in found for tag in one.languages})
    for tag in wanted:
        if tag not in spoken:
            raise BadRequest(f"languages: {shorten(tag)} is not in the data; allowed {', '.join(spoken)}")
    pairs = [(one, tag) for one in found for tag in wanted or one.languages if tag in one.languages]
    if task != "paper":
        return pairs
    from altdiffusion.evaluation.published import rows_for

    pairs = [(one, tag) for one, tag in pairs if rows_for(one.name, tag)]
    if not pairs:
        raise BadRequest(
            "data: no data set that the paper reports on is there; allowed the layouts of docs/evaluation.md"
        )
    return pairs


def _report(outcomes: list, task: str, found: "list[Found]", made: dict) -> "Report":
    from altdiffusion.evaluation.published import OURS, rows, where
    from altdiffusion.evaluation.reports import Report

    missing: dict[str, str] = {}
    if task == "paper":
        here = {(one.name, tag) for one in found for tag in one.languages}
        for row in rows():
            if row.model in OURS and (row.data_set, row.language) not in here:
                missing[f"{row.data_set}, {row.language}"] = where()[row.data_set]
    return Report(tuple(outcomes), made, missing)


def provenance(task: str, data: str, wanted: Sequence[str], model: str | None, clip) -> dict:
    from importlib.metadata import version

    words = ["altdiffusion", "evaluate", task, "--data", data]
    words += ["--languages", *wanted] if wanted else []
    words += ["--model", model] if model else []
    return {
        "command": shlex.join(words),
        "model": cards.name_of(model) if model else "bundled",
        "fingerprint": clip.fingerprint,
        "numbers": f"{clip.dtype} on {clip.device}".removeprefix("torch."),
        "machine": platform.machine(),
        "versions": {
            "altdiffusion": __version__,
            "torch": version("torch"),
            "transformers": version("transformers"),
        },
    }


def new_report(output: str | None) -> Path | None:
    if output is None:
        return None
    file = Path(output)
    if file.suffix not in (".json", ".md"):
        raise BadRequest(f"output: {shorten(output)}; allowed a new name in .json or .md")
    destination(str(file.parent))
    if file.exists():
        raise BadRequest(f"output: {shorten(output)} exists; allowed a new file")
    return file


def write_report(report: "Report | GenerationReport", file: Path) -> None:
    """Aside and renamed: a report that is there is whole."""
    text = report.to_markdown()
    if file.suffix == ".json":
        text = json.dumps(report.to_dict(), ensure_ascii=False, indent=1) + "\n"
    aside.write_text(file, text)
