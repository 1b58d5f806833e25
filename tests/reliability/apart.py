"""Calls in a process of their own, which may hang, eat memory and die."""

import multiprocessing
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Ended:
    """How a call ended: its result or its error as text, CPU seconds, and bytes of memory it grew by."""

    result: Any = None
    error: str | None = None
    kind: str | None = None
    """Of the error, by its class's name; `Timeout` and `Killed` are ours."""
    seconds: float = 0.0
    grown: int = 0


def apart(call: Callable[[], Any], *, seconds: float = 20, memory: int = 1 << 31) -> Ended:
    """`call` gives what can be pickled. It may take so long by the clock, and so much address space more."""
    fork = multiprocessing.get_context("fork")  # what is imported and loaded here is there at once
    ours, theirs = fork.Pipe(duplex=False)
    process = fork.Process(target=_run, args=(call, theirs, memory), daemon=True)
    process.start()
    theirs.close()
    try:
        if not ours.poll(seconds):
            return Ended(error=f"still running after {seconds:g} s", kind="Timeout", seconds=seconds)
        return ours.recv()
    except EOFError:
        process.join()
        return Ended(error=f"ended by {process.exitcode}", kind="Killed")
    finally:
        process.kill()
        process.join()


def _run(call: Callable[[], Any], answer: Any, memory: int) -> None:
    size, resident = _pages()
    resource.setrlimit(resource.RLIMIT_AS, (size + memory, resource.RLIM_INFINITY))
    began = time.process_time()
    try:
        fields: dict[str, Any] = {"result": call()}
    except BaseException as error:
        fields = {"error": str(error), "kind": type(error).__name__}
    seconds = time.process_time() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    answer.send(Ended(**fields, seconds=seconds, grown=max(0, peak - resident)))


def _pages() -> tuple[int, int]:
    """Bytes of address space, and of memory."""
    with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123 (no object more than needed)
        size, resident, *_ = map(int, file.read().split())
    return size * resource.getpagesize(), resident * resource.getpagesize()
