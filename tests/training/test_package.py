"""Packing stages into the folder that ships, on tiny models in the place of the trained ones."""

import json
import shutil
import subprocess

import pytest

from altdiffusion import AltCLIP, bundled
from altdiffusion.pipelines import AltDiffusionPipeline
from altdiffusion.serving.collection import Collection
from tests.fakes import COVERED, tiny_altclip_folder, tiny_stock_pipeline
from training import package


@pytest.fixture
def stages(tmp_path):
    folder = tmp_path / "stages"
    for stage in package.STAGES:
        (folder / stage).mkdir(parents=True)
        (folder / stage / "config.yaml").write_text("optim: {learning_rate: 1e-3}\n")
    tiny_stock_pipeline().save_pretrained(folder / package.UNET / "model")
    (folder / package.UNET / "drawn.json").write_text(json.dumps({"covered": COVERED}))
    tiny_altclip_folder(folder / package.TOWERS / "model")
    return folder


def test_what_is_packed_is_whole_and_opens_and_says_what_made_it(stages, tmp_path, monkeypatch):
    out = tmp_path / "weights"
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout
    monkeypatch.chdir(tmp_path)  # as where the stages lie on another disk
    monkeypatch.setattr("sys.argv", ["package", "--stages", str(stages), "--output", str(out)])
    package.main()
    bundled.verify(out)
    pipeline = AltDiffusionPipeline.from_pretrained(out, device="cpu")
    assert pipeline.generation_defaults.steps == 20
    clip = AltCLIP.from_pretrained(out / "altclip", device="cpu")
    assert clip.dim == 16
    tower = clip.model.text_model.state_dict()
    assert all(value.equal(tower[name]) for name, value in pipeline.text_encoder.state_dict().items())
    collection = Collection(out / "collection")
    collection.encode_some(AltCLIP.from_pretrained(out, device="cpu"))
    assert collection.ready  # its vectors lie beside it
    card = bundled.card(out)
    assert card["commit"] == commit.strip()
    assert set(card["covered"]) == set(COVERED) and list(card["recipe"]) == list(package.STAGES)
    assert not list(tmp_path.glob(".*"))
    assert not any(str(tmp_path) in file.read_text(encoding="utf-8") for file in out.rglob("*.json"))


def test_what_stages_that_are_gone_had_made_is_that_of_the_model_before(stages, tmp_path, monkeypatch):
    before, out = tmp_path / "before", tmp_path / "weights"
    command = ["package", "--stages", str(stages)]
    monkeypatch.setattr("sys.argv", [*command, "--output", str(before)])
    package.main()
    assert "taken over" not in bundled.card(before)
    first, second = package.STAGES[:2]
    (stages / first / "config.yaml").unlink()
    (stages / second / "config.yaml").write_text("optim: {learning_rate: 2e-3}\n")
    shutil.rmtree(stages / package.UNET)
    shutil.rmtree(stages / package.TOWERS / "model")
    monkeypatch.setattr("sys.argv", [*command, "--output", str(out), "--base", str(before)])
    package.main()
    card, old = bundled.card(out), bundled.card(before)
    assert list(card["recipe"]) == list(package.STAGES)
    assert card["recipe"][first] == old["recipe"][first]
    assert card["recipe"][second] != old["recipe"][second]
    assert card["taken over"] == {"commit": old["commit"], "stages": [first, package.UNET]}
    assert card["covered"] == old["covered"]
    unet = next((before / "unet").glob("*.safetensors"))
    for name in (f"unet/{unet.name}", "altclip/model.safetensors"):
        assert (before / name).read_bytes() == (out / name).read_bytes()


def test_a_stage_that_is_missing_is_told_in_one_line_and_the_old_model_stays(
    stages, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "weights"
    out.mkdir()
    (out / "old").touch()
    (stages / package.STAGES[0] / "config.yaml").unlink()
    monkeypatch.setattr("sys.argv", ["package", "--stages", str(stages), "--output", str(out)])
    with pytest.raises(SystemExit) as stopped:
        package.main()
    assert stopped.value.code == 2 and "config.yaml" in capsys.readouterr().err
    assert (out / "old").exists()


def test_a_chain_of_ones_own_is_packed_and_its_card_says_what_it_draws(tmp_path, monkeypatch, capsys):
    folder, out = tmp_path / "mine", tmp_path / "weights"
    for stage in ("towers", "draws"):
        (folder / stage).mkdir(parents=True)
        (folder / stage / "config.yaml").write_text("scenes: {groups: 3, ground_share: 0.3}\n")
    tiny_stock_pipeline().save_pretrained(folder / "draws/model")
    (folder / "draws/drawn.json").write_text(json.dumps({"covered": COVERED}))
    tiny_altclip_folder(folder / "towers/model")
    chain = ["--stages", str(folder), "--chain", "towers", "draws", "--unet", "draws"]
    monkeypatch.setattr("sys.argv", ["package", *chain, "--towers", "towers", "--output", str(out)])
    package.main()
    assert list(bundled.card(out)["recipe"]) == ["towers", "draws"]
    card = (out / "README.md").read_text()
    assert "gives them side by side" in card and "an emoji and a ground" in card and "recipes/mine/" in card
    monkeypatch.setattr("sys.argv", ["package", *chain, "--towers", "other", "--output", str(out)])
    with pytest.raises(SystemExit):
        package.main()
    assert "towers: 'other'; allowed: one of chain" in " ".join(capsys.readouterr().err.split())
