"""The encoder's table: rows by language and stage, figures in percent."""

from bench import encoder_table
from bench.report import RESULTS, replace_part


def stage(name: str, values: dict[str, float]) -> dict:
    kind, _ = encoder_table.STAGES[name]
    rows = {tag: dict.fromkeys((*encoder_table.SIX, "MR", "top1"), value) for tag, value in values.items()}
    made = {"recipe": f"{name}.yaml", "fingerprint": "0123456789abcdef", "numbers": "float32"}
    return {"stage": name, "kind": kind, **made, "languages": rows}


REPORT = {
    "command": "python -m bench.encoder_table",
    "scenes": 1000,
    "stages": [stage("teacher_more", {"en": 0.9}), stage("distill_lists", {"en": 0.8, "th": 0.4})],
    "made with": {"commit": "c", "machine": "m", "torch": "t", "transformers": "u", "minutes": 1},
}


def test_the_teacher_stands_beside_its_students_in_english_alone():
    lines = encoder_table.table(REPORT).splitlines()
    rows = [line.split(" | ")[:3] for line in lines[2:5]]
    assert rows == [
        ["| en", "teacher", "90.0"],
        ["| en", "teacher learning", "80.0"],
        ["| th", "teacher learning", "40.0"],
    ]
    assert {line.count("|") for line in lines[:5]} == {11}


def test_the_mean_and_the_worst_are_beside_their_share_of_english():
    text = encoder_table.table(REPORT)
    assert "MR mean 60.0, worst th 40.0 (0.750 and 0.500 of English)" in text
    assert "- teacher: `teacher_more.yaml`, float32, fingerprint 0123456789ab\n" in text


def test_the_table_is_put_between_its_marks():
    document = RESULTS.read_text(encoding="utf-8")
    written = replace_part(document, "encoder", encoder_table.table(REPORT))
    assert written.count("| th | teacher learning | 40.0") == 1
    assert written.split("## Its stages")[1] == document.split("## Its stages")[1]
