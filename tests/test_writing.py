"""Conversion loses nothing: every format to stock classes, to a single file, and back, bit for bit."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from altdiffusion import bundled, writing
from altdiffusion.layouts import Source, detect, read
from altdiffusion.reading import read_folder, read_tensors
from tests import published
from tests.fakes import tiny_altclip_folder, tiny_pipeline_folder

FORMS = ("m9", "m18")
CASES = [(name, form) for name in "ABCDE" for form in FORMS]
PARTS = ("text_encoder", "unet", "vae", "safety_checker")


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def case(request, tmp_path_factory) -> tuple[str, Path, Source]:
    """Format, path and contents of a published checkpoint."""
    name, form = request.param
    path = published.write(name, tmp_path_factory.mktemp(f"{name}-{form}") / "source", form)
    return name, path, read(detect(path))


@pytest.fixture(scope="module")
def stock(case, tmp_path_factory) -> Path:
    return writing.save_stock(case[2], tmp_path_factory.mktemp("stock") / "model").path


def assert_same(expected: dict, found: dict) -> None:
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert tensor.dtype == found[name].dtype, name
        assert torch.equal(tensor, found[name]), name


def published_contents(path: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a published checkpoint; a folder's with its part's name in front."""
    if path.is_file():
        content = read_tensors(path)
        return content.get("state_dict", content)
    if (path / "config.json").is_file():
        return read_folder(path)
    parts = [part for part in PARTS if (path / part).is_dir()]
    return {f"{part}/{name}": t for part in parts for name, t in read_folder(path / part).items()}


def test_the_stock_folder_read_again_is_the_source_tensor_by_tensor(case, stock):
    _, _, source = case
    again = read(detect(stock))
    assert again.layout.format == ("stock pipeline" if source.layout.draws else "stock altclip")
    assert again.layout.form == source.layout.form
    assert again.parts.keys() == source.parts.keys()
    for name, part in source.parts.items():
        assert_same(part.tensors, again.parts[name].tensors)
    assert_same(source.left, again.left)
    assert again.scheduler == source.scheduler


def test_the_stock_folder_names_stock_classes_and_the_terms(case, stock):
    name, path, source = case
    card = (stock / "README.md").read_text()
    assert "license: creativeml-openrail-m\n" in card and "Attachment A" in card
    family = "AltDiffusion" if source.layout.draws else "AltCLIP"
    assert f"- BAAI/{family}" in card and "- en\n- zh\n" in card
    assert ("- th\n" in card) == (source.layout.form == "m18")
    for text in (file.read_text() for file in stock.rglob("*.json") if file.name != "tokenizer.json"):
        assert "alt_diffusion" not in text and "RobertaSeries" not in text and str(path.parent) not in text
    bundled.verify(stock)
    assert "published.safetensors" in json.loads((stock / "manifest.json").read_text())
    assert not [file for file in stock.parent.iterdir() if file.name.startswith(".")]
    assert (name in "AE") == (stock / "config.json").is_file()


@pytest.mark.parametrize("case", [case for case in CASES if case[0] in "ABC"], ids="-".join, indirect=True)
def test_the_way_back_restores_the_published_tensors_bit_for_bit(case, stock, tmp_path):
    name, path, _ = case
    target = tmp_path / ("back.safetensors" if name == "C" else "back")
    writing.save_published(read(detect(stock)), name, target)
    assert_same(published_contents(path), published_contents(target))
    again = detect(target)
    assert (again.format, again.form) == (name, detect(path).form)


def test_the_single_file_read_again_is_the_source(case, tmp_path):
    _, _, source = case
    written = writing.save_single_file(source, tmp_path / "one" / "model.safetensors")
    again = read(detect(written.path))
    assert again.layout.form == source.layout.form
    assert again.tokenizer == tmp_path / "one" / "tokenizer"
    for name in ("text_encoder", "unet", "vae") if source.layout.draws else ("text_encoder", "altclip"):
        assert_same(source.parts[name].tensors, again.parts[name].tensors)
    assert_same({name: source.left[name] for name in again.left}, again.left)


def test_a_single_file_keeps_the_configuration_that_shapes_do_not_tell(tmp_path):
    """The emoji model's scheduler predicts velocities, and its tower has heads of 8 channels."""
    source = read(detect(tiny_pipeline_folder(tmp_path / "model")))
    writing.save_single_file(source, tmp_path / "model.safetensors")
    again = read(detect(tmp_path / "model.safetensors"), tokenizer=tmp_path / "model/tokenizer")
    assert again.layout.form == "own"
    assert again.scheduler == source.scheduler
    for name in ("text_encoder", "unet", "vae"):
        assert again.parts[name].config == source.parts[name].config


@pytest.mark.parametrize("make", [tiny_pipeline_folder, tiny_altclip_folder])
def test_a_stock_model_is_copied_with_its_card_and_what_goes_with_it(tmp_path, make):
    folder = make(tmp_path / "model")
    source = read(detect(folder))
    copy = writing.save_stock(source, tmp_path / "copy").path
    again = read(detect(copy))
    for name, part in source.parts.items():
        assert_same(part.tensors, again.parts[name].tensors)
    assert not (copy / "published.safetensors").exists()
    for name in ("README.md", "emoji.json"):
        assert (copy / name).exists() == (folder / name).exists()
        assert not (folder / name).exists() or (copy / name).read_bytes() == (folder / name).read_bytes()
    with pytest.raises(ValueError, match=r"^to: a stock model has no published form"):
        writing.save_published(source, "B", tmp_path / "back")


def test_plain_diffusers_and_transformers_open_what_is_written(tmp_path):
    """In a process that cannot import altdiffusion, and with the numbers that ours gives."""
    from altdiffusion import AltDiffusionPipeline

    source = read(detect(published.write("D", tmp_path / "source", "m18")))
    folder = writing.save_stock(source, tmp_path / "model").path
    code = f"""
import sys; sys.modules["altdiffusion"] = None
import torch
from diffusers import DiffusionPipeline
from transformers import AltCLIPModel
pipeline = DiffusionPipeline.from_pretrained({str(folder)!r})
AltCLIPModel.from_pretrained({str(folder / "altclip")!r})
torch.save(pipeline.encode_prompt("a red lobster", "cpu", 1, False)[0], {str(tmp_path / "embeds.pt")!r})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ours = AltDiffusionPipeline.from_pretrained(folder, device="cpu")
    embeds = ours.encode_prompt("a red lobster", "cpu", 1, False)[0]
    torch.testing.assert_close(torch.load(tmp_path / "embeds.pt"), embeds, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_as_it_is(tmp_path, dtype):
    path = published.write("A", tmp_path / "source", "m18", dtype=dtype, safetensors=True)
    stock = writing.save_stock(read(detect(path)), tmp_path / "stock").path
    assert {t.dtype for t in read_folder(stock).values()} == {dtype}
    writing.save_published(read(detect(stock)), "A", tmp_path / "back")
    assert_same(read_folder(path), read_folder(tmp_path / "back"))


def test_averaged_weights_beside_the_raw_ones_come_back(tmp_path):
    path = published.write("C", tmp_path / "source", "m9", ema=True)
    stock = writing.save_stock(read(detect(path)), tmp_path / "stock").path
    writing.save_published(read(detect(stock)), "C", tmp_path / "back.safetensors")
    assert_same(published_contents(path), read_tensors(tmp_path / "back.safetensors"))


def test_nothing_is_left_where_the_comparison_fails(tmp_path, monkeypatch):
    """A written tensor that differs in one bit is found, and the target never appears."""
    source = read(detect(published.write("A", tmp_path / "source", "m9")))
    save = writing._save_model

    def damaged(kind, part, place):
        tensors = {
            **part.tensors,
            "logit_scale": torch.nextafter(part.tensors["logit_scale"], torch.tensor(9.0)),
        }
        save(kind, type(part)(part.config, tensors), place)

    monkeypatch.setattr(writing, "_save_model", damaged)
    with pytest.raises(ValueError, match=r"^target: tensor 'logit_scale' of altclip is not the source's"):
        writing.save_stock(source, tmp_path / "out" / "model")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("taken", ["file", "folder"])
def test_what_lies_at_the_target_is_never_overwritten(tmp_path, taken):
    source = read(detect(published.write("A", tmp_path / "source", "m9")))
    target = tmp_path / "target"
    target.mkdir() if taken == "folder" else target.write_text("mine")
    if taken == "folder":
        (target / "diary.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"^target: .* exists; allowed: a new name"):
        writing.save_stock(source, target)


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_another_made_at_the_target_meanwhile_stays(tmp_path, monkeypatch, kind):
    source = read(detect(published.write("A", tmp_path / "source", "m9")))
    target = tmp_path / "out" / ("model" if kind == "folder" else "model.safetensors")
    mine = target / "diary.txt" if kind == "folder" else target
    real = writing._verified

    def meanwhile(*given):
        mine.parent.mkdir(exist_ok=True)
        mine.write_text("mine")
        return real(*given)

    monkeypatch.setattr(writing, "_verified", meanwhile)
    with pytest.raises(ValueError, match=r"^target: .* exists; allowed: a new name"):
        (writing.save_stock if kind == "folder" else writing.save_single_file)(source, target)
    assert mine.read_text() == "mine"


def test_a_layout_that_needs_what_the_source_lacks_is_refused(tmp_path):
    source = read(detect(published.write("A", tmp_path / "source", "m9")))
    with pytest.raises(ValueError, match=r"^to: the source holds no unet; allowed for B"):
        writing.save_published(source, "B", tmp_path / "back")
    with pytest.raises(ValueError, match=r"^to: the source holds no unet; allowed for C"):
        writing.save_published(source, "C", tmp_path / "back.safetensors")
    with pytest.raises(ValueError, match=r"^target: 'a\.ckpt' is no safetensors file"):
        writing.save_single_file(source, tmp_path / "a.ckpt")
