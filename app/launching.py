"""From arguments to a running server, with everything shut that need not be open.

gradio answers to any host name, takes bodies of any size, sends no security headers, and keeps files for
ever; what it lacks is added round it here. What remains for a reverse proxy is TLS, and a limit of requests
for each address.
"""

import atexit
import base64
import contextlib
import functools
import os
import re
import secrets
import shutil
import signal
import sys
import tempfile
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from altdiffusion.requests import BadRequest, shorten
from altdiffusion.serving import Service
from altdiffusion.serving.audience import Usher, notice_the_lost
from altdiffusion.serving.guard import Door, Guard, misfit
from altdiffusion.serving.tidying import share_arenas, tidied
from altdiffusion.terminal import ended_at_once
from altdiffusion.web import Options, check, is_loopback

MAX_UPLOAD = 10 * 2**20
#: (how often, how old) in seconds; older than gradio lets uploads grow, which deletes those it knows itself.
_TIDY = 600.0, 4300.0


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
    folder = prepare_environment()
    share_arenas()
    # The page says so to who asked; a server's log is no place for what people write.
    warnings.filterwarnings("ignore", r"\w+: too long by ", UserWarning)
    with ended_at_once(lambda: shutil.rmtree(folder, ignore_errors=True)), ThreadPoolExecutor(1) as pool:
        loading = pool.submit(Service.load, options.model, **options.of_service())
        import gradio  # noqa: F401

        service = loading.result()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # else nothing is cleaned up
    with contextlib.closing(service):
        launch(service, options).block_thread()


def launch(service: Any, options: Options) -> Any:
    """Builds the page over a service and serves it, without waiting; returns the page."""
    auth = check(options)
    prepare_environment()
    from gradio.utils import get_upload_folder

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
        app_kwargs={
            "middleware": _middleware(options, auth, demo.audience),
            "routes": _routes(service, auth),
            "exception_handlers": _handlers(),
            "lifespan": tidied(Path(get_upload_folder()), *_TIDY),
        },
        i18n=translations(),
        theme=look.theme(),
        css=look.CSS,
        js=look.page_js(LOCALE_JS),
        max_file_size=MAX_UPLOAD,
        max_threads=64,
        state_session_capacity=200,
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
    notice_the_lost([listening for one in demo.server.servers for listening in one.sockets])
    if options.mcp and not demo.mcp_server:
        demo.close()
        raise BadRequest(f"mcp: the server did not start ({shorten(demo.mcp_error)}); allowed without --mcp")
    print(f"the app is at {demo.local_url}", file=sys.stderr, flush=True)
    return demo


def _middleware(options: Options, auth: tuple[str, str] | None, audience: Any) -> list[Any]:
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    found = [Middleware(Guard)]
    if is_loopback(options.host):
        # Else a page of somebody else's could reach it through a name that resolves to this machine.
        hosts = ["localhost", "127.0.0.1", "[::1]", "::1", options.host]
        found.append(Middleware(TrustedHostMiddleware, allowed_hosts=hosts))
    if auth is not None:
        found.append(Middleware(Door, known=functools.partial(_is_known, auth)))
    return [*found, Middleware(Usher, audience=audience, key_of=_whose_news)]


def _whose_news(scope: dict[str, Any]) -> str | None:
    """gradio's page and client fetch them by session, plain HTTP by event."""
    found = _STREAM.fullmatch(scope["path"]) if scope["method"] == "GET" else None
    query = parse_qs(scope["query_string"].decode("latin-1"))
    return found and (found["event"] or query.get("session_hash", [""])[0])


_STREAM = re.compile(r".*/gradio_api/(?:queue/data|call/(?:v2/)?[^/]+/(?P<event>[^/]+))")


def _is_known(auth: tuple[str, str], scope: dict[str, Any]) -> bool:
    """By the cookie that gradio gave at the login; or, as Prometheus and MCP do, by Basic authentication."""
    from starlette.requests import Request

    request, app = Request(scope), scope["app"]
    cookies = (request.cookies.get(f"access-token{kind}-{app.cookie_id}") for kind in ("", "-unsecure"))
    basic = "Basic " + base64.b64encode(":".join(auth).encode()).decode()
    given = request.headers.get("authorization", "")
    return any(one in app.tokens for one in cookies) or secrets.compare_digest(given.encode(), basic.encode())


def _handlers() -> dict[Any, Any]:
    from fastapi.exceptions import RequestValidationError
    from starlette.responses import JSONResponse

    return {RequestValidationError: lambda _, error: JSONResponse({"detail": misfit(error.errors())}, 422)}


def _routes(service: Any, auth: tuple[str, str] | None) -> list[Any]:
    from starlette.requests import Request
    from starlette.responses import JSONResponse, PlainTextResponse, Response
    from starlette.routing import Route

    def healthz(request: Request) -> Response:
        """Open to all, as load balancers ask; with a password it says no more than they need."""
        found = service.health()
        told = found if auth is None else {"status": found["status"]}
        return JSONResponse(told, 200 if found["status"] == "ok" else 503)

    def metrics(request: Request) -> Response:
        return PlainTextResponse(service.meters(), media_type="text/plain; version=0.0.4")

    return [Route("/healthz", healthz), Route("/metrics", metrics)]
