"""Reports: outcomes with their summary over languages and the published rows, as JSON and as Markdown."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from altdiffusion.evaluation.metrics import SIX
from altdiffusion.evaluation.published import rows_for
from altdiffusion.evaluation.tasks import Outcome

#: The figure that stands for a task.
MAIN = {"retrieval": "MR", "zero-shot": "top1"}
_COLUMNS = {"retrieval": (*SIX, "MR"), "zero-shot": ("top1", "top5", "mean per class")}


@dataclass(frozen=True)
class Summary:
    """A data set's main figure over its languages; the ratios are to English, where that was measured."""

    data_set: str
    figure: str
    languages: int
    mean: float
    worst: str
    worst_value: float
    mean_by_english: float | None
    worst_by_english: float | None


@dataclass(frozen=True)
class Report:
    """Outcomes, how they came about (`made`), and for `paper` the data that was not there."""

    outcomes: tuple[Outcome, ...]
    made: dict[str, Any]
    missing: dict[str, str] = dataclasses.field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        results = [
            {
                **dataclasses.asdict(one),
                "published": [dataclasses.asdict(row) for row in rows_for(one.data_set, one.language)],
            }
            for one in self.outcomes
        ]
        return {
            "results": results,
            "summary": [dataclasses.asdict(one) for one in summaries(self.outcomes)],
            "missing": self.missing,
            "made": self.made,
        }

    def to_markdown(self) -> str:
        blocks = ["# Evaluation"]
        for name in dict.fromkeys(one.data_set for one in self.outcomes):
            outcomes = [one for one in self.outcomes if one.data_set == name]
            blocks += [f"## {name}", _table(outcomes), _notes(outcomes)]
        if self.missing:
            blocks += ["## Not here", "\n".join(f"- {name}: {where}" for name, where in self.missing.items())]
        blocks += [
            "## Made with",
            "\n".join(f"- {name}: {plain(value)}" for name, value in self.made.items()),
        ]
        return "\n\n".join(blocks) + "\n"


def summaries(outcomes: Sequence[Outcome]) -> list[Summary]:
    """One for each data set that was measured in several languages."""
    found = []
    for name in dict.fromkeys(one.data_set for one in outcomes):
        here = [one for one in outcomes if one.data_set == name]
        figure = MAIN[here[0].kind]
        values = {one.language: one.scores[figure].value for one in here}
        if len(values) < 2:
            continue
        worst = min(values, key=lambda tag: values[tag])
        mean, english = sum(values.values()) / len(values), values.get("en")
        by = (mean / english, values[worst] / english) if english else (None, None)
        found.append(Summary(name, figure, len(values), mean, worst, values[worst], *by))
    return found


def _table(outcomes: Sequence[Outcome]) -> str:
    """In percent; under a language the published rows, each with the number of its source."""
    columns = [name for name in _COLUMNS[outcomes[0].kind] if name in outcomes[0].scores]
    lines = [
        f"| language | model | {' | '.join(columns)} | 95 % of {MAIN[outcomes[0].kind]} |",
        f"|{'---|' * (len(columns) + 3)}",
    ]
    sources = _sources(outcomes)
    for one in outcomes:
        cells = " | ".join(f"{100 * one.scores[name].value:.1f}" for name in columns)
        main = one.scores[MAIN[one.kind]]
        interval = f"{100 * main.low:.1f} to {100 * main.high:.1f}"
        lines.append(f"| {one.language} | this one | {cells} | {interval} |")
        for row in rows_for(one.data_set, one.language):
            cells = " | ".join(f"{row.scores[name]:.1f}" if name in row.scores else "" for name in columns)
            source = sources.index(row.source) + 1
            lines.append(f"| {row.language} | {row.model}, published ({source}) | {cells} | |")
    return "\n".join(lines)


def _sources(outcomes: Sequence[Outcome]) -> list[str]:
    found = (row.source for one in outcomes for row in rows_for(one.data_set, one.language))
    return list(dict.fromkeys(found))


def _notes(outcomes: Sequence[Outcome]) -> str:
    sizes = dict.fromkeys((one.pictures, one.texts) for one in outcomes)
    what = "captions" if outcomes[0].kind == "retrieval" else "classes"
    notes = [f"- {pictures:,} pictures, {texts:,} {what}" for pictures, texts in sizes]
    for one in summaries(outcomes):
        ratios = ""
        if one.worst_by_english is not None:
            ratios = f" ({one.mean_by_english:.3f} and {one.worst_by_english:.3f} of English)"
        notes.append(
            f"- {one.figure} over {one.languages} languages: mean {100 * one.mean:.1f}, worst {one.worst} "
            f"{100 * one.worst_value:.1f}{ratios}"
        )
    if any(one.templates == "ours" for one in outcomes):
        notes.append("- with templates of our own: not comparable with published figures")
    notes += [f"- ({number}) {source}" for number, source in enumerate(_sources(outcomes), 1)]
    return "\n".join(notes)


def plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {item}" for name, item in value.items())
    return str(value)
