"""Models in memory once, and pictures decoded in the memory that there is."""

import json
import sys
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file
from transformers import AltCLIPTextConfig, AltCLIPTextModel

from altdiffusion import checkpoints, memory
from altdiffusion.reading import let_go, mapped_spans, read_tensors

linux = pytest.mark.skipif(sys.platform != "linux", reason="memory is let go of on Linux")


def status(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


@linux
def test_a_model_is_loaded_into_the_memory_of_its_weights(tmp_path: Path):
    """A wide vocabulary in bf16, 100 MB; read and copied at once it would take twice that."""
    config = AltCLIPTextConfig(
        vocab_size=250_000, hidden_size=200, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2
    )
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in AltCLIPTextModel(config).state_dict().items()}
    tensors = {name: torch.full(shape, 0.5, dtype=torch.bfloat16) for name, shape in shapes.items()}
    weights = sum(tensor.nbytes for tensor in tensors.values())
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    del tensors
    checkpoints.load_strict(
        AltCLIPTextModel, tmp_path, dtype=torch.bfloat16
    )  # what is imported and set up once
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # sets VmHWM back: proc(5)
    before = status("VmRSS")
    model = checkpoints.load_strict(AltCLIPTextModel, tmp_path, dtype=torch.bfloat16)
    assert status("VmHWM") - before < 1.3 * weights
    assert model.roberta.embeddings.word_embeddings.weight[-1, -1] == 0.5


@linux
def test_what_was_let_go_of_is_read_again_and_other_memory_is_left_alone(tmp_path: Path):
    save_file({"mapped": torch.arange(2.0**20)}, tmp_path / "model.safetensors")
    mapped, own = read_tensors(tmp_path / "model.safetensors")["mapped"], torch.arange(2.0**20)
    spans = mapped_spans()
    for tensor in (mapped, own):
        let_go(tensor, spans)
        assert torch.equal(tensor, torch.arange(2.0**20))


def small_vae(dtype: torch.dtype = torch.float32) -> AutoencoderKL:
    torch.manual_seed(0)
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    vae = AutoencoderKL(**blocks, block_out_channels=[8, 16], norm_num_groups=4, sample_size=16)
    return torch.nn.Module.to(vae, dtype).eval()


@pytest.mark.parametrize(
    ("free", "slices", "tiles"), [(10**12, False, False), (300_000, True, False), (50_000, True, True)]
)
def test_slices_and_tiles_are_used_where_the_pictures_would_not_fit(
    monkeypatch, recwarn, free, slices, tiles
):
    """32 x 32 pixels, 16 channels, 4 bytes, 4 alive: 262 kB a picture."""
    monkeypatch.setattr(memory, "free_bytes", lambda device: free)
    monkeypatch.setattr(memory, "_SHARE", 1)
    vae = small_vae()
    assert memory.decoding_bytes(vae, 32, 32) == 262_144
    with memory.fitted_decoding(vae, 32, 32, 2, torch.device("cpu")):
        assert (vae.use_slicing, vae.use_tiling) == (slices, tiles)
    assert (vae.use_slicing, vae.use_tiling) == (False, False)
    assert [str(warning.message)[:30] for warning in recwarn] == ["size: 32x32 is decoded in tile"] * tiles


def test_slices_and_tiles_that_were_on_before_stay_on_and_without_a_warning(monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda device: 50_000)
    vae = small_vae()
    vae.enable_slicing()
    vae.enable_tiling()
    with pytest.raises(KeyboardInterrupt), memory.fitted_decoding(vae, 32, 32, 2, torch.device("cpu")):
        raise KeyboardInterrupt
    assert (vae.use_slicing, vae.use_tiling) == (True, True)


def test_the_memory_that_can_be_had_is_known():
    assert 2**20 < memory.free_bytes(torch.device("cpu")) < 2**50


@torch.no_grad()
def test_a_float16_decoder_that_overflows_decodes_in_float32():
    vae = small_vae(torch.float16)
    memory.decode_without_overflow(vae)
    latents = torch.randn(1, 4, 8, 8, dtype=torch.float16)
    assert vae.decode(latents).sample.dtype == torch.float16
    vae.decoder.conv_out.weight.mul_(300_000)
    found = vae.decode(latents).sample
    assert found.dtype == torch.float32 and torch.isfinite(found).all()
    assert vae.dtype == torch.float16
