"""What all benches share: their options, the line that says how a figure came about, and where reports go."""

import json
import re
from pathlib import Path

import pytest

from bench import report
from bench.report import RESULTS, Start, command, origin, parser, processor, put, replace_part, tell

BENCH = Path(report.__file__).parent
TOLD = re.compile(r'\btell\(report, "([\w-]+)", "([\w-]+)"')
CALLS = [(file.stem, *call) for file in sorted(BENCH.glob("*.py")) for call in TOLD.findall(file.read_text())]


@pytest.mark.parametrize(("file", "module", "mark"), CALLS)
def test_every_bench_tells_its_own_name_and_has_a_place_in_the_results(file, module, mark):
    assert module == file
    replace_part(RESULTS.read_text(encoding="utf-8"), mark, "")


def test_the_benches_were_found():
    assert len(CALLS) >= 10


def test_a_report_is_printed_saved_and_put_between_its_marks(tmp_path, monkeypatch, capsys):
    results = tmp_path / "results.md"
    results.write_text("before\n<!-- speed -->\nold\n<!-- /speed -->\nafter\n")
    words = ["--rounds", "2", "-o", str(tmp_path / "report.json"), "--write"]
    monkeypatch.setattr(report, "RESULTS", results)
    monkeypatch.setattr("sys.argv", ["bench", *words])
    options = parser("Times it.")
    options.add_argument("--rounds", type=int)
    made = {"rounds": 2, "seconds": 1.5, "made with": Start(commit="abc").made_with("torch", threads=1)}
    tell(
        made,
        "speed",
        "speed",
        lambda told: f"{told['seconds']} s\n{origin(told)}\n",
        options.parse_args(words),
    )
    saved = json.loads((tmp_path / "report.json").read_text())
    assert saved["command"] == "python -m bench.speed --rounds 2"
    line = f"- `python -m bench.speed --rounds 2`, 2 rounds, commit abc, {processor()}, 1 of "
    text = results.read_text()
    assert text.startswith(f"before\n<!-- speed -->\n1.5 s\n{line}") and text.endswith(
        "<!-- /speed -->\nafter\n"
    )
    assert line in capsys.readouterr().out


def test_a_command_leaves_out_where_its_report_went():
    words = ["--output=a/b.json", "--rounds", "3", "--write", "--whole"]
    assert command("generate", words) == "python -m bench.generate --rounds 3 --whole"


def test_a_document_without_marks_is_refused(tmp_path):
    (tmp_path / "a.md").write_text("nothing\n")
    with pytest.raises(ValueError, match="does not hold both <!-- speed --> and <!-- /speed -->"):
        put(tmp_path / "a.md", "speed", "1\n")
