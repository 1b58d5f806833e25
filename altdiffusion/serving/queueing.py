"""One thread that has the model, and the bounded queue before it. Knows nothing of pictures.

Members of the queue wait, are drawn, alone or several together, and leave when they like: a `Ticket` is
iterated for news of them, the result last, and closing it is leaving. Short calls, as of an encoder, do not
queue behind drawings that take seconds: the thread runs them between two steps.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

_KEPT = 8  # news that nobody has fetched; older ones are dropped, so a slow visitor costs no memory
_PULSE = 2.0  # seconds after which a member hears its last news again, so that the lost are noticed


@dataclass(frozen=True)
class Waiting:
    """0: next to be drawn."""

    position: int


class Busy(RuntimeError):
    """The queue is full."""

    def __init__(self, waiting: int, allowed: int) -> None:
        super().__init__(f"busy: {waiting} requests wait already; allowed {allowed}, try again in a moment")
        self.waiting, self.allowed = waiting, allowed


class Closed(RuntimeError):
    """The service has ended."""

    def __init__(self) -> None:
        super().__init__("closed: the service has ended; allowed with a new one")


class Abandoned(Exception):
    """Raised inside of a drawing that nobody waits for any more."""


class Member:
    """One that waits or is drawn: `work` is for the drawing to read; those of one `key` may be joined."""

    def __init__(self, work: Any, key: Any, size: int) -> None:
        self.work, self.key, self.size, self.left = work, key, size, False
        self.joined = time.monotonic()
        self._bell = threading.Condition()
        self._news: deque[Any] = deque(maxlen=_KEPT)
        self._last: Any = None
        self._ended = False
        self._error: BaseException | None = None

    def tell(self, news: Any) -> None:
        with self._bell:
            self._news.append(news)
            self._bell.notify_all()

    def finish(self, result: Any = None, error: BaseException | None = None) -> None:
        """The last news; only the first call counts."""
        with self._bell:
            if self._ended:
                return
            if error is None and not self.left:
                self._news.append(result)
            self._ended, self._error = True, error
            self._bell.notify_all()

    def leave(self) -> None:
        self.left = True
        with self._bell:
            self._news.clear()
        self.finish()

    def hear(self) -> Any:
        with self._bell:
            self._bell.wait_for(lambda: self._news or self._ended, None if self._last is None else _PULSE)
            if self._news:
                self._last = self._news.popleft()
            elif self._ended:
                error, self._error, self._last = self._error, None, None
                raise error if error is not None else StopIteration
            return self._last


class Ticket(Iterator[Any]):
    """What a member holds of the queue. To close it, or to forget it, is to leave: from any thread, at any
    time, even before the first `next`, which a generator could not offer."""

    def __init__(self, member: Member, thread: "ModelThread") -> None:
        self._member, self._thread = member, thread

    def __next__(self) -> Any:
        return self._member.hear()

    def close(self) -> None:
        self._thread.leave(self._member)

    def __del__(self) -> None:
        self._member.left = True  # no lock here: the garbage collector may call this while one is held


class ModelThread:
    """Takes members from the queue, joins those that may be joined, and draws them, one drawing at a time.

    `draw(members)` returns a result for each and calls `between(members)` after every step. `most` bounds the
    sum of the sizes of members that are joined. The longest waiting member is always the first to be taken,
    so one that cannot be joined is overtaken only by what goes along with those before it.
    """

    def __init__(
        self, draw: Callable[[Sequence[Member]], Sequence[Any]], *, max_waiting: int = 32, most: int = 1
    ) -> None:
        self.max_waiting, self.most = max_waiting, most
        self._draw = draw
        self._waiting: deque[Member] = deque()
        self._calls: deque[tuple[Member, Callable[[], Any]]] = deque()
        self._drawing: list[Member] = []
        self._closed = False
        self._work = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive() and not self._closed

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def drawing(self) -> int:
        return len(self._drawing)

    def submit(self, work: Any, *, key: Any = None, size: int = 1) -> Ticket:
        """A place in the queue; `Busy` at once where it is full. Without a key it is drawn alone."""
        member = Member(work, key, size)
        with self._work:
            self._forget_left()
            self._refuse(self._waiting)
            member.tell(Waiting(len(self._waiting)))
            self._waiting.append(member)
            self._work.notify()
        return Ticket(member, self)

    def held(self) -> AbstractContextManager[Any]:
        """Inside, nothing is taken from the queue, so that what is submitted there can be joined."""
        return self._work

    def call(self, function: Callable[[], Any]) -> Any:
        """Runs a short function on the model's thread, between two steps, and returns what it returns."""
        if threading.current_thread() is self._thread:
            return function()
        member = Member(None, None, 1)
        with self._work:
            self._refuse(self._calls)
            self._calls.append((member, function))
            self._work.notify()
        return member.hear()[0]

    def between(self, members: Sequence[Member]) -> None:
        """For the drawing, after each step: ends it where all have left, and lets one short call in."""
        if self._closed or all(member.left for member in members):
            raise Abandoned
        self._call_one()

    def leave(self, member: Member) -> None:
        member.leave()
        with self._work:
            self._forget_left()

    def close(self) -> None:
        """Ends the thread after the step it is in; those that wait get `Closed`."""
        with self._work:
            self._closed = True
            self._work.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _refuse(self, line: Sequence[Any]) -> None:
        if self._closed:
            raise Closed
        if len(line) >= self.max_waiting:
            raise Busy(len(line), self.max_waiting)

    def _run(self) -> None:
        while True:
            with self._work:
                self._work.wait_for(lambda: self._closed or self._calls or self._waiting)
                if self._closed:
                    break
                self._drawing = [] if self._calls else self._take()
            if self._drawing:
                self._draw_all(self._drawing)
                self._drawing = []
            else:
                self._call_one()
        for member in (*self._waiting, *(member for member, _ in self._calls)):
            member.finish(error=Closed())
        self._waiting.clear()
        self._calls.clear()

    def _take(self) -> list[Member]:
        taken: list[Member] = []
        kept: deque[Member] = deque()
        for member in self._waiting:
            room = self.most - sum(one.size for one in taken)
            may_join = taken and member.key is not None and member.key == taken[0].key and member.size <= room
            if member.left:
                continue
            (taken if not taken or may_join else kept).append(member)
        self._wait_on(kept)
        return taken

    def _forget_left(self) -> None:
        if any(member.left for member in self._waiting):
            self._wait_on(deque(member for member in self._waiting if not member.left))

    def _wait_on(self, waiting: deque[Member]) -> None:
        self._waiting = waiting
        for position, member in enumerate(waiting):
            member.tell(Waiting(position))

    def _draw_all(self, members: Sequence[Member]) -> None:
        try:
            for member, result in zip(members, self._draw(members), strict=True):
                member.finish(result)
        except Abandoned:
            for member in members:
                member.finish(error=Closed() if self._closed else None)
        except BaseException as error:  # the thread serves everybody: it goes on, whatever it was
            for member in members:
                member.finish(error=error)

    def _call_one(self) -> None:
        with self._work:
            member, function = self._calls.popleft() if self._calls else (None, None)
        if member is None or function is None:
            return
        try:
            member.finish((function(),))
        except BaseException as error:  # as above
            member.finish(error=error)
