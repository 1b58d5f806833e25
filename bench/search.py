"""Search speed, recall and memory against numpy's brute force.

    OMP_NUM_THREADS=1 python -m bench.search      200,000 vectors; a few minutes; numpy on one thread, as ours
    python -m bench.search --vectors 1000000      the full size; needs 4 GB of memory and 10 GB of disk
    python -m bench.search --write                also into docs/results.md

Two sets: `clusters`, 768 numbers each, synthetic, pictures and texts each in a region of their own as CLIP's
are; and `emoji`, 256 numbers each, made by mixing what the bundled model gives for pictures of emoji and
their neighbours, and asked for by its texts in 18 languages. Numpy is `matrix @ query`, then `argpartition`;
both are asked in turn, so that what a busy machine costs one it costs the other.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil

from altdiffusion.retrieval import engines
from altdiffusion.retrieval.embedded import EmbeddedEngine
from altdiffusion.retrieval.pictures import Picture
from altdiffusion.retrieval.queries import Frame, Part, unit
from altdiffusion.retrieval.where import ANYWHERE
from bench.report import Start, origin, parser, tell

K, BLOCK, EXACT = 10, 128, 100_000


def clusters(count: int, queries: int) -> tuple[np.ndarray, np.ndarray]:
    random, dim = np.random.default_rng(0), 768
    centres = random.standard_normal((max(100, count // 50), dim), dtype=np.float32)
    gaps = 1.5 * random.standard_normal((2, dim), dtype=np.float32)

    def some(number: int, gap: np.ndarray) -> np.ndarray:
        noise = random.standard_normal((number, dim), dtype=np.float32)
        return unit(centres[random.integers(0, len(centres), number)] + 0.8 * noise + gap)

    images = np.empty((count, dim), np.float32)
    for first in range(0, count, 50_000):
        images[first : first + 50_000] = some(min(50_000, count - first), gaps[0])
    return images, some(queries, gaps[1])


def emoji(count: int, queries: int) -> tuple[np.ndarray, np.ndarray]:
    """Real pictures of one to three emoji; each vector leans to one of its ten nearest and to any other."""
    from altdiffusion import LANGUAGES, AltCLIP
    from training.emoji import draw, load_emoji, random_scene

    known, random = load_emoji(), np.random.default_rng(0)
    clip = AltCLIP.from_pretrained(device="cpu", dtype="float32")
    chosen = [
        tuple(random.choice(known.characters, random.integers(1, 4), replace=False)) for _ in range(2000)
    ]
    real = clip.encode_image([draw(random_scene(3, n, each), 64) for n, each in enumerate(chosen)]).numpy()
    near = np.argsort(-(real @ real.T), axis=1)[:, 1:11]
    images = np.empty((count, real.shape[1]), np.float32)
    for first in range(0, count, 50_000):
        number = min(50_000, count - first)
        base, other = random.integers(0, len(real), (2, number))
        neighbour = near[base, random.integers(0, 10, number)]
        lean, stray = 0.5 * random.random((number, 1)), 0.3 * random.random((number, 1))
        mixed = real[base] * (1 - lean - stray) + real[neighbour] * lean + real[other] * stray
        images[first : first + number] = unit(mixed)
    tags = list(LANGUAGES)
    texts = [known.names[tags[n % len(tags)]][chosen[n][0]] for n in range(queries)]
    return images, clip.encode_text(texts).numpy()


def store(folder: Path, images: np.ndarray, frame: Frame, signs: bool) -> tuple[EmbeddedEngine, float]:
    start = time.perf_counter()
    engine = EmbeddedEngine(folder, images.shape[1], threads=1)
    for first in range(0, len(images), BLOCK):
        block = images[first : first + BLOCK]
        pictures = [
            Picture(f"{number // 1000}/{number}.jpg", 100_000, number, f"{number:064x}", 64, 64)
            for number in range(first, first + len(block))
        ]
        engine.store(pictures, frame.picture(block))
    engines.EXACT_UP_TO = 0 if signs else len(images)
    engine.settle()
    return engine, time.perf_counter() - start


def compare(engine: EmbeddedEngine, images: np.ndarray, texts: np.ndarray, frame: Frame) -> dict[str, float]:
    """Medians in milliseconds, of the clock and of all this process's threads; who is asked first changes.

    Every query is asked once before: pages of a mapped file cost most when they are first touched.
    """
    hits = 0

    def ours(text: np.ndarray) -> set[int]:
        found = engine.search(frame.query([Part(text, text)]).vector, K, ANYWHERE)
        return {one.picture.mtime_ns for one in found}

    def numpys(text: np.ndarray) -> set[int]:
        scores = images @ text
        return set(np.argpartition(-scores, K)[:K].tolist())

    asked: dict[str, Callable[[np.ndarray], set[int]]] = {"": ours, "numpy_": numpys}
    times: dict[str, list[tuple[float, float]]] = {"": [], "numpy_": []}
    for text in texts:
        hits += len(ours(text) & numpys(text))
    for number, text in enumerate(texts):
        for which in ("", "numpy_") if number % 2 else ("numpy_", ""):
            clock, work = time.perf_counter(), time.process_time()
            asked[which](text)
            times[which].append((time.perf_counter() - clock, time.process_time() - work))
    figures: dict[str, float] = {}
    for which, pairs in times.items():
        figures[f"{which}ms"], figures[f"{which}cpu_ms"] = (1000 * np.median(pairs, axis=0)).tolist()
    return {
        **figures,
        "ratio": figures["numpy_ms"] / figures["ms"],
        "cpu_ratio": figures["numpy_cpu_ms"] / figures["cpu_ms"],
        "recall@10": hits / (K * len(texts)),
    }


def resident(folder: Path, texts: np.ndarray, frame: Frame, signs: bool) -> dict[str, float]:
    """Of a process of its own that only opens the index and searches, above what its imports take."""
    queries = np.stack([frame.query([Part(text, text)]).vector for text in texts])
    np.save(folder.parent / "queries.npy", queries)
    command = [
        sys.executable,
        "-m",
        "bench.search",
        "--resident",
        str(folder),
        *(["--signs"] if signs else []),
    ]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    vectors = len(texts[0]) * 4 * int(json.loads(done.stdout)["count"])
    return {**json.loads(done.stdout), "vector_bytes": vectors, "disk_bytes": _disk(folder)}


def _disk(folder: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def measure_resident(folder: Path, signs: bool) -> None:
    texts, process = np.load(folder.parent / "queries.npy"), psutil.Process()
    np.dot(texts, texts.T)  # so that its own memory is not counted
    before = process.memory_full_info().pss
    engine = EmbeddedEngine(folder, texts.shape[1], signs=signs, threads=1)
    for text in texts:
        engine.search(text, K, ANYWHERE)
    print(json.dumps({"count": len(engine), "resident_bytes": process.memory_full_info().pss - before}))


def run(name: str, count: int, queries: int, scratch: Path) -> dict:
    images, texts = {"clusters": clusters, "emoji": emoji}[name](count, queries)
    frame, rows = Frame(images[:: max(1, count // 128)].mean(axis=0), texts.mean(axis=0)), []
    for signs in (False, True):
        part = images if signs else images[:EXACT]
        folder = scratch / f"{name}-{signs}" / "vectors"
        folder.parent.mkdir()
        engine, seconds = store(folder, part, frame, signs)
        row = {
            "set": name,
            "dim": images.shape[1],
            "vectors": len(part),
            "way": "signs" if signs else "exact",
        }
        row |= {"build_s": seconds, **compare(engine, part, texts, frame)}
        engine.close()
        row |= resident(folder, texts, frame, signs)
        rows.append(row)
        print(json.dumps(row), flush=True)
    return {"rows": rows}


def table(report: dict) -> str:
    lines = [
        "| set | vectors | way | clock | numpy | ratio | work | numpy | ratio | recall@10 | memory | build |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in report["rows"]:
        share = row["resident_bytes"] / row["vector_bytes"]
        lines.append(
            f"| {row['set']} | {row['vectors']:,} x {row['dim']} | {row['way']} | {row['ms']:.1f} | "
            f"{row['numpy_ms']:.1f} | {row['ratio']:.1f}x | {row['cpu_ms']:.1f} | "
            f"{row['numpy_cpu_ms']:.1f} | {row['cpu_ratio']:.1f}x | {row['recall@10']:.3f} | {share:.2f} | "
            f"{row['build_s']:.0f} s |"
        )
    return "\n".join([*lines, "", origin(report), ""])


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--vectors", type=int, default=200_000)
    options.add_argument("--queries", type=int, default=50)
    options.add_argument("--sets", nargs="+", choices=("clusters", "emoji"), default=["clusters", "emoji"])
    options.add_argument("--resident", type=Path, help=argparse.SUPPRESS)
    options.add_argument("--signs", action="store_true", help=argparse.SUPPRESS)
    arguments = options.parse_args()
    if arguments.resident:
        measure_resident(arguments.resident, arguments.signs)
        return
    start, rows = Start(), []
    for name in arguments.sets:
        with tempfile.TemporaryDirectory() as scratch:
            rows += run(name, arguments.vectors, arguments.queries, Path(scratch))["rows"]
    threads = int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
    report = {"rows": rows, "made with": start.made_with("numpy", "qdrant-edge-py", threads=threads)}
    tell(report, "search", "search", table, arguments)


if __name__ == "__main__":
    main()
