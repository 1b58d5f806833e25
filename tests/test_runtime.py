import pytest
import torch

from altdiffusion import runtime
from altdiffusion.runtime import choose_attention, choose_device, choose_dtype

no_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="says what holds without CUDA")


@pytest.mark.parametrize("name", [None, "auto"])
def test_unasked_the_device_is_one_that_exists(name):
    assert torch.ones(1, device=choose_device(name)).item() == 1


def test_a_device_may_be_given_as_a_name_or_an_object():
    assert choose_device("cpu") == choose_device(torch.device("cpu")) == torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "meta", ""])
def test_a_device_that_is_not_here_is_refused_with_those_that_are(name):
    with pytest.raises(ValueError, match=r"^device: '.*' is .*; allowed here: auto, cpu"):
        choose_device(name)


@no_cuda
def test_cuda_is_refused_where_there_is_none():
    with pytest.raises(ValueError, match=r"^device: 'cuda' is not on this machine; allowed here: auto, cpu"):
        choose_device("cuda")


@pytest.mark.parametrize(("units", "auto"), [(True, torch.bfloat16), (False, torch.float32)])
def test_the_cpu_computes_in_float32_unless_asked_and_auto_is_the_fastest(monkeypatch, units, auto):
    monkeypatch.setattr(runtime, "gains_by_bfloat16", lambda: units)
    assert choose_dtype("cpu") == torch.float32
    assert choose_dtype("cpu", "auto") == auto


@pytest.mark.parametrize("name", ["fp16", "float16", torch.float16])
def test_float16_on_the_cpu_is_refused_with_the_reason(name):
    with pytest.raises(ValueError, match=r"^dtype: float16 is refused on the CPU, where it is slower"):
        choose_dtype("cpu", name)


@pytest.mark.parametrize("name", ["int8", torch.int8, "floaty"])
def test_an_unknown_number_format_is_refused_with_the_known(name):
    with pytest.raises(ValueError, match=r"^dtype: .* is not known; allowed: float32, bfloat16, float16"):
        choose_dtype("cpu", name)


def test_what_a_cpu_gains_by_bfloat16_is_measured(monkeypatch):
    """The two answers, by a clock that says what each product took."""
    for seconds, gains in ((1, True), (3, False)):
        now = iter(tick for round_ in range(3) for tick in (round_ * 10, round_ * 10 + 2, 0, seconds))
        runtime.gains_by_bfloat16.cache_clear()
        monkeypatch.setattr(runtime, "has_bfloat16", lambda: True)
        monkeypatch.setattr(runtime.time, "thread_time", lambda now=now: next(now))
        assert runtime.gains_by_bfloat16() is gains
    monkeypatch.undo()
    runtime.gains_by_bfloat16.cache_clear()
    assert runtime.gains_by_bfloat16() <= runtime.has_bfloat16()


def test_bfloat16_without_hardware_is_given_with_a_warning(monkeypatch):
    monkeypatch.setattr(runtime, "has_bfloat16", lambda: False)
    with pytest.warns(UserWarning, match=r"^dtype: this CPU has no bfloat16 units"):
        assert choose_dtype("cpu", "bf16") == torch.bfloat16


def test_bfloat16_with_hardware_is_given_quietly(monkeypatch):
    monkeypatch.setattr(runtime, "has_bfloat16", lambda: True)
    assert choose_dtype("cpu", torch.bfloat16) == torch.bfloat16


def test_automatic_attention_comes_with_its_reason():
    assert choose_attention("auto", "cpu") == ("sdpa", "its kernels need CUDA and the device is cpu")
    assert choose_attention("sdpa", "cpu") == ("sdpa", "asked for")


def test_xformers_where_it_cannot_run_is_refused_with_the_reason():
    with pytest.raises(ValueError, match=r"^attention: 'xformers' cannot run here: its kernels need CUDA"):
        choose_attention("xformers", "cpu")


def test_an_unknown_attention_is_refused_with_the_known():
    with pytest.raises(ValueError, match=r"^attention: 'flash' is not known; allowed: auto, xformers, sdpa"):
        choose_attention("flash", "cpu")
