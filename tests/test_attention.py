"""`pipeline.optimize()`: what is chosen, and that pictures stay what they were."""

import numpy as np
import pytest
import torch

from altdiffusion import AltDiffusionPipeline, attention
from altdiffusion.attention import KERNELS, measure_kernels

CPU = torch.device("cpu")


def drawn(pipeline) -> np.ndarray:
    generator = torch.manual_seed(3)
    return pipeline("a cat", num_inference_steps=2, generator=generator, output_type="np").images


def test_optimizing_changes_no_picture_but_by_rounding(shared_folder):
    """Queries, keys and values by one product are the same sums; in float32 pictures agree to 1e-4."""
    pipeline = AltDiffusionPipeline.from_pretrained(shared_folder, device="cpu")
    pipeline.set_progress_bar_config(disable=True)
    before = drawn(pipeline)
    done = pipeline.optimize(batch=1)
    assert done.fused and not done.compiled and done.channels_last == torch.cuda.is_available()
    assert any(attention.fused_projections for attention in attentions(pipeline.unet))
    assert np.abs(drawn(pipeline) - before).max() < 1e-4


def attentions(unet) -> list:
    return [module for module in unet.modules() if hasattr(module, "fused_projections")]


def test_kernels_are_measured_once_for_a_device_and_shape_and_the_fastest_is_told(shared_folder):
    measure_kernels.cache_clear()
    seconds = measure_kernels(CPU, torch.float32, 2, 2, 8, 16)
    assert {"math"} <= seconds.keys() <= KERNELS.keys() and min(seconds.values()) > 0
    assert measure_kernels(CPU, torch.float32, 2, 2, 8, 16) is seconds
    assert measure_kernels(CPU, torch.float32, 4, 2, 8, 16) is not seconds


@pytest.mark.parametrize(
    ("capability", "there"), [((8, 9), False), ((9, 0), True), ((10, 3), True), ((12, 0), False)]
)
def test_cudnn_s_kernel_is_measured_only_where_pytorch_would_take_it(monkeypatch, capability, there):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert ("cudnn" in attention.kernels_on(torch.device("cuda"))) == there
    assert {"flash", "efficient", "math"} <= attention.kernels_on(torch.device("cuda")).keys()
    assert "cudnn" not in attention.kernels_on(CPU)


@pytest.mark.slow
def test_compiled_blocks_draw_the_same_picture(shared_folder):
    pipeline = AltDiffusionPipeline.from_pretrained(shared_folder, device="cpu")
    pipeline.set_progress_bar_config(disable=True)
    before = drawn(pipeline)
    assert pipeline.optimize(compile=True).compiled
    assert np.abs(drawn(pipeline) - before).max() < 1e-4
