"""What stands round the page: who gets in, how large a request may be, what is left behind."""

import os
import signal
import socket
import subprocess
import sys
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
    from app.launching import Options, launch

    demo = launch(Painter(), Options(auth="ann:secret"))
    with httpx.Client(base_url=demo.local_url, timeout=30) as http:
        yield SimpleNamespace(http=http, port=demo.server_port, demo=demo)
    demo.close()


def options(**fields: Any) -> Any:
    from app.launching import Options

    return Options.from_text(**fields)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
def test_nobody_listens_publicly_without_a_password_by_mistake(host: str):
    from app.launching import check

    with pytest.raises(BadRequest, match=r"host: .* lets others in; allowed with --auth"):
        check(options(host=host))
    assert check(options(host=host, auth="ann:secret")) == ("ann", "secret")
    assert check(options(host=host, public_without_auth=True)) is None


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_this_machine_needs_no_password(host: str):
    from app.launching import check

    assert check(options(host=host)) is None


@pytest.mark.parametrize("text", ["ann", "ann:", ":secret", ""])
def test_half_a_password_is_refused(text: str):
    from app.launching import check

    with pytest.raises(BadRequest, match="auth: not USER:PASS"):
        check(options(auth=text))


@pytest.mark.parametrize("port", ["0", "65536", "-1", "x", "7860.5", "9" * 50])
def test_a_port_is_a_port(port: str):
    with pytest.raises(BadRequest, match="port: "):
        options(port=port)


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


def test_health_and_meters_are_for_machines(served: SimpleNamespace):
    assert served.http.get("/healthz").json() == {"status": "ok"}
    assert served.http.get("/metrics").text.startswith("altdiffusion_requests_total")


def test_a_stranger_sees_a_login_only(served: SimpleNamespace):
    for path in ("/config", "/gradio_api/info", "/gradio_api/queue/data?session_hash=a"):
        assert served.http.get(path).status_code == 401, path
    assert served.http.post("/gradio_api/upload", files={"files": b"x"}).status_code == 401


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
    from app.launching import Options, launch

    demo = launch(Painter(), Options(mcp=True))
    try:
        tools = httpx.get(f"{demo.local_url}gradio_api/mcp/schema").json()
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
