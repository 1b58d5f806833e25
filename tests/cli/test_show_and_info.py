"""`altdiffusion show` and `altdiffusion info`."""

import json
from pathlib import Path

import pytest
from PIL import Image

from tests import published
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
    from altdiffusion import AltDiffusionPipeline

    code, out, err = run("info", str(shared_folder), "--json")
    assert (code, err) == (0, "")
    facts = json.loads(out)
    assert facts["covered"] == COVERED
    assert facts["languages"] == list(SENTENCES)
    assert facts["format"] == "stock pipeline" and facts["found"].startswith("its model_index.json names ")
    assert set(facts["parameters"]) == {"unet", "vae", "text_encoder", "altclip"}
    assert facts["weight_bytes"] == 4 * sum(facts["parameters"].values())
    assert facts["weight_dtypes"] == ["float32"]
    assert facts["licence"] == "apache-2.0" and facts["published_as"] is None
    assert facts["heads"] == dict.fromkeys(["conditioning", "pooled"], "transformation(pre_LN(h_last))")
    pipeline = AltDiffusionPipeline.from_pretrained(shared_folder, device="cpu")
    assert facts["fingerprint"] == pipeline.fingerprint
    assert facts["attention"]["chosen"] in facts["attention"]["available"]
    assert set(facts["versions"]) == {"altdiffusion", "torch", "diffusers", "transformers"}


@pytest.mark.parametrize(
    ("layout", "form", "published_as", "conditioning"),
    [
        ("A", "m9", "BAAI/AltCLIP-m9", "transformation(h_last)"),
        ("B", "m18", "BAAI/AltDiffusion-m18", "transformation_pre(pre_LN(h_penultimate))"),
        ("C", "m9", "BAAI/AltDiffusion or BAAI/AltDiffusion-m9", "transformation(h_last)"),
        ("D", "m18", "BAAI/AltDiffusion-m18", "transformation_pre(pre_LN(h_penultimate))"),
        ("E", "m18", "BAAI/AltCLIP-m18", "transformation_pre(pre_LN(h_penultimate))"),
    ],
)
def test_info_says_what_a_published_checkpoint_is(
    run: Run, tmp_path: Path, layout: str, form: str, published_as: str, conditioning: str
):
    path = published.write(layout, tmp_path / "source", form)
    code, out, err = run("info", str(path), "--json")
    assert (code, err) == (0, "")
    facts = json.loads(out)
    assert (facts["format"], facts["published_as"]) == (layout, published_as)
    assert facts["heads"]["conditioning"] == conditioning
    assert ("pooled" in facts["heads"]) == (layout in "ADE")
    assert len(facts["languages"]) == {"BAAI/AltCLIP-m9": 9}.get(published_as, 18 if form == "m18" else 2)
    assert facts["licence"] == "creativeml-openrail-m"
    assert ("unet" in facts["parameters"]) == (layout in "BCD")
    assert (facts["presets"] is not None) == (layout in "BCD")


def test_info_for_people_names_the_covered_emoji(run: Run, shared_folder: Path):
    out = run("info", str(shared_folder))[1]
    assert f"covered: {len(COVERED)}: {' '.join(COVERED)}\n" in out
    assert "presets: exact the model's own scheduler in its own number of steps, default unipc in 15" in out
