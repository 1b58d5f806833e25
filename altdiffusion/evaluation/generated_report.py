"""The report of `evaluate generation`: per language, with mean, worst and worst against English."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from altdiffusion.evaluation.generated import Generated
from altdiffusion.evaluation.reports import Summary, plain

#: Title in the table, name of the figure, what it is multiplied with, decimal places.
_COLUMNS = (
    ("FD-AltCLIP", "FD", 1, 4),
    ("KID x 1000", "KID", 1000, 2),
    ("CLIP-sim", "CLIP-sim", 1, 4),
    ("with English caption", "CLIP-sim with English", 1, 4),
    ("of the data's own", "CLIP-sim of the data", 1, 4),
    ("consistency", "consistency", 1, 4),
)
_DISTANCES = ("FD", "KID")
_NOTES = """\
- FD-AltCLIP and KID: distances of the drawn pictures to the data's own, in the encoder's unit features; less
  is better. They are not the Inception FID of other papers. FD is too large for few pictures: compare it only
  at the same number of the same pictures. KID is not, but may be below 0.
- CLIP-sim: mean cosine of each drawn picture with its own caption, with the English caption of the same
  picture, and of the data's own picture with the caption.
- consistency: mean cosine with the pictures that the other languages gave for the same caption and seed."""


@dataclass(frozen=True)
class GenerationReport:
    """Outcomes, and how they came about (`made`)."""

    outcomes: tuple[Generated, ...]
    made: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        return {
            "results": [dataclasses.asdict(one) for one in self.outcomes],
            "summary": [dataclasses.asdict(one) for one in summaries(self.outcomes)],
            "made": self.made,
        }

    def to_markdown(self) -> str:
        blocks = ["# Generation"]
        for name in dict.fromkeys(one.data_set for one in self.outcomes):
            outcomes = [one for one in self.outcomes if one.data_set == name]
            blocks += [f"## {name}, {outcomes[0].pictures:,} pictures in each language", _table(outcomes)]
            notes = [*_sentences(outcomes), *_chance(outcomes)]
            blocks += ["\n".join(notes)] if notes else []
        made = "\n".join(f"- {name}: {plain(value)}" for name, value in self.made.items())
        return "\n\n".join([*blocks, "## What is measured", _NOTES, "## Made with", made]) + "\n"


def summaries(outcomes: Sequence[Generated]) -> list[Summary]:
    """One for each data set and figure over its languages. Of distances the worst is the largest."""
    found = []
    for name in dict.fromkeys(one.data_set for one in outcomes):
        here = [one for one in outcomes if one.data_set == name]
        for _, figure, _, _ in _COLUMNS if len(here) > 1 else ():
            values = {one.language: value for one in here if (value := _value(one, figure)) is not None}
            if not values:
                continue
            worst = (max if figure in _DISTANCES else min)(values, key=lambda tag: values[tag])
            mean, english = sum(values.values()) / len(values), values.get("en", 0.0)
            by = (mean / english, values[worst] / english) if english > 0 else (None, None)
            found.append(Summary(name, figure, len(values), mean, worst, values[worst], *by))
    return found


def _value(one: Generated, figure: str) -> float | None:
    if figure in one.distances:
        return one.distances[figure]
    return one.scores[figure].value if figure in one.scores else None


def _table(outcomes: Sequence[Generated]) -> str:
    columns = [column for column in _COLUMNS if _value(outcomes[0], column[1]) is not None]
    titles = [title for title, _, _, _ in columns]
    lines = [
        f"| language | {' | '.join(titles)} | 95 % of CLIP-sim |",
        f"|{'---|' * (len(titles) + 2)}",
    ]
    for one in outcomes:
        cells = [f"{times * (_value(one, name) or 0.0):.{places}f}" for _, name, times, places in columns]
        score = one.scores["CLIP-sim"]
        lines.append(
            f"| {one.language} | {' | '.join(cells)} | {score.low:.4f} to {score.high:.4f} |",
        )
    return "\n".join(lines)


def _sentences(outcomes: Sequence[Generated]) -> list[str]:
    sentences = []
    for one in summaries(outcomes):
        title, _, times, places = next(column for column in _COLUMNS if column[1] == one.figure)
        ratios = ""
        if one.worst_by_english is not None:
            ratios = f" ({one.mean_by_english:.3f} and {one.worst_by_english:.3f} of English)"
        sentences.append(
            f"- {title} over {one.languages} languages: mean {times * one.mean:.{places}f}, "
            f"worst {one.worst} {times * one.worst_value:.{places}f}{ratios}"
        )
    return sentences


def _chance(outcomes: Sequence[Generated]) -> list[str]:
    values = [one.chance for one in outcomes if one.chance is not None]
    if not values:
        return []
    return [f"- consistency of pictures of different captions: {sum(values) / len(values):.4f}"]
