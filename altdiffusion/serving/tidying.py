"""Files that a service has drawn go when their time has come."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any


def remove_old(folder: Path, age: float) -> None:
    """Of the folders in `folder`: files of so many seconds ago, and what folders that leaves empty."""
    before = time.time() - age
    for one in folder.iterdir() if folder.is_dir() else ():
        with contextlib.suppress(OSError):  # still of use, no folder, or gone meanwhile
            emptied = False
            for file in one.iterdir():
                if file.stat().st_mtime < before:
                    file.unlink()
                    emptied = True
            if emptied or one.stat().st_mtime < before:
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
