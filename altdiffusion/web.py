"""What the app is started with, and where it is: in the wheel `altdiffusion._app`, by a checkout `app/`."""

import errno
import importlib
import importlib.util
import ipaddress
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from altdiffusion.flags import Model, flag
from altdiffusion.requests import BadRequest, shorten

_NAME = "altdiffusion._app"


def app(
    *,
    model: Model = None,
    index: Annotated[str | None, flag("INDEX", "the emoji", "What its search looks through.")] = None,
    encoder: Annotated[
        str | None, flag("MODEL", "the model's own", "An AltCLIP to search and classify with.")
    ] = None,
    batch: Annotated[str | None, flag("N", "4", "Pictures to draw together at most.")] = None,
    max_waiting: Annotated[str | None, flag("N", "32", "Requests that may wait.")] = None,
    host: Annotated[str, flag("HOST", "127.0.0.1", "Where to listen; 0.0.0.0 is everywhere.")] = "127.0.0.1",
    port: Annotated[str | None, flag("N", "7860 or the next", "The port.")] = None,
    auth: Annotated[str | None, flag("USER:PASS", "", "Ask visitors for these.")] = None,
    public_without_auth: Annotated[bool, flag("", "", "Let others in without --auth.")] = False,
    root_path: Annotated[str, flag("PATH", "", "Where a proxy puts the app.")] = "",
    mcp: Annotated[bool, flag("", "", "Also serve its actions to language models (MCP).")] = False,
    open_browser: Annotated[bool, flag("", "", "Open the page.")] = False,
) -> None:
    """Open the app: generate, compare languages, search and classify in a browser.

    Prints its address on stderr; Ctrl-C ends it. Everything runs on this machine, offline too.
    """
    fields = locals()
    serve(Options.from_text(**fields))


@dataclass(frozen=True)
class Options:
    """What can be said on the command line; see docs/app.md."""

    model: str | None = None
    index: str | None = None
    encoder: str | None = None
    batch: int | None = None
    max_waiting: int = 32
    host: str = "127.0.0.1"
    port: int | None = None
    auth: str | None = None
    root_path: str = ""
    public_without_auth: bool = False
    mcp: bool = False
    open_browser: bool = False

    @classmethod
    def from_text(cls, **fields: Any) -> "Options":
        """From texts, as a command line has them; None is left out."""
        given: dict[str, Any] = {name: value for name, value in fields.items() if value is not None}
        for name in _MOST.keys() & given.keys():
            given[name] = _whole(name, given[name])
        return cls(**given)

    def of_service(self) -> dict[str, Any]:
        """What `Service.load` takes beside the model."""
        return {name: getattr(self, name) for name in ("index", "encoder", "batch", "max_waiting")}


_MOST = {"port": 65_535, "batch": 64, "max_waiting": 1000}


def _whole(name: str, text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 6 and 0 < int(text) <= _MOST[name]):
        raise BadRequest(f"{name}: {shorten(text)}; allowed a whole number from 1 to {_MOST[name]}")
    return int(text)


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


def check_address(options: Options) -> None:
    """Before the model is loaded, which may take minutes."""
    host, port = options.host.strip("[]"), options.port or 0
    try:
        socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise BadRequest(f"port: {port} is taken; allowed a free one, or none for the next") from None
        name = "port" if error.errno == errno.EACCES else "host"
        given = {"port": port, "host": shorten(options.host)}[name]
        raise BadRequest(f"{name}: {given} cannot be listened at ({error.strerror})") from None


def serve(options: Options) -> None:
    """Runs the app until it is interrupted."""
    from altdiffusion.checkpoints import resolve

    check(options)
    check_address(options)
    resolve(options.model)
    find()
    launching: Any = importlib.import_module(f"{_NAME}.launching")
    launching.serve(options)


def find() -> None:
    """Makes `altdiffusion._app` importable; in a checkout it is the folder `app`, under the wheel's name."""
    if _NAME in sys.modules or importlib.util.find_spec(_NAME) is not None:
        return
    folder = Path(__file__).parent.parent / "app"
    spec = importlib.util.spec_from_file_location(
        _NAME, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    if spec is None or spec.loader is None or not (folder / "__init__.py").is_file():
        raise BadRequest("app: not in this installation; pip install 'altdiffusion[app]'")
    module = importlib.util.module_from_spec(spec)
    sys.modules[_NAME] = module
    spec.loader.exec_module(module)
