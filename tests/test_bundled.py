import json

import pytest

from altdiffusion import bundled, checkpoints
from altdiffusion.languages import LANGUAGES
from altdiffusion.layouts import detect
from altdiffusion.model import AltCLIP
from altdiffusion.pipelines import AltDiffusionPipeline
from tests.fakes import COVERED, SENTENCES

LIMIT = 64 * 2**20
SHARD_LIMIT = 15 * 10**6


@pytest.fixture
def stand_in(model_folder, monkeypatch):
    """The tiny model in the place of the bundled one."""
    monkeypatch.setattr(bundled, "FOLDER", model_folder)
    checkpoints._verify_bundled.cache_clear()
    yield model_folder
    checkpoints._verify_bundled.cache_clear()


def test_a_folder_as_it_was_saved_verifies(model_folder):
    bundled.verify(model_folder)


def test_a_flipped_bit_is_found_and_named(model_folder):
    file = model_folder / "unet" / "diffusion_pytorch_model.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"^model: .*damaged unet/diffusion_pytorch_model\.safetensors"):
        bundled.verify(model_folder)


def test_missing_files_are_named_up_to_three(model_folder):
    for name in ("vae/config.json", "unet/config.json", "README.md", "emoji.json"):
        (model_folder / name).unlink()
    with pytest.raises(ValueError, match=r"^model: .*missing .*, missing .*, missing .* and 1 more$"):
        bundled.verify(model_folder)


def test_a_manifest_that_is_missing_or_damaged_is_named(model_folder):
    (model_folder / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match=r"^model: .*manifest\.json is damaged"):
        bundled.verify(model_folder)
    (model_folder / "manifest.json").unlink()
    with pytest.raises(ValueError, match=r"^model: .* has no manifest\.json"):
        bundled.verify(model_folder)


def test_a_manifest_lists_the_model_and_nothing_else(model_folder):
    (model_folder / "diary.txt").write_text("mine")
    (model_folder / "photos").mkdir()
    (model_folder / "photos" / "cat.png").write_bytes(b"")
    listed = json.loads(bundled.write_manifest(model_folder).read_text())
    assert {"model_index.json", "altclip/config.json", "README.md", "emoji.json"} <= listed.keys()
    assert not {"diary.txt", "photos/cat.png", "manifest.json"} & listed.keys()
    bundled.verify(model_folder)


def test_without_an_argument_the_bundled_model_loads(stand_in):
    pipeline = AltDiffusionPipeline.from_pretrained()
    assert pipeline.source is None
    assert pipeline.generation_defaults.steps == 4
    assert AltCLIP.from_pretrained().dim == 16
    assert bundled.exists()
    assert bundled.covered() == COVERED


def test_a_damaged_bundled_model_is_refused_rather_than_drawn_with(stand_in):
    file = stand_in / "vae" / "diffusion_pytorch_model.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"^model: .*damaged vae/"):
        AltDiffusionPipeline.from_pretrained()


def test_an_installation_without_the_model_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(bundled, "FOLDER", tmp_path / "weights")
    assert not bundled.exists()
    with pytest.raises(ValueError, match=r"^model: .*should hold the bundled model and does not"):
        checkpoints.resolve()
    with pytest.raises(ValueError, match=r"^model: .*emoji\.json' is missing"):
        bundled.covered()


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_damaged_card_is_named(stand_in, content):
    (stand_in / "emoji.json").write_text(content)
    with pytest.raises(ValueError, match=r"^model: .*emoji\.json' is damaged"):
        bundled.card()


@pytest.mark.weights
def test_the_bundled_model_is_whole_small_and_sharded():
    bundled.verify()
    detect(bundled.FOLDER)
    files = [file for file in bundled.FOLDER.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= LIMIT
    assert all(file.stat().st_size <= SHARD_LIMIT for file in files)
    assert (bundled.FOLDER / "README.md").is_file()


@pytest.mark.weights
def test_the_bundled_model_knows_all_languages_and_at_least_600_emoji():
    card = bundled.card()
    assert card["languages"] == list(LANGUAGES) == list(SENTENCES)
    assert len(set(bundled.covered())) >= 600
    assert card["recipe"] and card["commit"] and card["figures"]


@pytest.mark.weights
def test_the_bundled_tokenizer_knows_97_in_100_names_of_every_language():
    from training.emoji import load_emoji

    tokenizer = AltCLIP.from_pretrained().tokenizer
    for tag, names in load_emoji().names.items():
        rows = tokenizer(list(names.values())).input_ids
        assert sum(tokenizer.unk_token_id in row for row in rows) < 3 * len(rows) / 100, tag
