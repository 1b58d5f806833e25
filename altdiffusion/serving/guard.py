"""What stands before an app on the web: a limit of bodies, security headers, no other site's requests.

Plain ASGI, for servers that take bodies of any size and send no such headers.
"""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from altdiffusion.requests import shorten

_LOG = logging.getLogger(__name__)
MAX_BODY = 12 * 2**20
#: Spaces show an app in a frame of theirs.
_FRAMES = "'self' https://huggingface.co https://*.huggingface.co https://*.hf.space"
HEADERS = {
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"same-origin",
    b"permissions-policy": b"camera=(), microphone=(), geolocation=()",
    b"content-security-policy": (
        "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
        "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; connect-src 'self' data: blob:; "
        f"font-src 'self' data:; worker-src 'self' blob:; frame-ancestors {_FRAMES}"
    ).encode(),
}


class Guard:
    """ASGI: refuses other sites' forms and large bodies, as they come too; adds headers to every answer."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        refusal = _at_once(scope)
        exchange = _Exchange(receive, send)
        if refusal is None:
            try:
                await self._app(scope, exchange.receive, exchange.send)
            except Exception as error:
                if exchange.begun:
                    raise
                refusal = _in_words(scope["path"], error)
        refusal = (413, _TOO_LARGE) if exchange.too_large else refusal
        if refusal and not exchange.begun:
            await _refuse(send, *refusal)


class Door:
    """ASGI: strangers get what the page to log in is made of, and 401 for all else.

    gradio asks for a password where data are read, but not for its descriptions, nor to stop a drawing.
    """

    def __init__(self, app: Any, known: Callable[[dict[str, Any]], bool]) -> None:
        self._app, self._known = app, known

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        path = scope["path"].removeprefix(scope.get("root_path", "")) if "path" in scope else ""
        if scope["type"] == "http" and not (path in _PORCH or path.startswith(_PARTS) or self._known(scope)):
            return await _refuse(send, 401, "auth: not logged in; allowed after /login")
        await self._app(scope, receive, send)


#: The page to log in, what tells a load balancer or a search engine that nothing is here, and what gradio
#: asks of itself as it starts.
_PORCH = {
    *("/", "/login", "/login/", "/logout", "/healthz", "/favicon.ico", "/robots.txt", "/manifest.json"),
    *("/theme.css", "/gradio_api/theme.css", "/gradio_api/startup-events"),
}
#: Files of its script and style.
_PARTS = ("/assets/", "/static/", "/svelte/")


class _Exchange:
    """One request and its answer, as the app sees them."""

    def __init__(self, receive: Any, send: Any) -> None:
        self._receive, self._send = receive, send
        self._seen, self.begun = 0, False

    @property
    def too_large(self) -> bool:
        return self._seen > MAX_BODY

    async def receive(self) -> dict[str, Any]:
        message = await self._receive()
        self._seen += len(message.get("body", b""))
        if self.too_large:
            raise _TooLarge
        return message

    async def send(self, message: dict[str, Any]) -> None:
        if self.too_large and not self.begun:
            return  # what the app makes of `_TooLarge`
        if message["type"] == "http.response.start":
            self.begun = True
            own = {name.lower() for name, _ in message["headers"]}
            missing = [(name, value) for name, value in HEADERS.items() if name not in own]
            message["headers"] = [*message["headers"], *missing]
        await self._send(message)


def _at_once(scope: dict[str, Any]) -> tuple[int, str] | None:
    asked = {name: value.decode("latin-1") for name, value in scope["headers"]}
    if scope["method"] == "POST" and _from_another_site(asked):
        return 403, "origin: another site; allowed the app's own page, and programs"
    size = asked.get(b"content-length", "0")
    return None if size.isdecimal() and int(size) <= MAX_BODY else (413, _TOO_LARGE)


def _in_words(path: str, error: Exception) -> tuple[int, str]:
    """One line in the log, where the server would put a traceback for whatever a stranger sends."""
    named = "/call/v2/" in path  # where gradio itself puts values given by name in order
    if "Could not infer function index" in str(error) or (named and isinstance(error, KeyError)):
        return 404, "path: no such endpoint; /gradio_api/info lists them"
    if named and isinstance(error, TypeError):
        return 422, f"data: {shorten(str(error))}; allowed what /gradio_api/info describes"
    _LOG.error("%s failed: %s", shorten(path), shorten(str(error), 300))
    return 500, "the request failed"


_TOO_LARGE = f"body: over {MAX_BODY // 2**20} MB; allowed at most that"


class _TooLarge(Exception):
    """A body that said nothing of its size, and is over the limit."""


def _from_another_site(asked: dict[bytes, str]) -> bool:
    """A form of another site needs nobody's leave to send files. Browsers say where it comes from."""
    if (site := asked.get(b"sec-fetch-site")) is not None:
        return site not in ("same-origin", "none")
    host = asked.get(b"x-forwarded-host", asked.get(b"host"))
    return (origin := asked.get(b"origin")) is not None and origin.partition("://")[2] != host


async def _refuse(send: Any, status: int, text: str) -> None:
    headers = [(b"content-type", b"application/json"), *HEADERS.items()]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps({"detail": text}).encode()})


def misfit(errors: Sequence[Mapping[str, Any]]) -> str:
    """One line for what a web framework's validation found. FastAPI itself would send back what does not fit,
    which fails where that holds NaN or half a character.
    """
    _, name, *_rest = (*errors[0]["loc"], "", "")
    name = name if isinstance(name, str) and name.isidentifier() else "body"
    return f"{name}: {shorten(errors[0]['msg'])}; allowed what /gradio_api/info describes"
