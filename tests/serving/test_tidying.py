"""What a service has drawn does not fill the disk, and what its threads needed not the memory."""

import asyncio
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from altdiffusion.serving import tidying
from altdiffusion.serving.tidying import remove_old, tidied

#: Threads that hold memory at one time; then the number of regions of arenas, which glibc aligns to 64 MB.
_THREADS = """
import ctypes, re, runpy, sys, threading
from pathlib import Path

if sys.argv[1:]:
    runpy.run_path(sys.argv[1])["share_arenas"]()
allocate, barrier = ctypes.CDLL(None).malloc, threading.Barrier(12)

def hold():
    for _ in range(100):
        allocate(ctypes.c_size_t(1000))
    barrier.wait()

threads = [threading.Thread(target=hold) for _ in range(12)]
for thread in threads: thread.start()
for thread in threads: thread.join()
maps = Path("/proc/self/maps").read_text()
starts = re.findall(r"^([0-9a-f]+)-\\S+ rw-p 0+ 00:00 0 *$", maps, re.MULTILINE)
print(sum(int(start, 16) % 2**26 == 0 for start in starts))
"""


def test_old_files_go_and_so_do_the_folders_that_they_leave_empty(tmp_path: Path):
    for name in ("empty", "old", "full"):
        (tmp_path / name).mkdir()
    for name in ("old/picture.png", "full/picture.png"):
        (tmp_path / name).touch()
    time.sleep(0.5)
    (tmp_path / "new").mkdir()
    (tmp_path / "full/newer.png").touch()
    shutil.copy2(__file__, tmp_path / "new/copied.py")  # with the time of the original
    remove_old(tmp_path, 0.4)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    assert left == {"full", "full/newer.png", "new", "new/copied.py"}


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


@pytest.mark.skipif(sys.platform != "linux", reason="counts the arenas of glibc in /proc")
def test_threads_share_their_arenas():
    def arenas(*words: str) -> int:
        command = [sys.executable, "-c", _THREADS, *words]
        return int(subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout)

    assert arenas(tidying.__file__) <= 2 < arenas()
