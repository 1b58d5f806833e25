"""A long run of the app: mixed visitors, faults among them, and what the server holds meanwhile.

    python -m bench.soak --hours 2 [-o FOLDER] [--write]
    python -m bench.soak --from FOLDER --write

Starts the app on the bundled model and visits it as the page, gradio_client and strangers do, who are in
bench/visits.py, at a rate that takes `--share` of a core, server and visitors together; every `--burst`
seconds comes a burst that fills the queue. FOLDER gets answers.jsonl with each answer as it comes,
samples.jsonl with what psutil says of the server every ten seconds, run.json and the server's log, so a run
that is cut keeps what it has; report.json is made of them at the end or by `--from`. `--write` draws
docs/images/soak.png and puts the table into docs/results.md.
"""

import argparse
import json
import os
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil

from bench.report import RESULTS, Start, command, put
from bench.soak_report import ENDINGS, plot, report, table
from bench.visits import Ended, Visits
from tests.reliability.served.attacking import SECRET, Running, running

PLOT = RESULTS.parent / "images" / "soak.png"
ROOT = RESULTS.parent.parent
_EVERY = 10.0  # seconds between two samples
_VISITORS = 3
_QUIET = 120.0  # seconds in which the model must be idle when everybody has gone


class Soak:
    """One run: visitors in threads of their own, and samples from the one that called."""

    def __init__(self, app: Running, folder: Path, share: float, seed: int) -> None:
        self.app, self.folder, self.share = app, folder, share
        self.server, self.own = psutil.Process(app.process.pid), psutil.Process()
        self.visits = Visits(app, folder / "downloads")
        self.counts: Counter[str] = Counter()
        self.seed, self.began, self.over = seed, time.monotonic(), threading.Event()
        self._lock = threading.Lock()
        self._spent_before = self._spent()

    def run(self, seconds: float, burst: float) -> None:
        for ask in self.visits.questions():
            self.note("first of its kind", self.visits.ended(ask))
        threads = [threading.Thread(target=self._visitor, args=(n,)) for n in range(_VISITORS)]
        threads.append(threading.Thread(target=self._bursts, args=(burst,)))
        for thread in threads:
            thread.start()
        try:
            while time.monotonic() - self.began < seconds and self.app.process.poll() is None:
                try:
                    self.sample()
                except OSError as error:  # no answer in time: that is to be counted, not to end the run
                    self.note("sample", ("wrong", f"{type(error).__name__}: {error}"))
                time.sleep(_EVERY - (time.monotonic() - self.began) % _EVERY)
        finally:
            self.over.set()
        for thread in threads:
            thread.join()
        self._conclude()

    def note(self, name: str, ended: Ended, seconds: float = 0.0) -> None:
        ending, what = ended
        line = {
            "at": self._at(), "visit": name, "ended": ending, "seconds": round(seconds, 3), "what": what
        }  # fmt: skip
        with self._lock:
            self.counts[ending] += 1
            append(self.folder / "answers.jsonl", line)

    def sample(self) -> None:
        files = [file for file in self._kept() if file.is_file()]
        began = time.monotonic()
        health = json.loads(self.app.ask("GET", "/healthz").body)
        with self.server.oneshot():
            line = {
                "at": self._at(),
                "rss": self.server.memory_info().rss,
                "threads": self.server.num_threads(),
                "fds": self.server.num_fds(),
                "cpu": sum(self.server.cpu_times()[:2]),
                "files": len(files),
                "bytes": sum(size(file) for file in files),
                "health seconds": round(time.monotonic() - began, 4),
                "waiting": health["waiting"],
                **{ending: self.counts[ending] for ending in ENDINGS},
            }
        append(self.folder / "samples.jsonl", line)

    def _visitor(self, number: int) -> None:
        chance = random.Random(self.seed * 100 + number)
        while not self.over.is_set():
            if self._spent() - self._spent_before > self.share * (time.monotonic() - self.began):
                self.over.wait(0.1)
                continue
            began = time.monotonic()
            name, ended = self.visits.any(chance)
            self.note(name, ended, time.monotonic() - began)

    def _bursts(self, every: float) -> None:
        while not self.over.wait(every):
            for ended in self.visits.burst():
                self.note("burst", ended)

    def _conclude(self) -> None:
        """Everybody has gone: nothing is drawn any more, nothing failed, no secret is told."""
        end = time.monotonic() + _QUIET
        while (health := json.loads(self.app.ask("GET", "/healthz").body))["drawing"] or health["waiting"]:
            if time.monotonic() > end:
                self.note("at the end", ("wrong", f"still drawing for nobody: {health}"))
                break
            time.sleep(1)
        meters = self.app.ask("GET", "/metrics").body.decode()
        (self.folder / "metrics.txt").write_text(meters, encoding="utf-8")
        failed = [line for line in meters.splitlines() if line.startswith("altdiffusion_failures_total")]
        log = self.app.log.read_text(encoding="utf-8", errors="replace")
        ends = {
            "no drawing failed": failed == ["altdiffusion_failures_total 0"],
            "no traceback in the log": "Traceback" not in log,
            "no secret in the log": SECRET not in log,
            "nothing fetched": not self.app.fetched,
        }
        for what, well in ends.items():
            self.note("at the end", ("right", "") if well else ("wrong", f"not so: {what}"))
        self.sample()

    def _kept(self) -> list[Path]:
        """What lies in the server's temporary folder but for its log, and the secret that nobody may read."""
        own = {self.app.log, self.app.secret}
        return [path for path in self.app.log.parent.rglob("*") if path not in own]

    def _spent(self) -> float:
        """Seconds of CPU time of the server and of its visitors."""
        return sum(sum(process.cpu_times()[:2]) for process in (self.server, self.own))

    def _at(self) -> float:
        return round(time.monotonic() - self.began, 2)


def size(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:  # deleted since it was listed
        return 0


def append(file: Path, line: dict[str, Any]) -> None:
    with file.open("a", encoding="utf-8") as out:
        out.write(json.dumps(line, ensure_ascii=False) + "\n")


def soak(folder: Path, seconds: float, share: float, burst: float, seed: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "samples.jsonl").exists():
        raise SystemExit(f"-o: {folder} holds a run already; allowed a new folder, or --from to report on it")
    made = Start().made_with("torch", "gradio", threads=len(os.sched_getaffinity(0)))
    run = {"command": command("soak", sys.argv[1:]), **made}
    (folder / "run.json").write_text(json.dumps(run, indent=1) + "\n", encoding="utf-8")
    (folder / "server").mkdir()
    with running(folder / "server", "-m", "app", "--port", "PORT") as app:
        Soak(app, folder, share, seed).run(seconds, burst)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hours", type=float, default=2.0)
    parser.add_argument("--share", type=float, default=0.5, help="of a core, server and visitors together")
    parser.add_argument("--burst", type=float, default=300.0, help="seconds between two bursts")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("-o", "--output", type=Path, help="a new folder; else a temporary one")
    parser.add_argument("--from", dest="source", type=Path, help="no run: report on what one left")
    parser.add_argument("--write", action="store_true", help="plot, and put the table into docs/results.md")
    asked = parser.parse_args()
    folder = asked.source or asked.output or Path(tempfile.mkdtemp(prefix="altdiffusion-soak-"))
    if asked.source is None:
        soak(folder.absolute(), asked.hours * 3600, asked.share, asked.burst, asked.seed)
    found = report(folder)
    (folder / "report.json").write_text(
        json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    print(table(found))
    if asked.write:
        plot(found, PLOT)
        put(RESULTS, "soak", table(found))
    return int(found["answers"]["wrong"] > 0 or not found["ended"])


if __name__ == "__main__":
    raise SystemExit(main())
