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
from altdiffusion.serving import Service
from altdiffusion.serving.guard import Guard

MAX_UPLOAD = 10 * 2**20


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
