"""Device, number format and attention for this machine, chosen in one place.

Nothing falls back in silence: what was asked for and cannot be had is refused with the reason, and what
`auto` chose comes with its reason.
"""

import functools
import importlib.util
import time
import warnings

import torch

_DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
}
#: Parameters below which several threads wait for each other longer than they compute.
_SMALL = 50_000_000
_ATTENTION = ("auto", "xformers", "sdpa")


def choose_device(name: str | torch.device | None = None) -> torch.device:
    """The device asked for, or the fastest here: CUDA, then Apple's MPS, then the CPU."""
    if name is None or name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        raise ValueError(f"device: {name!r:.80} is no device; allowed here: {_devices()}") from None
    if not _exists(device):
        raise ValueError(f"device: {name!r:.80} is not on this machine; allowed here: {_devices()}")
    return device


def choose_dtype(
    device: str | torch.device | None = None, name: str | torch.dtype | None = None
) -> torch.dtype:
    """The number format asked for; unasked, float32 on the CPU and a half-width format on an accelerator.

    "auto" is the fastest: bfloat16 also on a CPU that gains by it, where a Stable Diffusion takes half the
    memory and half the time.
    """
    device = choose_device(device)
    if name is None or name == "auto":
        if device.type == "cpu":
            return torch.bfloat16 if name == "auto" and gains_by_bfloat16() else torch.float32
        if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16
        return torch.float16
    dtype = name if isinstance(name, torch.dtype) else _DTYPES.get(str(name))
    if dtype is None or dtype not in _DTYPES.values():
        raise ValueError(f"dtype: {name!r:.80} is not known; allowed: float32, bfloat16, float16")
    if device.type == "cpu" and dtype == torch.float16:
        raise ValueError(
            "dtype: float16 is refused on the CPU, where it is slower than float32 and overflows; "
            f"allowed here: float32{', bfloat16' if has_bfloat16() else ''}"
        )
    if device.type == "cpu" and dtype == torch.bfloat16 and not has_bfloat16():
        warnings.warn(
            "dtype: this CPU has no bfloat16 units: it halves the memory but runs slower than float32",
            stacklevel=2,
        )
    return dtype


def has_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware."""
    return any(present and "bf16" in name for name, present in torch.cpu.get_capabilities().items())


@functools.cache
def gains_by_bfloat16() -> bool:
    """Whether this CPU multiplies matrices faster in bfloat16 than in float32: measured once, in some 50 ms.

    Not every CPU with units for it does: an AMD EPYC (Zen 4) was twice as fast, an Intel Xeon half as fast.
    """
    if not has_bfloat16():
        return False
    seconds = {torch.float32: [], torch.bfloat16: []}
    for dtype in 3 * (torch.float32, torch.bfloat16):
        left, right = torch.ones(256, 1024, dtype=dtype), torch.ones(1024, 1024, dtype=dtype)
        began = time.thread_time()
        torch.mm(left, right)
        seconds[dtype].append(time.thread_time() - began)
    return min(seconds[torch.bfloat16]) < min(seconds[torch.float32])


def limit_threads(unet: torch.nn.Module) -> None:
    """One thread for a small model on the CPU, where more are no faster, and far slower beside other work.

    The bundled model's step is 800 calls of 20 to 200 microseconds; where another process has one of the
    cores, its threads spin at the end of each call (docs/results.md).
    """
    if next(unet.parameters()).device.type == "cpu" and sum(p.numel() for p in unet.parameters()) < _SMALL:
        torch.set_num_threads(1)


def choose_attention(name: str = "auto", device: str | torch.device | None = None) -> tuple[str, str]:
    """(back end, reason). `xformers` needs its package and CUDA; PyTorch's own `sdpa` works everywhere."""
    if name not in _ATTENTION:
        raise ValueError(f"attention: {name!r:.80} is not known; allowed: {', '.join(_ATTENTION)}")
    if name == "sdpa":
        return "sdpa", "asked for"
    obstacle = _xformers_obstacle(choose_device(device))
    if name == "xformers":
        if obstacle:
            raise ValueError(f"attention: 'xformers' cannot run here: {obstacle}; allowed here: auto, sdpa")
        return "xformers", "asked for"
    return ("sdpa", obstacle) if obstacle else ("xformers", "installed, and the device is CUDA")


def _xformers_obstacle(device: torch.device) -> str | None:
    if device.type != "cuda":
        return f"its kernels need CUDA and the device is {device.type}"
    if importlib.util.find_spec("xformers") is None:
        return "xformers is not installed (pip install 'altdiffusion[xformers]')"
    return None


def _exists(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count()
    if device.type == "mps":
        return torch.backends.mps.is_available()
    return device.type == "cpu"


def _devices() -> str:
    names = ["auto", "cpu"]
    if torch.cuda.is_available():
        names += [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        names.append("mps")
    return ", ".join(names)
