"""Who hears the news of a drawing, where they are fetched apart from asking for it.

gradio ends what somebody stops listening to, but draws to the end what nobody ever listens to: a tab that was
closed as it asked, or a program that never fetches its answer.
"""

import asyncio
import contextlib
import math
import socket
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

_LOST = 20  # seconds; a phone between two cells is back by then
_ROUNDS = 50  # of the loop: a connection that was made is accepted, read and routed in fewer
_KNOWN = 4000  # sessions and events, the latest; twice as many as gradio keeps news of


class Audience:
    """Knows until when each event may go on without being heard. All in one thread, the server's loop."""

    #: Seconds for a person who types the second of two commands, and for a page that came with many others
    #: to a busy machine. What is drawn by then can still be fetched.
    patience = 30.0

    def __init__(self) -> None:
        self._until: OrderedDict[str, float] = OrderedDict()
        self._open: Counter[str] = Counter()

    def waits_for(self, event: str, session: str | None) -> bool:
        """To be asked as an event begins, and at each of its news."""
        self._until.setdefault(event, time.monotonic() + self.patience)
        while len(self._until) > _KNOWN:
            self._until.popitem(last=False)
        return max(self._until[event], self._until.get(session or event, 0)) > time.monotonic()

    async def still_waits_for(self, event: str, session: str | None) -> bool:
        """As `waits_for`; but before anybody is given up, those who stand at the door are let in. Where a
        hundred come at once, a listener can stand there for longer than its page is waited for."""
        for _ in range(_ROUNDS):
            if self.waits_for(event, session):
                return True
            await asyncio.sleep(0)
        return self.waits_for(event, session)

    def arrives(self, key: str) -> None:
        self._open[key] += 1
        self._until[key] = math.inf

    def leaves(self, key: str) -> None:
        self._open[key] -= 1
        if not self._open[key]:
            del self._open[key]
            self._until[key] = time.monotonic()


class Usher:
    """ASGI: tells an audience who comes to listen, and who goes.

    `key_of` says of a request whose news it fetches, a session's or an event's; None where it fetches none.
    """

    def __init__(self, app: Any, audience: Audience, key_of: Callable[[dict[str, Any]], str | None]) -> None:
        self._app, self._audience, self._key_of = app, audience, key_of

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        key = self._key_of(scope) if scope["type"] == "http" else None
        if key is None:
            return await self._app(scope, receive, send)
        self._audience.arrives(key)
        try:
            await self._app(scope, receive, send)
        finally:
            self._audience.leaves(key)


def notice_the_lost(listening: Iterable[Any]) -> None:
    """Connections to these sockets whose other side is gone without a word end after `_LOST` seconds.

    What is set where a server listens holds for the connections that it takes.
    """
    for one in listening:
        with contextlib.suppress(AttributeError, OSError):  # Linux alone has it
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _LOST * 1000)
