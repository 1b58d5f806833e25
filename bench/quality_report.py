"""The tables of a quality report, and its places in the model: the card and `emoji.json`."""

import json

from altdiffusion import bundled
from bench.report import origin, put

MARK = "figures"


def publish(report: dict) -> None:
    text = tables(report)
    put(bundled.FOLDER / "README.md", MARK, text)
    card = bundled.card()
    card["figures"] = report
    (bundled.FOLDER / bundled.CARD).write_text(
        json.dumps(card, ensure_ascii=False, indent=1) + "\n", encoding="utf-8"
    )
    bundled.write_manifest(bundled.FOLDER)


def tables(report: dict) -> str:
    """Markdown: one row per language, one column per figure, and the summaries below."""
    columns = [
        ("pictures top-1", "generation", "top1"),
        ("pictures top-5", "generation", "top5"),
        ("held-out template top-5", "templates", "top5"),
        ("held-out keyword top-5", "keywords", "top5"),
        ("two emoji, both found", "pairs", "top5"),
        ("three or four, all found", "groups", "top5"),
        ("on a named ground top-5", "grounds", "top5"),
        ("retrieval MR", "retrieval", "MR"),
        ("zero-shot top-1", "zero-shot", "top1"),
        ("zero-shot top-5", "zero-shot", "top5"),
    ]
    columns = [column for column in columns if column[1] in report]
    lines = [
        f"| language | {' | '.join(title for title, _, _ in columns)} |",
        f"|---|{'---|' * len(columns)}",
    ]
    for tag in report[columns[0][1]]["languages"] if columns else ():
        cells = (f"{report[part]['languages'][tag][key]:.3f}" for _, part, key in columns)
        lines.append(f"| {tag} | {' | '.join(cells)} |")
    lines.append("")
    for part in dict.fromkeys(part for _, part, _ in columns):
        row = report[part]
        lines.append(
            f"- {part}: mean {row['mean']:.3f}, {row['mean/english']:.3f} of English; worst {row['worst']}, "
            f"{row['worst/english']:.3f} of English"
        )
        if row.get("unseen"):
            seen = row["unseen"]
            lines.append(
                f"- {part}, names that training never saw in their language ({seen['pictures']}): "
                f"top-1 {seen['top1']:.3f}, top-5 {seen['top5']:.3f}"
            )
    if "judge" in report:
        one, remade = report["judge"]["real"], report["judge"]["reconstructions"]
        two, both = report["judge"]["real pairs"], report["judge"]["reconstructed pairs"]
        lines += [
            f"- the judge itself, {one['pictures']} emoji: top-1 {one['top1']:.3f} on real pictures, "
            f"{remade['top1']:.3f} on the autoencoder's reconstructions of them",
            f"- the judge itself, {two['pictures']} pairs: both found in {two['top5']:.3f} of real pictures, "
            f"{both['top5']:.3f} of reconstructions",
        ]
    lines.append(origin(report))
    return "\n".join([*lines, ""])
