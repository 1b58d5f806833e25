"""From arguments to a running server, with everything shut that need not be open.

gradio answers to any host name, takes bodies of any size, sends no security headers, and keeps files for
ever; what it lacks is added round it here. What remains for a reverse proxy is TLS, and a limit of requests
for each address.
"""

import atexit
import contextlib
import functools
import importlib.util
import ipaddress
import json
import logging
import os
import shutil
import signal
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from altdiffusion.checkpoints import resolve
from altdiffusion.requests import BadRequest, shorten

from .service import Service

_LOG = logging.getLogger(__name__)
MAX_UPLOAD = 10 * 2**20
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


@dataclass(frozen=True)
class Options:
    """What can be said on the command line; see docs/app.md."""

    model: str | None = None
    index: str | None = None
    host: str = "127.0.0.1"
    port: int | None = None
    auth: str | None = None
    root_path: str = ""
    public_without_auth: bool = False
    mcp: bool = False
    open_browser: bool = False

    @classmethod
    def from_text(cls, port: str | None = None, **fields: Any) -> "Options":
        if port is not None and not (port.isdecimal() and len(port) < 6 and 0 < int(port) < 65536):
            raise BadRequest(f"port: {shorten(port)}; allowed a whole number from 1 to 65535")
        return cls(port=None if port is None else int(port), **fields)


def check(options: Options) -> tuple[str, str] | None:
    """Refuses what would be unsafe or would fail later; returns user and password."""
    if importlib.util.find_spec("gradio") is None:
        raise BadRequest("app: gradio is missing; pip install 'altdiffusion[app]'")
    if options.mcp and importlib.util.find_spec("mcp") is None:
        raise BadRequest("mcp: the package mcp is missing; pip install 'altdiffusion[app]'")
    user, colon, password = (options.auth or "").partition(":")
    if options.auth is not None and not (user and colon and password):
        raise BadRequest("auth: not USER:PASS; allowed a name, a colon and a password")
    if not is_loopback(options.host) and not colon and not options.public_without_auth:
        raise BadRequest(
            f"host: {shorten(options.host)} lets others in; "
            "allowed with --auth USER:PASS, or --public-without-auth"
        )
    return (user, password) if colon else None


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


@functools.cache
def prepare_environment() -> Path:
    """Before gradio is imported: no word to others, and a folder of our own that goes when we go."""
    for name, value in {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}.items():
        os.environ.setdefault(name, value)
    folder = Path(tempfile.mkdtemp(prefix="altdiffusion-app-"))
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def serve(options: Options) -> None:
    """Loads the model beside the libraries of the page, opens the page, and waits for Ctrl-C."""
    check(options)
    resolve(options.model)
    prepare_environment()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # else nothing is cleaned up
    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(Service.load, options.model, index=options.index)
        import gradio  # noqa: F401

        service = loading.result()
    with contextlib.closing(service):
        launch(service, options).block_thread()


def launch(service: Any, options: Options) -> Any:
    """Builds the page over a service and serves it, without waiting; returns the page."""
    auth = check(options)
    prepare_environment()
    from . import look
    from .demo import build_demo
    from .i18n import LOCALE_JS, translations

    demo = build_demo(service)
    demo.launch(
        server_name=options.host,
        server_port=options.port,
        auth=auth,
        root_path=options.root_path or None,
        inbrowser=options.open_browser,
        mcp_server=options.mcp,
        app_kwargs={"middleware": _middleware(options), "routes": _routes(service)},
        i18n=translations(),
        theme=look.theme(),
        css=look.CSS,
        js=look.page_js(LOCALE_JS),
        max_file_size=MAX_UPLOAD,
        max_threads=64,
        state_session_capacity=1000,
        footer_links=["api", "settings"],
        share=False,
        show_error=False,
        allowed_paths=[],
        strict_cors=True,
        ssr_mode=False,
        enable_monitoring=False,
        run_history=False,
        pwa=False,
        quiet=True,
        prevent_thread_lock=True,
    )
    if options.mcp and not demo.mcp_server:
        demo.close()
        raise BadRequest(f"mcp: the server did not start ({shorten(demo.mcp_error)}); allowed without --mcp")
    print(f"the app is at {demo.local_url}", file=sys.stderr, flush=True)
    return demo


def _middleware(options: Options) -> list[Any]:
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    found = [Middleware(Guard)]
    if is_loopback(options.host):
        # Else a page of somebody else's could reach it through a name that resolves to this machine.
        hosts = ["localhost", "127.0.0.1", "[::1]", "::1", options.host]
        found.append(Middleware(TrustedHostMiddleware, allowed_hosts=hosts))
    return found


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
    _LOG.error("%s failed: %s", shorten(path), shorten(str(error), 300))
    if "Could not infer function index" in str(error):
        return 404, "path: no such endpoint; /gradio_api/info lists them"
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


def _routes(service: Any) -> list[Any]:
    from starlette.requests import Request
    from starlette.responses import JSONResponse, PlainTextResponse, Response
    from starlette.routing import Route

    def healthz(request: Request) -> Response:
        found = service.health()
        return JSONResponse(found, 200 if found.get("status") == "ok" else 503)

    def metrics(request: Request) -> Response:
        return PlainTextResponse(service.meters(), media_type="text/plain; version=0.0.4")

    return [Route("/healthz", healthz), Route("/metrics", metrics)]
