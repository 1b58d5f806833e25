"""The model's thread and its queue, with drawings that only count: who is drawn with whom."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from altdiffusion.serving import queueing
from altdiffusion.serving.queueing import Busy, Closed, Member, ModelThread, Ticket, Waiting

STEPS = 6


class Drawings:
    """Draws nothing in `STEPS` steps, each of which waits to be allowed; notes what it was given."""

    def __init__(self, held: bool = False) -> None:
        self.batches: list[list[str]] = []
        self.steps: list[int] = []
        self.begun = threading.Semaphore(0)
        self.allowed = threading.Event()
        if not held:
            self.allowed.set()
        self.thread: ModelThread

    def __call__(self, members: Sequence[Member]) -> list[str]:
        self.batches.append([member.work for member in members])
        self.steps.append(0)
        self.begun.release()
        for step in range(STEPS):
            assert self.allowed.wait(20)
            if any(member.work == "fault" for member in members) and step == 2:
                raise ZeroDivisionError("in a step")
            self.steps[-1] += 1
            self.thread.between(members)
            for member in members:
                member.tell(step)
        return [f"{member.work} drawn" for member in members]


@contextmanager
def running(drawings: Drawings, **options: int) -> Iterator[ModelThread]:
    drawings.thread = ModelThread(drawings, **options)
    try:
        yield drawings.thread
    finally:
        drawings.allowed.set()
        drawings.thread.close()


def until(condition) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


def test_a_member_hears_its_place_each_step_and_at_last_the_result():
    drawings = Drawings()
    with running(drawings) as thread:
        assert list(thread.submit("a")) == [Waiting(0), *range(STEPS), "a drawn"]


def test_those_that_wait_hear_how_their_place_moves():
    drawings = Drawings(held=True)
    with running(drawings) as thread:
        first = thread.submit("a")
        assert drawings.begun.acquire(timeout=20)
        second, third = thread.submit("b"), thread.submit("c")
        assert (next(second), next(third)) == (Waiting(0), Waiting(1))
        second.close()
        assert next(third) == Waiting(0)
        drawings.allowed.set()
        assert list(first)[-1] == "a drawn"
        assert list(third)[-1] == "c drawn"
    assert drawings.batches == [["a"], ["c"]]


def test_a_full_queue_says_so_at_once_and_takes_again_when_somebody_left():
    drawings = Drawings(held=True)
    with running(drawings, max_waiting=2) as thread:
        drawn = thread.submit("a")
        assert drawings.begun.acquire(timeout=20)
        waiting = [thread.submit("b"), thread.submit("c")]
        began = time.monotonic()
        with pytest.raises(Busy, match=r"^busy: 2 requests wait already; allowed 2") as refused:
            thread.submit("d")
        assert time.monotonic() - began < 1
        assert (refused.value.waiting, refused.value.allowed) == (2, 2)
        waiting.pop()  # forgotten rather than closed
        late = thread.submit("d")
        drawings.allowed.set()
        assert [list(ticket)[-1] for ticket in (drawn, *waiting, late)] == ["a drawn", "b drawn", "d drawn"]


def test_members_of_one_key_are_joined_even_across_others_as_far_as_there_is_room():
    drawings = Drawings(held=True)
    with running(drawings, most=4) as thread:
        first = thread.submit("first", key="x")
        assert drawings.begun.acquire(timeout=20)
        asked = [("a", "x", 1), ("b", "y", 1), ("c", "x", 2), ("d", "x", 2), ("e", None, 1), ("f", "x", 1)]
        tickets = [thread.submit(work, key=key, size=size) for work, key, size in asked]
        drawings.allowed.set()
        assert [list(ticket)[-1] for ticket in (first, *tickets)][1:] == [f"{w} drawn" for w, _, _ in asked]
    assert drawings.batches == [["first"], ["a", "c", "f"], ["b"], ["d"], ["e"]]


def test_nobody_is_overtaken_for_ever_by_those_that_join_one_another():
    drawings = Drawings()
    with running(drawings, most=2, max_waiting=64) as thread:
        alone: Ticket | None = None
        tickets: list[Ticket] = []
        for number in range(30):
            tickets.append(thread.submit(f"x{number}", key="x"))
            if number == 4:
                alone = thread.submit("alone", key="y")
        assert alone is not None
        assert list(alone)[-1] == "alone drawn"
        assert all(list(ticket)[-1].endswith("drawn") for ticket in tickets)
    place = next(number for number, batch in enumerate(drawings.batches) if "alone" in batch)
    assert place <= 5


def test_a_drawing_that_nobody_waits_for_ends_within_two_steps():
    for number in range(20):
        drawings = Drawings(held=True)
        with running(drawings) as thread:
            ticket = thread.submit(str(number))
            assert drawings.begun.acquire(timeout=20)
            if number % 2:
                ticket.close()
            else:
                del ticket
            drawings.allowed.set()
            until(lambda thread=thread: not thread.drawing)
            assert drawings.steps == [1]
            assert list(thread.submit("next"))[-1] == "next drawn"


def test_a_member_that_leaves_a_joined_drawing_takes_nothing_from_the_others():
    drawings = Drawings(held=True)
    with running(drawings, most=3) as thread:
        first = thread.submit("first")
        assert drawings.begun.acquire(timeout=20)
        tickets = [thread.submit(name, key="x") for name in "abc"]
        drawings.allowed.set()
        list(first)
        heard = next(tickets[1])
        tickets[1].close()
        assert isinstance(heard, Waiting)
        assert list(tickets[1]) == []
        assert [list(tickets[n])[-1] for n in (0, 2)] == ["a drawn", "c drawn"]
    assert drawings.batches[1] == ["a", "b", "c"]


def test_what_a_drawing_raises_reaches_its_members_and_nobody_else():
    drawings = Drawings(held=True)
    with running(drawings, most=2) as thread:
        first = thread.submit("first")
        assert drawings.begun.acquire(timeout=20)
        broken = [thread.submit("fault", key="x"), thread.submit("beside it", key="x")]
        later = thread.submit("later", key="y")
        drawings.allowed.set()
        list(first)
        for ticket in broken:
            with pytest.raises(ZeroDivisionError, match="in a step"):
                list(ticket)
            assert list(ticket) == []
        assert list(later)[-1] == "later drawn"
        assert thread.alive


def test_a_short_call_does_not_wait_for_the_drawing_to_end():
    drawings = Drawings(held=True)
    with running(drawings) as thread:
        ticket = thread.submit("a")
        assert drawings.begun.acquire(timeout=20)
        threading.Timer(0.05, drawings.allowed.set).start()
        step, where = thread.call(lambda: (drawings.steps[0], threading.current_thread().name))
        assert (1 <= step < STEPS, where, len(drawings.batches)) == (True, "model", 1)
        assert list(ticket)[-1] == "a drawn"
        with pytest.raises(KeyError, match="lost"):
            thread.call(lambda: {}["lost"])
        assert thread.call(lambda: thread.call(lambda: 7)) == 7


def test_closing_ends_the_thread_and_tells_all_who_wait():
    drawings = Drawings(held=True)
    with running(drawings) as thread:
        drawn = thread.submit("a")
        assert drawings.begun.acquire(timeout=20)
        waits = thread.submit("b")
        threading.Timer(0.05, drawings.allowed.set).start()
        thread.close()
        for ticket in (drawn, waits):
            with pytest.raises(Closed):
                list(ticket)
        assert not thread.alive
        for late in (lambda: thread.submit("c"), lambda: thread.call(int)):
            with pytest.raises(Closed, match=r"^closed: "):
                late()


def test_closing_a_ticket_wakes_whoever_waits_for_its_news():
    drawings = Drawings(held=True)
    with running(drawings) as thread:
        ticket = thread.submit("a")
        assert next(ticket) == Waiting(0)
        heard: list[object] = []
        listener = threading.Thread(target=lambda: heard.extend(ticket))
        listener.start()
        ticket.close()
        listener.join(20)
        assert not listener.is_alive()
        assert heard == []


def test_a_slow_listener_costs_no_memory_and_still_gets_the_result():
    member = Member("work", None, 1)
    for step in range(1000):
        member.tell(step)
    member.finish("drawn")
    heard = [member.hear() for _ in range(8)]
    assert heard == [*range(993, 1000), "drawn"]
    with pytest.raises(StopIteration):
        member.hear()


def test_one_that_hears_nothing_new_is_told_the_same_again(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(queueing, "_PULSE", 0.01)
    drawings = Drawings(held=True)
    with running(drawings) as thread:
        drawn = thread.submit("a")
        assert drawings.begun.acquire(timeout=20)
        waits = thread.submit("b")
        assert [next(waits) for _ in range(3)] == [Waiting(0)] * 3
        drawn.close()


def test_an_idle_thread_costs_no_time():
    with running(Drawings()):
        began = time.process_time()
        time.sleep(0.5)
        assert time.process_time() - began < 0.1
