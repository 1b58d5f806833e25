"""What visitors of the app meet: how soon it is there, whose pictures they get, what a crowd costs.

    python -m bench.app [--parts start clients memory closed] [-o report.json] [--write]

start    from the process to the first answer; in Debian's chromium from the address to the first paint, and
         from Ctrl-Enter to the first picture and the previews before it
clients  16 at once, 20 pictures each, compared with the same drawn one by one in a process of their own; then
         a burst of requests larger than the queue
memory   1,000 requests, each of a visitor of its own: the server's resident memory, and its folder at the end
closed   20 tabs closed while pictures are drawn: the steps that the model still takes

`start` and `closed` need playwright and chromium. Seconds are by the clock, so they want a quiet machine.
"""

import contextlib
import io
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from PIL import Image
from tqdm import tqdm

from bench.report import Start, origin, parser, tell

ROOT = Path(__file__).parent.parent
CHROMIUM = "/usr/bin/chromium"
WORDS = ["a lobster", "龙虾", "กุ้งมังกร", "كركند", "a red apple", "彩虹", "a strawberry", "une licorne"]
GALLERY = "#ad-gallery img"


@contextlib.contextmanager
def server(*flags: str, folder: Path | None = None) -> Iterator[tuple[psutil.Process, str, float]]:
    """The app in a process of its own, its address, and the seconds until it answered."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "app", "--port", str(port), *flags]
    environment = os.environ | ({"TMPDIR": str(folder)} if folder else {})
    began = time.monotonic()
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = psutil.Popen(command, cwd=ROOT, env=environment, **quiet)
    address = f"http://127.0.0.1:{port}"
    try:
        while True:
            with contextlib.suppress(httpx.TransportError):
                httpx.get(f"{address}/healthz").raise_for_status()
                break
            if process.poll() is not None or time.monotonic() - began > 300:
                raise RuntimeError(f"{' '.join(command)} does not answer")
            time.sleep(0.02)
        yield process, address, time.monotonic() - began
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


@contextlib.contextmanager
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield chromium
        chromium.close()


def opened(chromium: Any, address: str, width: int = 1280, height: int = 900, **visitor: Any) -> Any:
    page = chromium.new_context(viewport={"width": width, "height": height}, **visitor).new_page()
    page.goto(address)
    page.wait_for_selector("#ad-generate")
    return page


def start(rounds: int) -> dict[str, float]:
    """Medians in seconds; a browser is open already, with nothing of the page in its cache."""
    rows: list[dict[str, float]] = []
    with browser() as chromium:
        for _ in tqdm(range(rounds), desc="start"):
            with server() as (process, address, answered):
                page = opened(chromium, address)
                paint = "performance.getEntriesByName('first-contentful-paint')[0].startTime"
                row = {"until it answers": answered, "first paint": page.evaluate(paint) / 1000}
                row["cpu until then"] = sum(process.cpu_times()[:2])
                page.evaluate("""() => {
                  window.seen = new Set();
                  const images = () => document.querySelectorAll("#ad-status img");
                  new MutationObserver(() => images().forEach((image) => window.seen.add(image.src)))
                    .observe(document.body, { subtree: true, childList: true, attributes: true });
                }""")
                page.fill("#ad-prompt textarea", "a lobster")
                began = time.monotonic()
                page.keyboard.press("Control+Enter")
                page.wait_for_selector(GALLERY)
                row |= {"first picture": time.monotonic() - began, "previews": page.evaluate("seen.size")}
                page.context.close()
                rows.append(row)
    return {name: statistics.median(row[name] for row in rows) for name in rows[0]}


def ask(address: str, prompt: str, seed: int, steps: int) -> tuple[Any, str]:
    """One request of a new visitor to its end: what it gave, or None and what was told instead."""
    asked = {"prompt": prompt, "seed": seed, "steps": steps}
    with httpx.Client(base_url=address, timeout=600) as http:
        joined = http.post("/gradio_api/call/v2/generate", json=asked)
        if joined.status_code != 200:
            return None, f"{joined.status_code} {joined.text}"
        with http.stream("GET", f"/gradio_api/call/generate/{joined.json()['event_id']}") as stream:
            news = [line.removeprefix("data:") for line in stream.iter_lines() if line.startswith("data:")]
    last = json.loads(news[-1])
    return (None, str(last.get("error"))) if isinstance(last, dict) else (last, "")


def clients(count: int, each: int, flags: list[str]) -> dict[str, Any]:
    from altdiffusion import AltDiffusionPipeline, GenerateRequest
    from altdiffusion.generation import generate

    wanted = [(WORDS[n % len(WORDS)], n) for n in range(count * each)]
    pictures: dict[int, np.ndarray] = {}

    def visitor(address: str, own: list[tuple[str, int]]) -> None:
        for prompt, seed in own:
            given, _ = ask(address, prompt, seed, 4)
            if given is None:
                continue
            found = given[0][0]["image"]["url"]
            with Image.open(io.BytesIO(httpx.get(found).content)) as picture:
                pictures[seed] = np.asarray(picture.convert("RGB")).astype(int)

    began = time.monotonic()
    with server(*flags) as (_, address, _):
        with ThreadPoolExecutor(count) as pool:
            list(pool.map(lambda n: visitor(address, wanted[n::count]), range(count)))
        seconds = time.monotonic() - began
        with ThreadPoolExecutor(8 * count) as pool:
            answers = list(pool.map(lambda n: ask(address, "a cat", n, 20), range(8 * count)))
    pipeline = AltDiffusionPipeline.from_pretrained()
    apart = []
    for prompt, seed in tqdm(wanted, desc="one by one"):
        (alone,) = generate(
            pipeline, GenerateRequest.build(prompt=prompt, seed=seed, steps=4, preset="default")
        )
        if seed in pictures:
            apart.append(int(np.abs(np.asarray(alone.image).astype(int) - pictures[seed]).max()))
    refused = [told for given, told in answers if given is None]
    return {
        "flags": " ".join(flags),
        "asked": len(wanted),
        "lost": len(wanted) - len(pictures),
        "equal": apart.count(0),
        "greatest difference of 255": max(apart, default=0),
        "seconds": seconds,
        "burst": len(answers),
        "refused": len(refused),
        "told": sorted(set(refused)),
    }


def memory(count: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        with server(folder=Path(folder)) as (process, address, _):
            sizes = []
            for number in tqdm(range(count), desc="memory"):
                given, told = ask(address, WORDS[number % len(WORDS)], number, 2)
                if given is None:
                    raise RuntimeError(f"request {number}: {told}")
                sizes.append(process.memory_info().rss)
            handles, threads = process.num_fds(), process.num_threads()
        left = [path.name for path in Path(folder).iterdir()]
    half, tail = sizes[count // 2], max(sizes[-10:])
    return {
        "requests": count,
        "MB in the middle": half / 1e6,
        "MB at the end": tail / 1e6,
        "MB grown in the last half": (tail - half) / 1e6,
        "open files": handles,
        "threads": threads,
        "left in its folder": left,
    }


def closed(tabs: int) -> dict[str, Any]:
    """In this process, where the UNet's calls can be counted."""
    from altdiffusion.serving import Service
    from altdiffusion.web import Options
    from app.launching import launch

    calls: list[float] = []
    steps = []
    with Service.load() as service, browser() as chromium:
        service.pipeline.unet.register_forward_pre_hook(lambda *_: calls.append(time.monotonic()))
        demo = launch(service, Options())
        for number in tqdm(range(tabs), desc="closed"):
            page = opened(chromium, demo.local_url)
            page.click("#ad-advanced button")
            page.get_by_label("Number of pictures").fill("16")
            page.fill("#ad-prompt textarea", WORDS[number % len(WORDS)])
            page.keyboard.press("Control+Enter")
            page.wait_for_selector("#ad-status img")
            page.context.close()
            gone = time.monotonic()
            while service.health()["drawing"]:
                time.sleep(0.01)
            steps.append(sum(call > gone for call in calls))
        demo.close()
    return {"tabs": tabs, "steps after it": steps, "most": max(steps)}


def table(report: dict[str, Any]) -> str:
    lines = ["| what | figure |", "|---|---|"]
    for part in ("start", "memory"):
        for name, value in report.get(part, {}).items():
            lines.append(
                f"| {part}: {name} | {value:.2f} |"
                if isinstance(value, float)
                else f"| {part}: {name} | {value} |"
            )
    for row in report.get("clients", ()):
        told = (
            f"{row['asked']} asked, {row['lost']} lost, {row['equal']} equal to the byte, the others at most "
        )
        told += f"{row['greatest difference of 255']} of 255 apart"
        lines.append(f"| clients {row['flags']} | {told} |")
        lines.append(f"| burst {row['flags']} | {row['refused']} of {row['burst']} refused: {row['told']} |")
    if "closed" in report:
        shut = report["closed"]
        lines.append(f"| closed tabs: most steps after it, of {shut['tabs']} | {shut['most']} |")
    return "\n".join([*lines, "", origin(report), ""])


def main() -> None:
    options = parser(__doc__)
    names = ["start", "clients", "memory", "closed"]
    options.add_argument("--parts", nargs="+", choices=names, default=names)
    options.add_argument("--rounds", type=int, default=3, help="of start")
    options.add_argument("--clients", type=int, default=16)
    options.add_argument("--each", type=int, default=20)
    options.add_argument("--requests", type=int, default=1000)
    options.add_argument("--tabs", type=int, default=20)
    asked = options.parse_args()
    parts = {
        "start": lambda: start(asked.rounds),
        "clients": lambda: [clients(asked.clients, asked.each, flags) for flags in ([], ["--batch", "1"])],
        "memory": lambda: memory(asked.requests),
        "closed": lambda: closed(asked.tabs),
    }
    begun, report = Start(), {}
    for name in asked.parts:
        report[name] = parts[name]()
        print(json.dumps({name: report[name]}, ensure_ascii=False), flush=True)
    report["made with"] = begun.made_with("torch", "gradio", threads=os.cpu_count())
    tell(report, "app", "app", table, asked)


if __name__ == "__main__":
    main()
