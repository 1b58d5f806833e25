"""What a service no longer needs goes: files that it drew, and memory that many threads needed once."""

import asyncio
import contextlib
import ctypes
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

_M_ARENA_MAX = -8  # of glibc's mallopt(3)


def share_arenas(count: int = 2) -> None:
    """Threads to come share `count` arenas of memory, where the C library is glibc.

    It gives each thread one of its own, eight to a core, and hardly gives back what they hold: every burst of
    visitors, who are served by threads, left some in another one.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library, or another system
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, count)


def remove_old(folder: Path, age: float) -> None:
    """Of the folders in `folder`: files that came so many seconds ago, and what folders that leaves empty.

    A copy has its original's time of change, so what counts is the time of its own last change (ctime).
    """
    before = time.time() - age
    for one in folder.iterdir() if folder.is_dir() else ():
        with contextlib.suppress(OSError):  # still of use, no folder, or gone meanwhile
            emptied = False
            for file in one.iterdir():
                if file.stat().st_ctime < before:
                    file.unlink()
                    emptied = True
            if emptied or one.stat().st_ctime < before:
                one.rmdir()


def tidied(folder: Path, every: float, age: float) -> Callable[[Any], Any]:
    """The lifespan of an ASGI application: `remove_old` runs, also when nobody asks for anything."""

    async def tidy() -> None:
        while True:
            await asyncio.sleep(every)
            await asyncio.to_thread(remove_old, folder, age)

    @contextlib.asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        tidying = asyncio.create_task(tidy())
        try:
            yield
        finally:
            tidying.cancel()

    return lifespan
