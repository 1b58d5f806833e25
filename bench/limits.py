"""What this machine can do at most, measured: multiplications of matrices, and bytes moved.

    python -m bench.limits [--device cpu] [--size 2048]

Every share of a limit in docs/results.md is of a limit that was measured in the same run, by the same number
of threads: a data sheet's figure is never reached, and a shared machine has less. On the CPU the seconds are
those of this process (`time.process_time`) over its threads; on a GPU those between two of its events.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def seconds_of(call: Callable[[], object], device: torch.device, rounds: int = 5) -> float:
    """The least seconds of some rounds, after one that is not counted."""
    call()
    least = float("inf")
    for _ in range(rounds):
        if device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            call()
            end.record()
            torch.cuda.synchronize(device)
            least = min(least, start.elapsed_time(end) / 1000)
        else:
            before = time.process_time()
            call()
            least = min(least, (time.process_time() - before) / torch.get_num_threads())
    return least


def gemm(dtype: torch.dtype, device: torch.device, size: int = 2048) -> float:
    """Floating point operations a second of a product of two square matrices."""
    one, other = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / seconds_of(lambda: one @ other, device)


def bandwidth(device: torch.device, megabytes: int = 512) -> float:
    """Bytes a second that are read and written by a copy, each counted."""
    values = torch.ones(megabytes * 2**18, device=device)
    target = torch.empty_like(values)
    return 2 * values.nbytes / seconds_of(lambda: target.copy_(values), device)


def resident(field: str) -> int:
    """Bytes: VmRSS now, or VmHWM, the most since it was last set back."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def measure(device: torch.device, size: int = 2048, megabytes: int = 512) -> dict[str, float]:
    """`gemm fp32`, `gemm bf16` and `bandwidth`, in operations and bytes a second."""
    found = {f"gemm {name}": gemm(dtype, device, size) for name, dtype in PRECISIONS.items()}
    return found | {"bandwidth": bandwidth(device, megabytes)}


def sentence(limits: dict[str, float]) -> str:
    cells = [f"{name} {value / 1e9:,.0f} G" for name, value in limits.items()]
    return ", ".join(f"{cell}{'B/s' if cell.startswith('bandwidth') else 'FLOP/s'}" for cell in cells)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--size", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(sentence(measure(torch.device(arguments.device), arguments.size)))


if __name__ == "__main__":
    main()
