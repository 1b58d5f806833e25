"""What stands round the page: who gets in, how large a request may be, what is left behind."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from altdiffusion.cli import main
from altdiffusion.requests import BadRequest
from tests.app.painter import Painter

pytest.importorskip("gradio", reason="needs the extra app: pip install 'altdiffusion[app]'")
httpx = pytest.importorskip("httpx")
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::UserWarning"
)
ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def served() -> Iterator[SimpleNamespace]:
    from altdiffusion.web import Options
    from app.launching import launch

    demo = launch(Painter(), Options(auth="ann:secret"))
    with httpx.Client(base_url=demo.local_url, timeout=30) as http:
        yield SimpleNamespace(http=http, port=demo.server_port, demo=demo)
    demo.close()


def options(**fields: Any) -> Any:
    from altdiffusion.web import Options

    return Options.from_text(**fields)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
def test_nobody_listens_publicly_without_a_password_by_mistake(host: str):
    from altdiffusion.web import check

    with pytest.raises(BadRequest, match=r"host: .* lets others in; allowed with --auth"):
        check(options(host=host))
    assert check(options(host=host, auth="ann:secret")) == ("ann", "secret")
    assert check(options(host=host, public_without_auth=True)) is None


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_this_machine_needs_no_password(host: str):
    from altdiffusion.web import check

    assert check(options(host=host)) is None


@pytest.mark.parametrize("text", ["ann", "ann:", ":secret", ""])
def test_half_a_password_is_refused(text: str):
    from altdiffusion.web import check

    with pytest.raises(BadRequest, match="auth: not USER:PASS"):
        check(options(auth=text))


@pytest.mark.parametrize("name", ["port", "batch", "max_waiting"])
@pytest.mark.parametrize("text", ["0", "65536", "-1", "x", "7860.5", "9" * 50, "٣"])
def test_numbers_are_whole_and_bounded(name: str, text: str):
    with pytest.raises(BadRequest, match=f"{name}: .*; allowed a whole number from 1 to "):
        options(**{name: text})
    assert getattr(options(**{name: "7"}), name) == 7


def test_a_port_that_is_taken_is_one_line_before_anything_is_loaded(capsys: pytest.CaptureFixture[str]):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert main(["app", "--port", str(port)]) == 2
        told = capsys.readouterr().err
        assert told == f"port: {port} is taken; allowed a free one, or none for the next\n"


@pytest.mark.parametrize("host", ["192.0.2.1", "no.such.host.invalid"])
def test_a_host_that_is_not_this_machine_is_one_line(host: str, capsys: pytest.CaptureFixture[str]):
    assert main(["app", "--host", host, "--public-without-auth"]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"host: '{host}' cannot be listened at (") and told.count("\n") == 1


@pytest.mark.parametrize(("package", "flags"), [("gradio", []), ("mcp", ["--mcp"])])
def test_a_missing_package_is_named_with_its_cure(
    package: str, flags: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == package else find(name, *rest)
    )
    assert main(["app", *flags]) == 2
    assert "pip install 'altdiffusion[app]'" in capsys.readouterr().err


def test_load_balancers_need_no_password_and_learn_nothing(served: SimpleNamespace):
    assert served.http.get("/healthz").json() == {"status": "ok"}


def test_meters_are_for_who_knows_the_password(served: SimpleNamespace):
    for wrong in (None, ("ann", "wrong"), ("", ""), ("ann:secret", "")):
        assert served.http.get("/metrics", auth=wrong).status_code == 401
    told = served.http.get("/metrics", auth=("ann", "secret"))
    assert told.status_code == 200 and told.text.startswith("altdiffusion_requests_total")


#: What the page to log in is made of, and what says nothing of the app.
OPEN = {"/", "/login", "/login/", "/logout", "/healthz", "/favicon.ico", "/robots.txt", "/manifest.json"}
OPEN |= {"/theme.css", "/gradio_api/theme.css", "/gradio_api/startup-events"}


def every_route(routes: Any) -> Iterator[Any]:
    """Also those of routers inside."""
    for route in routes:
        inside = getattr(route, "original_router", None)
        yield from [route] if inside is None else every_route(inside.routes)


def test_a_stranger_gets_401_on_every_route_but_those_of_the_login(served: SimpleNamespace):
    """Every route that the app has, whatever release of gradio brought it."""
    tried = 0
    for route in every_route(served.demo.app.routes):
        path = re.sub(r"\{[^}]*\}", "a", route.path)
        for method in getattr(route, "methods", None) or ():
            if path not in OPEN and not path.startswith(("/static/", "/assets/", "/svelte/")):
                answer = served.http.request(method, path)
                assert answer.status_code == 401, (method, path)
                assert method == "HEAD" or answer.json()["detail"]
                tried += 1
    assert tried > 60
    for path in ("/openapi.json", "/docs", "/gradio_api/openapi.json", "/nowhere", "/gradio_api/mcp/"):
        assert served.http.get(path).status_code == 401, path


def test_who_has_logged_in_gets_all_of_it(served: SimpleNamespace):
    with httpx.Client(base_url=served.demo.local_url, timeout=30) as http:
        assert http.post("/login", data={"username": "ann", "password": "secret"}).status_code == 200
        for path in ("/config", "/gradio_api/info", "/gradio_api/openapi.json", "/metrics"):
            assert http.get(path).status_code == 200, path
        http.get("/logout")
        assert http.get("/metrics").status_code == 401


def test_the_connections_of_who_is_gone_without_a_word_end(served: SimpleNamespace):
    if not hasattr(socket, "TCP_USER_TIMEOUT"):
        pytest.skip("Linux alone has it")
    (listening,) = [one for server in served.demo.server.servers for one in server.sockets]
    assert listening.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 20_000
    with socket.create_server(("127.0.0.1", 0)) as same:
        same.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 20_000)
        with socket.create_connection(same.getsockname()), same.accept()[0] as taken:
            assert taken.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 20_000


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "[::ffff:127.0.0.1]"])
def test_a_name_of_somebody_elses_does_not_reach_the_app(served: SimpleNamespace, host: str):
    answer = served.http.get("/", headers={"host": host})
    assert answer.status_code == 400 and answer.headers["x-content-type-options"] == "nosniff"


def test_every_answer_has_the_security_headers(served: SimpleNamespace):
    for path in ("/", "/healthz", "/nowhere", "/config"):
        headers = served.http.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "same-origin"
        policy = headers["content-security-policy"]
        assert "default-src 'self'" in policy and "frame-ancestors 'self' https://huggingface.co" in policy


def test_a_large_body_is_refused_before_it_is_read(served: SimpleNamespace):
    answer = served.http.post("/login", content=b"x" * (13 * 2**20))
    assert answer.status_code == 413 and "12 MB" in answer.text


def test_language_models_get_the_actions_as_tools():
    from altdiffusion.web import Options
    from app.launching import launch

    demo = launch(Painter(), Options(mcp=True, auth="ann:secret"))
    try:
        schema = f"{demo.local_url}gradio_api/mcp/schema"
        assert httpx.get(schema).status_code == 401
        tools = httpx.get(schema, auth=("ann", "secret")).json()
    finally:
        demo.close()
    assert {"generate", "compare", "mix", "search", "classify", "read"} == {tool["name"] for tool in tools}
    assert "18 languages" in tools[0]["description"]


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def _hears_ctrl_c() -> None:
    """What a shell starts in the background, these tests for one, ignores it, and so do its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize(
    ("command", "stop"),
    [(["-m", "app"], signal.SIGTERM), (["-m", "altdiffusion", "app"], signal.SIGINT)],
    ids=["app", "altdiffusion"],
)
def test_both_ways_to_start_serve_a_model_and_leave_nothing_behind(
    command: list[str], stop: signal.Signals, shared_folder: Path, tmp_path: Path
):
    port = free_port()
    run = [sys.executable, *command, "--model", str(shared_folder), "--port", str(port)]
    environment = os.environ | {"TMPDIR": str(tmp_path), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        run, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True, preexec_fn=_hears_ctrl_c
    ) as process:
        try:
            assert process.stderr is not None
            told = next((line for line in process.stderr if "the app is at" in line), "it never came up")
            health = httpx.get(f"http://127.0.0.1:{port}/healthz").json()
            assert health["status"] == "ok" and health["model"] == shared_folder.name
            assert list(tmp_path.glob("altdiffusion-app-*"))
        finally:
            process.send_signal(stop)
            _, rest = process.communicate(timeout=60)
    assert f"http://127.0.0.1:{port}" in told and "Traceback" not in rest
    assert not list(tmp_path.glob("altdiffusion-app-*"))


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_at_once_while_it_loads(stop: signal.Signals, shared_folder: Path, tmp_path: Path):
    """The index's manifest is a pipe into which nobody writes: it would be loaded for ever."""
    (tmp_path / "index").mkdir()
    os.mkfifo(tmp_path / "index/index.json")
    run = [sys.executable, "-m", "app", "--model", str(shared_folder), "--index", str(tmp_path / "index")]
    environment = os.environ | {"TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        run, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True, preexec_fn=_hears_ctrl_c
    ) as process:
        end = time.monotonic() + 60
        while not list(tmp_path.glob("altdiffusion-app-*")):
            assert time.monotonic() < end and process.poll() is None
            time.sleep(0.02)
        time.sleep(0.1)
        process.send_signal(stop)
        _, told = process.communicate(timeout=20)
    assert process.returncode == 128 + stop and "Traceback" not in told
    assert not list(tmp_path.glob("altdiffusion-app-*"))
