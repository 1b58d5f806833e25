"""What the pages on pipelines, evaluation and search say runs as it stands, on small models and files."""

import shlex

import peft
import pytest
import torch
from peft.utils import get_peft_model_state_dict
from PIL import Image
from safetensors.torch import save_file

from altdiffusion.cli import main
from tests.fakes import tiny_controlnet, tiny_stock_pipeline
from tests.test_readme import ROOT, blocks


@pytest.mark.filterwarnings(
    "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"
)  # peft asks for it
@pytest.mark.filterwarnings("ignore:preset. .* is chosen by the bundled model")
def test_the_page_on_pipelines_is_right(shared_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").symlink_to(shared_folder)
    stock = tiny_stock_pipeline()
    tiny_controlnet(stock.unet).save_pretrained("controlnet")
    Image.radial_gradient("L").resize((64, 64)).save("mask.png")
    Image.radial_gradient("L").resize((64, 64)).convert("RGB").save("edges.png")
    save_file({"<felix>": torch.ones(32)}, "word.safetensors")
    stock.unet.add_adapter(peft.LoraConfig(r=2, target_modules=["to_k", "to_v"]))
    layers = get_peft_model_state_dict(stock.unet, save_embedding_layers=False)
    stock.save_lora_weights(".", unet_lora_layers=layers, weight_name="style.safetensors")
    names = {}
    for code in blocks("python", ROOT / "docs/pipelines.md"):
        exec(compile(code, "docs/pipelines.md", "exec"), names)
    assert names["picture"].size == (64, 64)
    assert names["wider"].size == (96, 64)
    assert len(names["batch"]) == 3
    assert len(names["frames"]) == 4
    assert names["windows"].shape[1] in range(154, 770, 77)


@pytest.mark.weights
def test_the_page_on_evaluation_is_right(tmp_path, monkeypatch):
    emoji = pytest.importorskip("training.emoji")
    monkeypatch.chdir(tmp_path)
    emoji.draw(emoji.centred("🦞"), 64).save("lobster.png")
    names = {}
    for code in blocks("python", ROOT / "docs/evaluation.md"):
        exec(compile(code, "docs/evaluation.md", "exec"), names)
    assert names["found"].label == "龙虾"
    assert names["alone"].shape == (1, 3)


@pytest.mark.weights
def test_the_page_on_search_is_right(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    for name in ("red", "green", "blue"):
        Image.new("RGB", (64, 64), name).save(f"pictures/{name}.png")
    for code in blocks("python", ROOT / "docs/search.md"):
        exec(compile(code, "docs/search.md", "exec"), names := {})
    assert len(names["again"]) == 3
    for line in blocks("sh", ROOT / "docs/search.md")[0].splitlines():
        assert main(shlex.split(line)[1:]) == 0
    assert (tmp_path / "found.png").is_file()
