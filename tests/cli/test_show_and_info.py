"""`altdiffusion show` and `altdiffusion info`."""

import json
from pathlib import Path

from PIL import Image

from tests.cli.conftest import Run
from tests.fakes import COVERED, SENTENCES


def test_show_tells_how_a_picture_was_made(run: Run, tiny: tuple[str, ...]):
    run("generate", SENTENCES["hi"], "--seed", "7", "-o", "a.png", *tiny)
    code, out, _ = run("show", "a.png")
    assert code == 0
    assert f"prompt: {SENTENCES['hi']}\n" in out and "seed: 7\n" in out
    assert json.loads(run("show", "a.png", "--json")[1])["steps"] == 2


def test_show_refuses_what_says_nothing(run: Run, tmp_path: Path):
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    assert run("show", "plain.png")[0::2] == (2, "picture: 'plain.png' does not say how it was made\n")


def test_info_lists_what_a_program_needs(run: Run, shared_folder: Path):
    code, out, err = run("info", str(shared_folder), "--json")
    assert (code, err) == (0, "")
    facts = json.loads(out)
    assert facts["covered"] == COVERED
    assert facts["languages"] == list(SENTENCES)
    assert facts["format"] == "diffusers pipeline"
    assert set(facts["parameters"]) == {"unet", "vae", "text_encoder", "altclip"}
    assert facts["weight_bytes"] > 1000
    assert facts["attention"]["chosen"] in facts["attention"]["available"]
    assert set(facts["versions"]) == {"altdiffusion", "torch", "diffusers", "transformers"}


def test_info_for_people_names_the_covered_emoji(run: Run, shared_folder: Path):
    out = run("info", str(shared_folder))[1]
    assert f"covered: {len(COVERED)}: {' '.join(COVERED)}\n" in out
