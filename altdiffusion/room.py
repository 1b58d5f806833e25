"""Room: on the disk, asked for before work whose result would not fit; and memory, told when it is used up.

Imports nothing before it is needed: the command line asks here too.
"""

import errno
import shutil
from pathlib import Path

#: How PyTorch's allocators, C++ and oneDNN say that there is no memory.
_EXHAUSTED = ("allocate memory", "bad_alloc", "out of memory", "could not create a memory")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def is_exhausted(error: BaseException) -> bool:
    """Whether an error says that there is no memory left, in whatever words."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _EXHAUSTED)


def is_full(error: BaseException) -> bool:
    """Whether an error says that a disk takes no more, or no more of this user."""
    if isinstance(error, OSError) and error.errno in _FULL:
        return True
    return isinstance(error, Exception) and "No space left on device" in str(error)  # of Rust, or of several


def free(folder: Path) -> int:
    """Bytes that can be written to a folder, which need not be there yet."""
    return shutil.disk_usage(next(at for at in (folder, *folder.absolute().parents) if at.exists())).free


def check(folder: Path, needed: int, what: str, argument: str) -> None:
    """Refuses what takes `needed` bytes where the disk has fewer."""
    from altdiffusion.requests import BadRequest, shorten

    if needed > (left := free(folder)):
        raise BadRequest(
            f"{argument}: {shorten(str(folder))} has {readable(left)} free of the {readable(needed)} "
            f"that {what} may take; allowed a folder with more room"
        )


def readable(size: int) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size} bytes"
