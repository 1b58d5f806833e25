"""Kills builds at random moments and looks at what is left.

`python -m tests.retrieval.killing FOLDER TRIALS`

Every trial runs in forks of one process that has imported torch and loaded the encoder, and has not touched
the engine, whose threads a fork would lose. Prints a line of JSON for each trial.
"""

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from altdiffusion import AltCLIP, ImageIndex
from altdiffusion.retrieval import filling, manifest
from tests.fakes import tiny_altclip_folder

COUNT, BATCH = 120, 8


def in_a_fork(work: Callable[[int], None]) -> tuple[int, int]:
    """(process, end of a pipe): `work` gets the other end."""
    read, write = os.pipe()
    process = os.fork()
    if process == 0:
        code = 1
        try:
            os.close(read)
            work(write)
            code = 0
        finally:
            os._exit(code)
    os.close(write)
    return process, read


def finish(process: int, read: int) -> bytes:
    with os.fdopen(read, "rb") as stream:
        said = stream.read()
    os.waitpid(process, 0)
    return said


def build(clip: AltCLIP, pictures: Path, folder: Path, write: int) -> None:
    """Says a byte at its start, one for each acknowledged batch, and one at its end."""
    os.write(write, b"s")
    ImageIndex.build(clip, pictures, folder, progress=lambda done, of: os.write(write, b"a") and None).close()
    os.write(write, b"e")


def look(clip: AltCLIP, pictures: Path, folder: Path, write: int) -> None:
    """How many are there after a kill; then the build is gone on with, and all its vectors told."""
    found = 0
    if manifest.exists(folder):
        with ImageIndex.open(folder, clip) as index:
            found = len(index)
    with ImageIndex.build(clip, pictures, folder) as index:
        hits = index.search(image=pictures / "0.png", k=1000, alike=None)
        scores = {hit.path.name: round(hit.score, 4) for hit in hits}
        told = {"found": found, "unchanged": index.report.unchanged, "scores": scores}
    os.write(write, json.dumps(told).encode())


def main(folder: Path, trials: int) -> None:
    torch.set_num_threads(1)
    filling.BATCH = BATCH
    clip = AltCLIP.from_pretrained(tiny_altclip_folder(folder / "clip"), device="cpu")
    clip.encode_text("a")
    pictures = folder / "pictures"
    pictures.mkdir()
    for n in range(COUNT):
        noise = np.random.default_rng(n).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((48, 48)).save(pictures / f"{n}.png")
    start = time.perf_counter()
    finish(*in_a_fork(lambda write: build(clip, pictures, folder / "whole", write)))
    whole = time.perf_counter() - start
    expected = json.loads(finish(*in_a_fork(lambda write: look(clip, pictures, folder / "whole", write))))
    for trial in range(trials):
        target = folder / f"trial-{trial}"
        process, read = in_a_fork(lambda write, target=target: build(clip, pictures, target, write))
        chance = random.Random(trial)
        said = os.read(read, 1)
        for _ in range(chance.randrange(COUNT // BATCH)):
            said += os.read(read, 1)
        time.sleep(2 * whole / (COUNT // BATCH) * chance.random())
        os.kill(process, signal.SIGKILL)
        acknowledged = (said + finish(process, read)).count(b"a") * BATCH
        left = json.loads(
            finish(*in_a_fork(lambda write, target=target: look(clip, pictures, target, write)))
        )
        told = {
            "acknowledged": acknowledged,
            "of": COUNT,
            "found": left["found"],
            "unchanged": left["unchanged"],
            "whole": left["scores"] == expected["scores"] and len(left["scores"]) == COUNT,
        }
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
