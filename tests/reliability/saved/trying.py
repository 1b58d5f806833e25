"""How a try of these suites is counted, and how files are damaged."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.reliability.conftest import Ending, Tally

HARMS = ("flip", "cut", "remove")


@contextmanager
def tried(count: Tally, what: str, ending: Ending = "right") -> Iterator[None]:
    """One try, which ends as it should where nothing inside objects."""
    try:
        yield
    except (Exception, pytest.fail.Exception) as error:
        count.add("wrong", f"{what}: {' '.join(str(error).split()):.300}")
    else:
        count.add(ending, what)


def harm(file: Path, how: str) -> None:
    """Flips a byte in the middle, where there is one; cuts the file in half; removes it."""
    content = bytearray(file.read_bytes())
    file.unlink()  # it may be mapped, or linked to elsewhere
    if how == "cut":
        file.write_bytes(content[: len(content) // 2])
    elif how == "flip":
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
