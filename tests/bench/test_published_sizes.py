"""The memory bench writes what it says, and its models load and run: here at narrow widths."""

import pytest

from altdiffusion.layouts import detect
from bench import published_sizes


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch):
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2}
    monkeypatch.setitem(published_sizes.TEXT, "vocab_size", 99)
    for name, value in tower.items():
        monkeypatch.setitem(published_sizes.TEXT, name, value)
        for vision in (published_sizes.VISION_L, published_sizes.VISION_H):
            monkeypatch.setitem(vision, name, value)
    for part in (published_sizes.UNET_1, published_sizes.UNET_2, published_sizes.VAE):
        monkeypatch.setitem(part, "block_out_channels", [32, 32, 64, 64])
    monkeypatch.setitem(published_sizes.UNET_2, "attention_head_dim", 4)


@pytest.mark.parametrize("model", ["m2", "m18"])
def test_a_model_of_the_bench_is_a_published_one_and_is_measured(tmp_path, model):
    form = "m18" if model == "m18" else "m9"
    for task, (write, use) in published_sizes.TASKS.items():
        folder = tmp_path / task
        write(model, folder)
        found = detect(folder)
        assert (found.format, found.form) == ("B" if task == "AltDiffusion" else "A", form)
        figures = use(folder)
        assert figures["parameters"] > 10_000
        assert 0.1 < figures["peak_gib"] < 12
        assert figures["load_s"] >= 0 and figures["run_s"] >= 0
