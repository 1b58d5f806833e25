"""Many visitors, visitors that go, and a thousand one after the other, over HTTP as they come."""

import contextlib
import io
import json
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from altdiffusion.generation import generate
from altdiffusion.requests import GenerateRequest
from tests.app.painter import Painter
from tests.fakes import SENTENCES
from tests.reliability.served.attacking import Running, drawing, picture, running

pytest.importorskip("gradio", reason="needs the extra app: pip install 'altdiffusion[app]'")
# gradio's own, of its event loops and of what FastAPI is to become
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::UserWarning"
)
_PACE = 0.15  # seconds of a step, in which a server hears that somebody has gone
_TEXTS = list(SENTENCES.values())


@pytest.fixture(scope="module")
def paced(shared_pipeline: Any) -> Iterator[SimpleNamespace]:
    """The app in this process, where the UNet's calls can be counted, and held up for a moment each."""
    from altdiffusion.serving import Service
    from altdiffusion.web import Options
    from app.launching import launch

    calls: list[float] = []

    def step(*_: Any) -> None:
        time.sleep(_PACE)
        calls.append(time.monotonic())

    hook = shared_pipeline.unet.register_forward_pre_hook(step)
    with Service(shared_pipeline) as service:
        demo = launch(service, Options())
        here = Running(None, demo.server_port, Path(), Path(), "", [])  # type: ignore[arg-type]
        yield SimpleNamespace(app=here.learn(), service=service, calls=calls)
        demo.close()
    hook.remove()


def test_a_model_stops_within_two_steps_of_a_visitor_that_goes(
    paced: SimpleNamespace, tally: Any, amount: Any
):
    counted, tries = tally("C3 visitors that go"), amount(4, 20)
    for number in range(tries):
        answer, code = paced.app.join("generate", drawing(steps=100, guidance_scale=2.0))
        assert answer.status == 200, answer
        with contextlib.closing(paced.app.connection()) as connection:
            connection.request("GET", f"/gradio_api/queue/data?session_hash={code}")
            news = connection.getresponse()
            steps = 0
            while steps < 1 + number % 3:
                steps += b"process_generating" in news.readline()
            connection.sock.close()
            news.close()
        gone = time.monotonic()
        until(lambda: not paced.service.health()["drawing"])
        after = sum(call > gone for call in paced.calls)
        succeeded, told = paced.app.called("generate", drawing(steps=1))
        well = after <= 2 and succeeded
        counted.add("right" if well else "wrong", f"{number}: {after} steps more, then {told!s:.100}")
    counted.check(tries)


@pytest.mark.parametrize("flags", [[], pytest.param(["--batch", "1"], marks=pytest.mark.slow)], ids=" ".join)
def test_sixteen_clients_get_the_pictures_that_each_would_get_alone(
    app: Running,
    shared_folder: Path,
    shared_pipeline: Any,
    tmp_path: Path,
    flags: list[str],
    tally: Any,
    amount: Any,
):
    """To the byte by `--batch 1`; joined ones within one level of 255 (docs/serving.md)."""
    counted, each = tally(f"C4 sixteen clients {' '.join(flags)}".strip()), amount(1, 20)
    numbers = range(16 * each)
    alone = {}
    for seed in numbers:
        asked = GenerateRequest.build(prompt=_TEXTS[seed % 18], seed=seed, steps=4, preset="exact")
        alone[seed] = np.asarray(generate(shared_pipeline, asked)[0].image).astype(int)

    def visitor(served: Running, first: int) -> None:
        for seed in numbers[first::16]:
            fields = {"prompt": _TEXTS[seed % 18], "seed": seed, "steps": 4, "preset": "exact"}
            succeeded, told = served.called("generate", drawing(**fields))
            if not succeeded:
                counted.add("wrong", f"{seed}: {told}")
                continue
            with Image.open(io.BytesIO(served.picture(told[0][0]["image"]))) as found:
                apart = np.abs(np.asarray(found.convert("RGB")).astype(int) - alone[seed]).max()
            counted.add("right" if apart <= (not flags) else "wrong", f"{seed}: {apart} of 255 apart")

    own = running(tmp_path, "-m", "app", "--model", str(shared_folder), *flags, "--port", "PORT")
    with own if flags else contextlib.nullcontext(app) as served, ThreadPoolExecutor(16) as pool:
        served.learn()
        list(pool.map(lambda first: visitor(served, first), range(16)))
    counted.check(16 * each)


def test_a_flood_is_refused_beyond_the_queue_and_none_waits_longer_than_the_drawings_take(
    app: Running, tally: Any, amount: Any
):
    """It comes while something large is drawn, whose visitor then goes: 32 of it wait, and then are drawn."""
    counted, joins = tally("C4 flood"), amount(50, 200)
    held, code = app.join("generate", drawing(steps=150, count=16, width=256, height=256))
    assert held.status == 200
    seconds: list[float] = []

    def one(seed: int) -> None:
        succeeded, told = app.called("generate", drawing(steps=amount(4, 100), seed=seed))
        if succeeded:
            seconds.append(time.monotonic())
        full = succeeded or "Too many requests are waiting" in told or "ueue is full" in told
        counted.add("right" if succeeded else "refused" if full else "wrong", str(told)[:200])

    with contextlib.closing(app.connection()) as holder, ThreadPoolExecutor(joins) as pool:
        holder.request("GET", f"/gradio_api/queue/data?session_hash={code}")
        until(lambda: json.loads(app.ask("GET", "/healthz").body)["drawing"])
        flood = [pool.submit(one, seed) for seed in range(joins)]
        until(lambda: counted.counts["refused"] >= joins - 32)
        holder.close()
        began, before = time.monotonic(), drawing_seconds(app)
        for each in flood:
            each.result()
    counted.check(joins)
    assert (counted.counts["right"], counted.counts["refused"]) == (32, joins - 32)
    drawn = drawing_seconds(app) - before
    p95 = statistics.quantiles([at - began for at in seconds], n=20)[-1]
    print(f"32 drawn in {drawn:.1f} s, p95 of the wait {p95:.1f} s")
    assert p95 <= 1.2 * drawn + 5  # seconds in which the large one ends, and the news come


def drawing_seconds(app: Running) -> float:
    told = app.ask("GET", "/metrics").body.decode()
    name = "altdiffusion_drawing_seconds_total "
    return float(next(line.removeprefix(name) for line in told.splitlines() if line.startswith(name)))


def test_requests_one_after_the_other_leave_nothing_behind(app: Running, tally: Any, amount: Any):
    """But their pictures, for an hour."""
    counted, requests = tally("C6 one after the other"), amount(60, 1000)
    server = psutil.Process(app.process.pid)
    held: list[tuple[int, int, int]] = []
    for number in range(requests):
        succeeded, told = app.called("generate", drawing(prompt=_TEXTS[number % 18], seed=number))
        counted.add("right" if succeeded else "wrong", f"{number}: {told!s:.200}")
        held.append((server.memory_info().rss, server.num_fds(), server.num_threads()))
    counted.check(requests)
    middle, end = held[requests // 2], held[-1]
    print(f"{end[0] / 1e6:.0f} MB, grown by {(end[0] - middle[0]) / 1e6:.1f} in the last half; {end[1:]}")
    assert end[0] - middle[0] < amount(15e6, 5e6)  # of a few requests most are still the first of their kind
    assert end[1] - middle[1] <= 5 and end[2] - middle[2] <= 10


def test_pictures_are_deleted_when_their_time_has_come(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """After an hour; here after a second."""
    from altdiffusion.web import Options
    from app import launching

    launching.prepare_environment()
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    monkeypatch.setattr(launching, "_TIDY", (0.2, 1.0))
    demo = launching.launch(Painter(), Options())
    try:
        app = Running(None, demo.server_port, Path(), Path(), "", []).learn()  # type: ignore[arg-type]
        for seed in range(5):
            assert app.called("generate", drawing(seed=seed))[0]
        assert app.file(picture())
        until(lambda: not list(tmp_path.iterdir()))
    finally:
        demo.close()


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 200
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
