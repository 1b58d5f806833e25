"""B1: whatever is in a picture file, it opens or is refused by its name, in a second and 300 MB."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from altdiffusion.images import ImageError, open_image
from tests.reliability.apart import apart
from tests.reliability.malformed import FILES, mutated, seeds

MB = 2**20
MOST, SECONDS = 300 * MB, 1.0
ROOT = Path(__file__).parents[2]
linux = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is measured on Linux")


def size_of(file: Path) -> tuple[str, tuple[int, int]]:
    image = open_image(file)
    return image.mode, image.size


@linux
def test_files_by_hand(tmp_path, tally):
    counted = tally("B1 malformed pictures")
    for number, (what, (make, must)) in enumerate(FILES.items()):
        file = tmp_path / f"holiday-{number}.png"
        file.write_bytes(make())
        ended = apart(lambda file=file: size_of(file))
        ending, wrong = "right", ""
        if ended.error is not None:
            ending = "refused"
            named = (
                ended.kind == "ImageError" and ended.error.startswith("image: ") and file.name in ended.error
            )
            if not named or "\n" in ended.error or len(ended.error) > 500:
                wrong = f"{ended.kind}: {ended.error[:200]}"
        elif ended.result[0] != "RGB":
            wrong = f"is {ended.result}"
        if must not in (None, ending):
            wrong = wrong or f"ended {ending}, not {must}"
        if ended.seconds > SECONDS or ended.grown > MOST:
            wrong = wrong or f"took {ended.seconds:.1f} s and {ended.grown // MB} MB"
        counted.add("wrong" if wrong else ending, f"{what}: {wrong}")
    counted.check(45)


def tried(numbers: range) -> tuple[int, int, list[str]]:
    """How many of these mutations opened and were refused, and what went wrong with others."""
    import time

    start, right, refused, wrongs = seeds(), 0, 0, []
    for number in numbers:
        data = mutated(start[number % len(start)], random.Random(number))
        began = time.process_time()
        try:
            right += open_image(data).mode == "RGB"
        except ImageError as refusal:
            refused += 1
            text = str(refusal)
            if not text.startswith("image: picture") or "\n" in text or len(text) > 500:
                wrongs.append(f"{number}: {text[:200]}")
        except Exception as error:
            wrongs.append(f"{number}: {type(error).__name__}: {error}")
        if (seconds := time.process_time() - began) > SECONDS:
            wrongs.append(f"{number}: {seconds:.1f} s")
    return right, refused, wrongs


@linux
def test_mutations_of_good_files(tally, amount):
    """In batches, each in a process of its own: the memory is that of the greediest of them and more."""
    counted, tries, batch = tally("B1 malformed pictures"), amount(200, 7000), 200
    for first in range(0, tries, batch):
        ended = apart(lambda first=first: tried(range(first, first + batch)), seconds=120)
        if ended.error is not None:
            counted.add("wrong", f"{first} and on: {ended.kind}: {ended.error}")
            continue
        right, refused, wrongs = ended.result
        wrongs += [f"{first} and on: {ended.grown // MB} MB"] if ended.grown > MOST else []
        for ending, times in (("right", right), ("refused", refused - len(wrongs))):
            for _ in range(times):
                counted.add(ending)
        for wrong in wrongs:
            counted.add("wrong", wrong)
    counted.check(tries)


@linux
def test_what_atheris_makes_of_good_files(tally, amount, tmp_path):
    pytest.importorskip("atheris")
    counted, tries = tally("B1 malformed pictures"), amount(100, 3000)
    command = [sys.executable, "-m", "tests.reliability.fuzz_pictures", str(tmp_path / "report"), str(tries)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=1800)
    assert (tmp_path / "report").exists(), done.stderr[-2000:]
    report = json.loads((tmp_path / "report").read_text())
    for ending, times in report["counts"].items():
        for _ in range(times):
            counted.add(ending)
    for wrong in report["wrongs"]:
        counted.add("wrong", wrong)
    counted.check(tries)
