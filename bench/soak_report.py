"""What a long run of the app left in its folder, as a report, a table and a plot: for bench/soak.py."""

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np

#: How a visit may end; `left` is a visitor who did not wait for the answer.
ENDINGS = ("right", "refused", "wrong", "left")
MB = 1e6


def lines(file: Path) -> list[dict[str, Any]]:
    """All whole ones: the last may be cut."""
    found = []
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return found


def report(folder: Path) -> dict[str, Any]:
    """Of what a run left in its folder, whether it came to its end or not."""
    samples, answers = lines(folder / "samples.jsonl"), lines(folder / "answers.jsonl")
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    took: dict[str, list[float]] = defaultdict(list)
    for answer in answers:
        counts[answer["visit"]][answer["ended"]] += 1
        if answer["ended"] == "right" and answer["seconds"]:
            took[answer["visit"]].append(answer["seconds"])
    half = samples[len(samples) // 2 :]
    return {
        **json.loads((folder / "run.json").read_text(encoding="utf-8")),
        "hours": round(samples[-1]["at"] / 3600, 2),
        "ended": any(answer["visit"] == "at the end" for answer in answers),
        "visits": {name: dict(ended) for name, ended in sorted(counts.items())},
        "answers": {ending: sum(ended[ending] for ended in counts.values()) for ending in ENDINGS},
        "wrong": [answer for answer in answers if answer["ended"] == "wrong"][:100],
        "seconds": {name: quantiles(seconds) for name, seconds in sorted(took.items())},
        "health": quantiles([sample["health seconds"] for sample in samples]),
        "MB an hour in the last half": slope(half, "rss") / MB,
        "fds an hour in the last half": slope(half, "fds"),
        "threads an hour in the last half": slope(half, "threads"),
        "cores": samples[-1]["cpu"] / samples[-1]["at"],
        "samples": samples,
    }


def quantiles(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    at = {"p50": 0.5, "p95": 0.95, "max": 1.0}
    return {name: ordered[round(share * (len(ordered) - 1))] for name, share in at.items()}


def slope(samples: list[dict[str, Any]], name: str) -> float:
    """Per hour, by least squares."""
    if len(samples) < 2:
        return 0.0
    at = np.array([sample["at"] for sample in samples]) / 3600
    return float(np.polyfit(at, [sample[name] for sample in samples], 1)[0])


def table(found: dict[str, Any]) -> str:
    rows = [
        "| visits | right | refused | wrong | left early | seconds, median | p95 |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, ended in found["visits"].items():
        took = found["seconds"].get(name)
        seconds = [f"{took[key]:.2f}" for key in ("p50", "p95")] if took else ["", ""]
        cells = [f"{ended.get(ending, 0):,}" for ending in ENDINGS] + seconds
        rows.append(f"| {name} | {' | '.join(cells)} |")
    sums = [f"{found['answers'][ending]:,}" for ending in ENDINGS]
    rows.append(f"| all | {' | '.join(sums)} | | |")
    held = [
        "",
        "| the server | after an hour's quarter | at half time | at the end | most |",
        "|---|---|---|---|---|",
    ]
    samples = found["samples"]
    times = [900, samples[-1]["at"] / 2, samples[-1]["at"]]
    chosen = [min(samples, key=lambda sample: abs(sample["at"] - at)) for at in times]
    for name, key, unit in (
        ("resident memory, MB", "rss", MB), ("open files", "fds", 1), ("threads", "threads", 1),
        ("files in its folder", "files", 1), ("MB in its folder", "bytes", MB),
    ):  # fmt: skip
        most = max(sample[key] for sample in samples)
        held.append(
            f"| {name} | {' | '.join(f'{one[key] / unit:,.0f}' for one in chosen)} | {most / unit:,.0f} |"
        )
    grown = [found[f"{name} an hour in the last half"] for name in ("MB", "fds", "threads")]
    quick, slow = (1000 * found["health"][key] for key in ("p50", "p95"))
    told = [
        "",
        f"- {found['hours']:.2f} hours{'' if found['ended'] else ' (the run was cut)'}, "
        f"{sum(found['answers'].values()):,} visits; in the last half resident memory grew by {grown[0]:.1f} "
        f"MB an hour, open files by {grown[1]:.1f}, threads by {grown[2]:.1f}",
        f"- `/healthz` took {quick:.0f} ms in the middle, {slow:.0f} at p95; the server took "
        f"{found['cores']:.2f} of a core",
        f"- `{found['command']}`, commit {found['commit']}, {found['machine']}, torch {found['torch']}, "
        f"gradio {found['gradio']}",
    ]
    return "\n".join([*rows, *held, *told, ""])


def plot(found: dict[str, Any], file: Path) -> None:
    from matplotlib.figure import Figure

    samples = found["samples"]
    minutes = [sample["at"] / 60 for sample in samples]
    figure = Figure(figsize=(8, 7), layout="constrained")
    memory, handles, folder, answers = figure.subplots(4, 1, sharex=True)
    memory.plot(minutes, [sample["rss"] / MB for sample in samples])
    memory.set(ylabel="resident MB", ylim=(0, None))
    for name in ("fds", "threads"):
        handles.plot(minutes, [sample[name] for sample in samples], label=name)
    handles.set(ylabel="open files, threads", ylim=(0, None))
    handles.legend(fontsize=7)
    folder.plot(minutes, [sample["files"] for sample in samples])
    folder.set(ylabel="files in its folder", ylim=(0, None))
    for ending in ENDINGS:
        answers.plot(
            minutes, [sample[ending] for sample in samples], label=f"{ending}: {samples[-1][ending]:,}"
        )
    answers.set(ylabel="visits", xlabel="minutes")
    answers.legend(fontsize=7)
    for panel in (memory, handles, folder, answers):
        panel.grid(visible=True, alpha=0.3)
    file.parent.mkdir(exist_ok=True)
    figure.savefig(file, dpi=110)
