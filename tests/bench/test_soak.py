"""What a long run of the app left, as a report; and a short one of the real app."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench import soak_report
from tests.test_readme import ROOT


def leave(folder: Path, ended: bool = True) -> Path:
    """What a run of an hour leaves that grows by 60 MB an hour and has one wrong answer."""
    made = {"command": "python -m bench.soak --hours 1", "commit": "abc1234", "machine": "a CPU"}
    (folder / "run.json").write_text(json.dumps(made | {"torch": "2", "gradio": "6"}), encoding="utf-8")
    samples = [
        {"at": 10.0 * n, "rss": 8e8 + n * 1e6 / 6, "threads": 14, "fds": 20, "cpu": 3.0 * n, "files": n}
        | {"bytes": 1000 * n, "health seconds": 0.01, "waiting": 0}
        | {"right": n, "refused": 0, "wrong": 0, "left": 0}
        for n in range(361)
    ]
    answers = [
        {"at": n, "visit": "draw", "ended": "right", "seconds": n / 10, "what": ""} for n in range(1, 21)
    ]
    answers += [{"at": 21, "visit": "draw", "ended": "wrong", "seconds": 1.0, "what": "another picture"}]
    answers += [{"at": 22, "visit": "at the end", "ended": "right", "seconds": 0.0, "what": ""}] * ended
    for name, lines in (("samples", samples), ("answers", answers)):
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / f"{name}.jsonl").write_text(text + "" if ended else text + '{"at": 3', encoding="utf-8")
    return folder


def test_a_report_adds_up_what_was_sampled(tmp_path: Path):
    found = soak_report.report(leave(tmp_path))
    assert (found["hours"], found["ended"], found["answers"]["wrong"]) == (1.0, True, 1)
    assert found["MB an hour in the last half"] == pytest.approx(60)
    assert found["fds an hour in the last half"] == pytest.approx(0, abs=1e-6)
    assert found["seconds"]["draw"] == {"p50": 1.1, "p95": 1.9, "max": 2.0}
    assert found["cores"] == pytest.approx(0.3)
    assert [one["what"] for one in found["wrong"]] == ["another picture"]
    text = soak_report.table(found)
    assert "| draw | 20 | 0 | 1 | 0 | 1.10 | 1.90 |" in text and "60.0 MB an hour" in text
    assert "cut" not in text


def test_a_run_that_was_cut_keeps_what_it_sampled(tmp_path: Path):
    found = soak_report.report(leave(tmp_path, ended=False))
    assert not found["ended"] and found["answers"]["right"] == 20
    assert "(the run was cut)" in soak_report.table(found)


def test_a_plot_is_drawn(tmp_path: Path):
    pytest.importorskip("matplotlib")
    soak_report.plot(soak_report.report(leave(tmp_path)), tmp_path / "images/soak.png")
    assert (tmp_path / "images/soak.png").stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.weights
def test_a_short_run_of_the_app_finds_nothing_wrong(tmp_path: Path):
    run = [sys.executable, "-m", "bench.soak", "--hours", "0.03", "--share", "1", "--burst", "60"]
    done = subprocess.run([*run, "-o", str(tmp_path / "run")], cwd=ROOT, capture_output=True, text=True)
    found = json.loads((tmp_path / "run/report.json").read_text(encoding="utf-8"))
    assert (done.returncode, found["wrong"]) == (0, []), done.stderr
