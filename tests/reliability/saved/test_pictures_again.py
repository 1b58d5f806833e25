"""A picture's own note: exact in 18 languages, and `--from` draws the same pixels again."""

import pytest

from altdiffusion.images import open_image, read_provenance
from tests.cli.conftest import Run, run
from tests.fakes import SENTENCES
from tests.reliability.saved.trying import tried

__all__ = ["run"]
#: What a note has to keep: joiners, quotes, what looks like JSON or HTML, and nearly the longest text.
EXTRA = '👩‍🚀 «“”» {"a": 1} <b>&amp;</b> \\n é e\u0301 ' + "x" * 1500


@pytest.mark.parametrize("tag", SENTENCES)
def test_a_note_is_exact_and_draws_the_same_pixels_again(run: Run, shared_folder, tally, tag, tmp_path):
    model = ("--model", str(shared_folder), "--steps", "2", "--preset", "exact")
    count = tally("F2 notes and pictures drawn again")
    prompt, negative = SENTENCES[tag], f"{SENTENCES['de']} {EXTRA}"
    with tried(count, f"the note in {tag}"):
        code, _, err = run(
            "generate", prompt, "--negative-prompt", negative, "--seed", "7", "-o", "a.png", *model
        )
        assert code == 0, err
        note = read_provenance(tmp_path / "a.png")
        assert note is not None and note.prompt == prompt and note.seed == 7
        assert note.negative_prompt.endswith("x" * 1500) and "👩‍🚀" in note.negative_prompt
        assert f"prompt: {prompt}\n" in run("show", "a.png")[1]
    with tried(count, f"drawn again from {tag}"):
        code, _, err = run("generate", "--from", "a.png", "-o", "b.png", "--model", str(shared_folder))
        assert code == 0, err
        first, second = (open_image(tmp_path / name) for name in ("a.png", "b.png"))
        assert first.tobytes() == second.tobytes()
        assert read_provenance(tmp_path / "b.png") == note
    count.check(2)
