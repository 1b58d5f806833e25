"""Hub names: what would be downloaded, pinned revisions, and the cache without a network."""

import shutil
from pathlib import Path

import pytest
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HTTPError

from altdiffusion.checkpoints import find, is_hub_name, resolve
from altdiffusion.hub import wanted

SHA = "b3c429d6aa48346ab421ea314375d4a10b9b66e9"
OTHER = "0" * 40


@pytest.fixture
def cache(tmp_path, monkeypatch, published) -> Path:
    """A Hub cache with one model in two revisions, and no network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--BAAI--AltCLIP-m9"
    for revision, form in ((SHA, "m9"), (OTHER, "m18")):
        shutil.copytree(published("A", form), repository / "snapshots" / revision)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(SHA)
    return repository


def test_a_hub_name_is_read_from_the_cache_without_a_network(cache):
    layout = find("BAAI/AltCLIP-m9")
    assert (layout.format, layout.form) == ("A", "m9")
    assert layout.path == cache / "snapshots" / SHA


@pytest.mark.parametrize("error", [OSError("503"), HTTPError("Connection refused")])
def test_where_the_hub_lists_nothing_the_cache_is_read_and_not_the_whole_repository_fetched(
    cache, monkeypatch, error
):
    asked: list[dict] = []

    def fail(*arguments, **named):
        raise error

    def snapshot(*arguments, **named):
        asked.append(named)
        return snapshot_download(*arguments, **named)

    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", fail)
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    assert find("BAAI/AltCLIP-m9").path == cache / "snapshots" / SHA
    with pytest.raises(ValueError, match=rf"^model: 'a/b' is no folder here, .* nothing \({error}\); "):
        resolve("a/b")
    assert [one["local_files_only"] for one in asked] == [True, True]


def test_a_pinned_revision_is_the_one_that_is_read(cache):
    assert find("BAAI/AltCLIP-m9", revision=OTHER).form == "m18"
    with pytest.raises(ValueError, match=r"^model: 'BAAI/AltCLIP-m9' is no folder here, and the Hub gave"):
        resolve("BAAI/AltCLIP-m9", revision="1" * 40)


def test_what_lies_here_is_no_hub_name(cache, tmp_path, monkeypatch):
    assert is_hub_name("BAAI/AltCLIP-m9")
    assert not is_hub_name("m9")
    assert not is_hub_name("../a/b")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "BAAI/AltCLIP-m9").mkdir(parents=True)
    assert not is_hub_name("BAAI/AltCLIP-m9")


REPOSITORY = [
    "README.md",
    "model_index.json",
    "AltDiffusion-m18.ckpt",
    "tokenizer/sentencepiece.bpe.model",
    "unet/config.json",
    "unet/diffusion_pytorch_model.bin",
    "unet/diffusion_pytorch_model.safetensors",
    "unet/diffusion_pytorch_model.fp16.safetensors",
    "vae/diffusion_pytorch_model.bin",
    "text_encoder/model.safetensors.index.json",
    "text_encoder/model-00001-of-00002.safetensors",
    "text_encoder/model-00002-of-00002.safetensors",
    "text_encoder/pytorch_model.bin",
    "text_encoder/flax_model.msgpack",
]


def test_each_part_is_downloaded_once_and_nothing_that_is_not_read():
    assert set(REPOSITORY) - set(wanted(REPOSITORY)) == {
        "AltDiffusion-m18.ckpt",
        "unet/diffusion_pytorch_model.bin",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "text_encoder/pytorch_model.bin",
        "text_encoder/flax_model.msgpack",
    }


def test_a_variant_is_downloaded_where_there_is_one():
    chosen = wanted(REPOSITORY, "fp16")
    assert [name for name in chosen if name.startswith("unet/d")] == [
        "unet/diffusion_pytorch_model.fp16.safetensors"
    ]
    assert "vae/diffusion_pytorch_model.bin" in chosen


def test_a_repository_of_one_file_gives_that_file():
    assert wanted(["model.ckpt", "config.yaml", "picture.png"]) == ["model.ckpt", "config.yaml"]
    assert wanted(["config.json", "pytorch_model.fp16.bin"]) == ["config.json", "pytorch_model.fp16.bin"]
