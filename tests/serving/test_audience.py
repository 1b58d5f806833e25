"""Until when a drawing goes on that nobody hears of."""

import asyncio
from typing import Any

import pytest

from altdiffusion.serving import audience as module
from altdiffusion.serving.audience import Audience, Usher


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(module, "time", made)
    return made


def test_an_event_waits_for_somebody_to_listen_and_not_for_ever(clock: Clock):
    audience = Audience()
    assert audience.waits_for("e1", "page") and audience.waits_for("e2", "e2")
    clock.now += 29
    assert audience.waits_for("e1", "page") and audience.waits_for("e2", "e2")
    clock.now += 2
    assert not audience.waits_for("e1", "page") and not audience.waits_for("e2", "e2")


def test_who_listens_is_waited_for_without_an_end_and_who_goes_is_not(clock: Clock):
    audience = Audience()
    audience.arrives("page")
    audience.arrives("page")  # two tabs of one session
    assert audience.waits_for("e1", "page")
    clock.now += 1000
    assert audience.waits_for("e1", "page")
    audience.leaves("page")
    assert audience.waits_for("e1", "page")
    audience.leaves("page")
    clock.now += 0.1
    assert not audience.waits_for("e1", "page")
    assert audience.waits_for("e2", "page")  # a new one, whose news nobody has had time to fetch


def test_nobody_is_given_up_who_stands_at_the_door_of_a_busy_server(clock: Clock):
    audience = Audience()

    async def arrive_after(rounds: int) -> bool:
        waited = audience.still_waits_for("e1", "page")
        assert await waited
        clock.now += 31

        async def listen() -> None:
            for _ in range(rounds):
                await asyncio.sleep(0)
            audience.arrives("page")

        listening = asyncio.ensure_future(listen())
        try:
            return await audience.still_waits_for("e1", "page")
        finally:
            listening.cancel()

    assert asyncio.run(arrive_after(10))
    audience = Audience()
    assert not asyncio.run(arrive_after(10_000))


def test_what_it_knows_is_bounded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "_KNOWN", 10)
    audience = Audience()
    for number in range(100):
        assert audience.waits_for(f"e{number}", None)
    assert len(audience._until) <= 10


def test_the_usher_counts_who_listens_until_the_answer_ends():
    audience, seen = Audience(), []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(dict(audience._open))
        if scope["path"] == "/broken":
            raise ConnectionResetError

    usher = Usher(app, audience, lambda scope: scope["path"].strip("/") or None)
    for path in ("/", "/a", "/broken"):
        try:
            asyncio.run(usher({"type": "http", "path": path}, None, None))
        except ConnectionResetError:
            seen.append("broken")
    assert seen == [{}, {"a": 1}, {"broken": 1}, "broken"]
    assert not audience._open
