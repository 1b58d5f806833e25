"""The tables of bench.rehearsal, and what its figures say of the papers' claims."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from altdiffusion.languages import LANGUAGES
from bench.judge import interval
from bench.report import origin

#: Rows of the table by language, in the order of the papers' stages: what the UNet is by then.
STAGES = {
    "english_unet": "English UNet, English tower",
    "swap": "bare swap to the multilingual tower",
    "kv": "keys and values (concept alignment)",
    "quality": "then the whole UNet (quality improvement)",
    "quality_guided": "the whole UNet, guided",
    "guidance": "then a tenth of the captions dropped",
    "guidance_guided": "captions dropped, guided",
    "adapter": "adapter in the place of keys and values",
}
#: Rows of the table of ways to follow the swap, each trained for as long by the clock.
WAYS = {
    "kv": "keys and values",
    "cross_attention": "all of cross-attention",
    "lora": "LoRA of rank 16",
    "kv_mapped": "keys and values from least squares",
    "adapter": "adapter",
}
TOWERS = {
    "teacher": "the teacher itself",
    "student_english": "English alone",
    "student_parallel": "17 other languages alone",
    "student_both": "both",
    "contrast": "both, then contrastive learning",
    "student_both_second": "both, another seed",
    "contrast_second": "both, then contrastive learning, another seed",
}
#: (row, other row, is the first to be better or only no worse, the claim and whose it is).
CLAIMS = (
    ("kv", "swap", True, "a bare swap needs concept alignment (Ye et al. 2023)"),
    ("kv", "cross_attention", False, "keys and values are enough (Ye et al. 2023)"),
    ("quality", "kv", True, "training the whole UNet then improves the pictures (Ye et al. 2023)"),
    ("guidance_guided", "guidance", True, "after dropped captions guidance improves them (Ye et al. 2023)"),
    ("guidance_guided", "quality_guided", True, "guidance needs the dropped captions (Ye et al. 2023)"),
    ("adapter", "kv", False, "an adapter before a frozen UNet is as good (Ma et al. 2024)"),
    ("kv_mapped", "kv", True, "least squares are the better start (ours)"),
)
#: How near the figures of two seeds are to be.
SEEDS = 0.03
Ranks = dict[str, Any]


def tables(report: dict[str, Any]) -> str:
    """Markdown: the section, with the tables that have rows and what they say of the claims."""
    rows = report["rows"]
    parts = [
        by_stage({name: rows[name] for name in STAGES if name in rows}),
        by_language({name: rows[name] for name in STAGES if name in rows}),
        by_way({name: rows[name] for name in WAYS if name in rows}),
        verdicts({name: row for name, row in rows.items() if "ranks" in row}),
        by_tower({name: rows[name] for name in TOWERS if name in rows}),
    ]
    lines = [
        "## The papers' claims, rehearsed",
        "",
        "A world of 136 emoji, trained from nothing but the shipped autoencoder",
        "([how](training.md#the-papers-claims-rehearsed)).",
        "Intervals: 95 % of 10,000 resamplings of the emoji.",
        "",
        *(line for part in parts if part for line in (*part, "")),
        origin(report),
        "",
    ]
    return "\n".join(lines)


def values(row: Ranks, k: int) -> np.ndarray:
    """(languages, emoji): whether the wanted emoji is among the judge's `k` best; NaN where training never
    showed the name in the language."""
    ranks, seen = (np.array(list(row[name].values())) for name in ("ranks", "seen"))
    return np.where(seen, (ranks < k).astype(float), np.nan)


def of_languages(row: Ranks, k: int) -> dict[str, float]:
    return dict(zip(row["ranks"], np.nanmean(values(row, k), axis=1).tolist(), strict=True))


def bounds(found: dict[str, float], form: str = ".3f") -> str:
    return f"{found['mean']:{form}} ({found['low']:{form}} to {found['high']:{form}})"


def worst(figures: dict[str, float]) -> str:
    tag = min(figures, key=figures.__getitem__)
    return f"{tag} {figures[tag]:.3f}"


def grid(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (titles, ["---"] * len(titles), *rows)]


def by_stage(rows: dict[str, Ranks]) -> list[str]:
    """The means of each stage with their intervals."""
    if not rows:
        return []
    cells = []
    for name, row in rows.items():
        top1, top5 = of_languages(row, 1), of_languages(row, 5)
        means = [bounds(interval(values(row, k))) for k in (1, 5)]
        english = f"{top1['en']:.3f} / {top5['en']:.3f}"
        cells.append([STAGES[name], f"{row['trained']['samples']:,}", english, *means, worst(top1)])
    first = next(iter(rows.values()))
    asked = f"{first['asked']['emoji']} emoji in {len(first['ranks'])} languages"
    titles = ["mean top-1", "mean top-5", "worst top-1"]
    guided = max(row["asked"]["guidance"] for row in rows.values())
    scale = f" Guided: by {guided:g}, all others not at all." if guided > 1 else ""
    return [
        "### From stage to stage",
        "",
        f"{asked}, {first['asked']['steps']} steps a picture.{scale}",
        "Names that training never showed in their language do not count.",
        "",
        *grid(["stage", "its samples", "English top-1 / top-5", *titles], cells),
    ]


def by_language(rows: dict[str, Ranks]) -> list[str]:
    """Top-1 / top-5 of each language under each stage."""
    if not rows:
        return []
    top1, top5 = ({name: of_languages(row, k) for name, row in rows.items()} for k in (1, 5))
    spoken = [tag for tag in LANGUAGES if tag in next(iter(top1.values()))]
    cells = [[tag, *(f"{top1[name][tag]:.2f} / {top5[name][tag]:.2f}" for name in rows)] for tag in spoken]
    return ["Top-1 / top-5:", "", *grid(["language", *(STAGES[name] for name in rows)], cells)]


def by_way(rows: dict[str, Ranks]) -> list[str]:
    """What each way of following the swap costs and gives."""
    if not rows:
        return []
    cells = []
    for name, row in rows.items():
        trained = row["trained"]
        cost = [f"{trained['seconds']:.0f}", f"{trained['samples']:,}", f"{trained['parameters']:,}"]
        cost += [f"{trained['memory_gb']:.2f}", f"{trained['bytes'] / 1e6:.1f}"]
        figures = [bounds(interval(values(row, k))) for k in (1, 5)]
        apart = bounds(difference(row, rows["kv"]), "+.3f") if "kv" in rows and name != "kv" else ""
        cells.append([WAYS[name], *cost, *figures, apart])
    titles = ["trained", "s", "samples", "parameters", "GB", "file, MB", "top-1", "top-5"]
    return [
        "### Ways to follow the swap, at equal time",
        "",
        "GB: the most that the training process took. File: what the stage leaves, in fp32: UNet, LoRA or",
        "adapter. Of a UNet only the trained parameters differ from the English one.",
        "",
        *grid([*titles, "top-1 above the first"], cells),
    ]


def difference(one: Ranks, other: Ranks) -> dict[str, float]:
    """Of top-1, picture by picture, with its interval."""
    return interval(values(one, 1) - values(other, 1))


def verdicts(rows: dict[str, Ranks]) -> list[str]:
    """One line for each claim whose rows are there, and for the second seed."""
    lines = []
    for name, other, better, claim in CLAIMS:
        if name in rows and other in rows:
            found = difference(rows[name], rows[other])
            above = f"`{name}` above `{other}` by {bounds(found, '+.3f')} of top-1"
            lines.append(f"- {claim}: {verdict(found, better)}; {above}")
    if {"english_unet", "kv"} <= rows.keys():
        english = of_languages(rows["english_unet"], 1)["en"]
        after = interval(values(rows["kv"], 1))["mean"]
        lines.append(f"- Mean of all languages under `kv`: {after:.3f}; English, no swap: {english:.3f}")
    for name, pair in trained_twice(rows, "kv", "quality"):
        figures = {f"top-{k}": [interval(values(row, k))["mean"] for row in pair] for k in (1, 5)}
        lines.append(seeds(name, figures))
    return ["### What these figures say", "", *lines] if lines else []


def verdict(found: dict[str, float], better: bool) -> str:
    """Whether the interval of a difference bears out that one is better than the other, or no worse."""
    if found["low"] > 0:
        return "borne out" if better else "borne out, and better"
    if found["high"] < 0:
        return "the opposite here"
    return "not shown here" if better else "no difference shown"


def trained_twice(rows: dict[str, Any], *names: str) -> list[tuple[str, tuple[Any, Any]]]:
    """Those of the stages that are there after another seed too, with both rows."""
    found = [name for name in names if {name, f"{name}_second"} <= rows.keys()]
    return [(name, (rows[name], rows[f"{name}_second"])) for name in found]


def seeds(name: str, figures: dict[str, Sequence[float]]) -> str:
    """Each figure after one seed and after another, and whether all are near."""
    told = ", ".join(f"{what} {one:.3f} and {other:.3f}" for what, (one, other) in figures.items())
    near = "within" if all(abs(one - other) <= SEEDS for one, other in figures.values()) else "not within"
    return f"- All up to `{name}` from two seeds: {told}, {near} {SEEDS:g}"


def by_tower(rows: dict[str, dict[str, Any]]) -> list[str]:
    """Retrieval and zero-shot classification after teacher learning on each kind of text."""
    if not rows:
        return []
    cells = []
    for name, row in rows.items():
        cell = [TOWERS[name]]
        for figure in ("MR", "top1"):
            found = {tag: of_tag[figure] for tag, of_tag in row["towers"].items()}
            others = {tag: value for tag, value in found.items() if tag != "en"}
            cell.append(f"{found['en']:.3f}")
            cell += [f"{np.mean(list(others.values())):.3f}", worst(others)] if others else ["", ""]
        cells.append(cell)
    titles = [f"{name} {what}" for name in ("MR", "top-1") for what in ("English", "others", "worst")]
    asked = next(iter(rows.values()))["asked"]
    world = asked["world"]
    return [
        "### What teacher learning learns from",
        "",
        f"MR: {asked['scenes']:,} held-out scenes, both ways. Top-1: each of the {world} emoji among their",
        f"names; the 95 % interval of one language is at most {0.98 / world**0.5:.3f} to either side.",
        "",
        *grid(["learned from", *titles], cells),
        *orders(rows),
    ]


def orders(rows: dict[str, dict[str, Any]]) -> list[str]:
    """The students by MR in English and in the others, and whether both kinds of text do more than one: by
    more than two seeds may be apart."""
    students = ("student_both", "student_english", "student_parallel")
    if not set(students) <= rows.keys() or len(rows["student_both"]["towers"]) == 1:
        return []

    lines = [""]
    for english, other in ((True, "student_parallel"), (False, "student_english")):
        figures = {name: tower_mean(rows[name], "MR", english) for name in students}
        ranked = sorted(students, key=figures.__getitem__, reverse=True)
        order = ", ".join(f"{TOWERS[name]} {figures[name]:.3f}" for name in ranked)
        more = figures["student_both"] - figures[other]
        told = "borne out" if more > SEEDS else "the opposite here" if more < -SEEDS else "not shown here"
        what = "in English" if english else "of the others"
        lines.append(f"- MR {what}: {order}. Both above {TOWERS[other]} (Chen et al. 2022): {told}")
    for name, pair in trained_twice(rows, "student_both", "contrast"):
        figures = {
            f"{said} {what}": [tower_mean(row, figure, english) for row in pair]
            for figure, said in (("MR", "MR"), ("top1", "top-1"))
            for what, english in (("in English", True), ("of the others", False))
        }
        lines.append(seeds(name, figures))
    return lines


def tower_mean(row: dict[str, Any], figure: str, english: bool) -> float:
    """Of English, or the mean of the other languages."""
    return float(np.mean([of[figure] for tag, of in row["towers"].items() if (tag == "en") is english]))
