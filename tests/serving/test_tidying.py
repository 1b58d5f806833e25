"""What a service has drawn does not fill the disk."""

import asyncio
import os
from pathlib import Path

from altdiffusion.serving.tidying import remove_old, tidied


def test_old_files_go_and_so_do_the_folders_that_they_leave_empty(tmp_path: Path):
    for name in ("empty", "old", "full", "new"):
        (tmp_path / name).mkdir()
    for name in ("old/picture.png", "full/picture.png", "full/newer.png"):
        (tmp_path / name).touch()
    for name in ("old/picture.png", "full/picture.png", "empty"):
        os.utime(tmp_path / name, (0, 0))
    remove_old(tmp_path, 60.0)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    assert left == {"full", "full/newer.png", "new"}


def test_a_folder_that_is_not_there_yet_is_waited_for(tmp_path: Path):
    async def served() -> None:
        async with tidied(tmp_path / "later", every=0.01, age=0.0)(None):
            await asyncio.sleep(0.05)
            (tmp_path / "later/one").mkdir(parents=True)
            for _ in range(500):
                await asyncio.sleep(0.01)
                if not (tmp_path / "later/one").exists():
                    return
        raise AssertionError("the empty folder stayed")

    asyncio.run(served())
