"""Raw HTTP requests meant to do harm, against the app as people start it: nothing of this machine is read,
nothing is fetched, limits hold on the server, and whoever is refused is told why."""

import contextlib
import json
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.reliability.served.attacking import ROOT, SECRET, Running, drawing, nothing_read, picture, running
from tests.reliability.served.attacks import GET, NAMES, NONSENSE

pytest.importorskip("gradio", reason="needs the extra app: pip install 'altdiffusion[app]'")
pytestmark = pytest.mark.attempt("C1 HTTP attacks", "refused")

MB = 2**20


@pytest.mark.parametrize("target", GET)
def test_no_path_leads_to_a_file_or_to_another_server(app: Running, target: str):
    places = {"SECRET": str(app.secret), "CANARY": app.canary, "ROOT": str(ROOT)}
    for name, place in places.items():
        target = target.replace(name, place)
    answer = app.ask("GET", target)
    nothing_read(app, answer.body)
    assert 400 <= answer.status < 500, answer


@pytest.mark.parametrize("name", list(NAMES))
def test_an_upload_s_name_leads_nowhere(app: Running, name: str):
    answer = app.upload((NAMES[name], picture()))
    assert answer.status < 500
    if answer.status == 200:
        (path,) = json.loads(answer.body)
        assert Path(path).resolve().is_relative_to(app.secret.parent)
        assert Path(path).parents[1].name.startswith("altdiffusion-app-")
        assert len(Path(path).name.encode()) <= 255
    assert not list(app.secret.parent.glob("evil*")) and not Path("/tmp/evil.png").exists()


@pytest.mark.parametrize("name", ["page.html", "picture.svg", "script.js"])
def test_an_upload_is_never_shown_as_a_page(app: Running, name: str):
    (path,) = json.loads(app.upload((name, b"<script>alert(1)</script>")).body)
    answer = app.ask("GET", f"/gradio_api/file={path}")
    assert answer.status == 200
    assert answer.headers["content-disposition"].startswith("attachment")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "html" not in answer.headers["content-type"] and "svg" not in answer.headers["content-type"]


def chunks(size: int) -> bytes:
    return b"100000\r\n" + b"a" * MB + b"\r\n" if size == 1 else chunks(1) * size + b"0\r\n\r\n"


def test_large_bodies_are_refused_before_they_are_kept(app: Running):
    told = [
        app.upload(("a.png", b"a" * 60 * MB)),
        app.upload(*((f"{i}.png", b"a" * 4 * MB) for i in range(20))),
        app.post("/gradio_api/queue/join", b'{"data": ["' + b"a" * 50 * MB),
        app.ask("POST", "/gradio_api/upload", b"", Content_Length="99999999999"),
        app.ask("POST", "/gradio_api/queue/join", b"", Content_Length="-5"),
    ]
    assert [answer.status for answer in told] == [413] * 4 + [told[4].status]
    assert 400 <= told[4].status < 500
    assert all("allowed at most" in answer.told for answer in told[:4])


def test_a_large_body_that_hides_its_size_is_refused_as_it_comes(app: Running):
    kind = "multipart/form-data; boundary=xyz"
    start = b'--xyz\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    body = b"%x\r\n%s\r\n" % (len(start), start) + chunks(40)
    answer = app.ask("POST", "/gradio_api/upload", body, Content_Type=kind, Transfer_Encoding="chunked")
    assert answer.status == 413 and answer.told
    body = b'b\r\n{"data": ["\r\n' + chunks(40)
    answer = app.ask(
        "POST", "/gradio_api/queue/join", body, Content_Type="application/json", Transfer_Encoding="chunked"
    )
    assert answer.status == 413 and answer.told


def test_one_file_is_limited_as_well(app: Running):
    answer = app.upload(("a.png", b"a" * 11 * MB))
    assert answer.status == 413
    assert answer.told


@pytest.mark.parametrize("body", NONSENSE)
def test_requests_that_make_no_sense_are_refused(app: Running, body: bytes):
    answer = app.post("/gradio_api/queue/join", body)
    assert 400 <= answer.status < 500, answer
    assert answer.told


def test_refusals_come_in_the_language_of_the_browser(app: Running):
    succeeded, told = app.called("generate", drawing(steps=0), Accept_Language="th-TH,th;q=0.9,en;q=0.5")
    assert not succeeded
    assert told.startswith("จำนวนขั้น: 0; ")
    evil = "de;q=" * 20_000  # more than servers take
    assert app.ask("GET", "/config", Accept_Language=evil[:10_000]).status < 500


def test_so_far_nothing_was_read_or_fetched_and_the_log_is_short(app: Running):
    """Each refusal above was foreseen, or its traceback would be here."""
    nothing_read(app)
    log = app.log.read_text(encoding="utf-8", errors="replace")
    assert SECRET not in log and "Traceback" not in log
    assert max(map(len, log.splitlines()), default=0) < 1000
    assert not Path("pwned").exists()
    assert json.loads(app.ask("GET", "/healthz").body)["status"] == "ok"


def test_helpers_of_the_page_take_anything_and_do_no_harm(app: Running):
    """They are private, but whoever wants to can call them."""
    values: list[Any] = [
        {"path": str(app.secret), "meta": {"_type": "gradio.FileData"}},
        5,
        "<script>alert(1)</script>",
    ]
    values += [
        [{"image": {"path": str(app.secret)}}],
        {"prompt": "<img src=x onerror=alert(1)>", "small": "x"},
    ]
    values += [[{"prompt": "<b>", "small": 'data:image/webp;base64,"><script>'}]]
    values += [
        None,
        [],
        {},
        "",
        -1,
        1e308,
        True,
        {"languages": 5, "texts": [1]},
        [[[]]],
        {"en": {"label": 5}},
    ]
    public = {"generate", "compare", "mix", "search", "classify", "read"}
    config = json.loads(app.ask("GET", "/config").body)
    pages = {one["id"] for one in config["components"] if one["type"] in ("html", "markdown")}
    for one in config["dependencies"]:
        for value in values if one["api_name"] not in public else ():
            succeeded, told = app.called(one["id"], [value] * len(one["inputs"]))
            nothing_read(app, told)
            assert succeeded or told
            shown = zip(one["outputs"], told, strict=False) if succeeded else []
            for place, found in shown:
                shows = re.search("<script|<img src=x|<b>", str(found))
                assert place not in pages or not shows, one["api_name"]
    assert "Traceback" not in app.log.read_text(encoding="utf-8", errors="replace")


@pytest.mark.parametrize("target", ["/gradio_api/run/generate", "/gradio_api/api/generate", "/run/generate"])
def test_there_is_no_way_around_the_queue(app: Running, target: str):
    answer = app.post(target, {"data": drawing()})
    assert answer.status in (404, 405)


@pytest.mark.parametrize(
    ("target", "value"),
    [
        (
            "/gradio_api/component_server",
            {"data": ["/etc"], "component_id": 1, "fn_name": "ls", "session_hash": "a"},
        ),
        (
            "/gradio_api/component_server",
            {"data": [], "component_id": 24, "fn_name": "__init__", "session_hash": "a"},
        ),
        ("/gradio_api/reset", {"event_id": "../../etc"}),
        ("/gradio_api/cancel", {"session_hash": "a", "fn_index": 1, "event_id": "b"}),
        ("/gradio_api/vibe-edit", {"prompt": "rm"}),
        ("/gradio_api/vibe-code", {"code": "print(1)"}),
        ("/gradio_api/stream/a", {"a": 1}),
        ("/gradio_api/process_recording", {"a": 1}),
        ("/gradio_api/call/nothing", {"data": []}),
        ("/gradio_api/call/v2/nothing", {}),
        ("/gradio_api/run-history/connect", {"a": 1}),
        ("/login", {"username": "a", "password": "b"}),
    ],
)
def test_other_routes_of_the_library_do_nothing(app: Running, target: str, value: Any):
    answer = app.post(target, value)
    nothing_read(app, answer.body)
    assert answer.status < 500, answer


def test_another_host_name_is_refused(app: Running):
    """A page of somebody else's whose name resolves to this machine could talk to the app else."""
    for host in (
        "evil.com",
        f"evil.com:{app.port}",
        "localhost.evil.com",
        "169.254.169.254",
        "127.0.0.1.evil.com",
    ):
        answer = app.ask("GET", "/config", host=host, Origin=f"http://{host}")
        assert answer.status == 400 and "config" not in answer.told
    for host in (f"127.0.0.1:{app.port}", f"localhost:{app.port}"):
        assert app.ask("GET", "/config", host=host).status == 200


@pytest.mark.parametrize("origin", ["http://evil.com", "null", "http://localhost.evil.com", "file://"])
def test_another_site_reads_nothing(app: Running, origin: str):
    for answer in (
        app.ask("GET", "/config", Origin=origin),
        app.join("generate", drawing(), Origin=origin)[0],
        app.ask("OPTIONS", "/gradio_api/queue/join", Origin=origin, Access_Control_Request_Method="POST"),
    ):
        assert answer.headers.get("access-control-allow-origin") in (None, ""), answer.headers
    assert app.ask("POST", "/gradio_api/queue/join", b'{"data": []}', Content_Type="text/plain").status == 422


@pytest.mark.parametrize("origin", ["http://evil.com", "null"])
def test_another_site_leaves_no_files(app: Running, origin: str):
    """A form needs no leave to send files: it would fill the disk."""
    before = len(list(app.secret.parent.rglob("*")))
    answer = app.upload(("left.png", picture()), Origin=origin, Sec_Fetch_Site="cross-site")
    assert answer.status == 403
    assert answer.told
    assert len(list(app.secret.parent.rglob("*"))) == before


@pytest.mark.attempt("C1 HTTP attacks", "right")
@pytest.mark.parametrize(
    "target", ["/", "/config", "/nowhere", "/gradio_api/file=/etc/passwd", "/healthz", "/metrics"]
)
def test_every_answer_has_security_headers(app: Running, target: str):
    headers = app.ask("GET", target).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert "referrer-policy" in headers
    assert "frame-ancestors" in headers["content-security-policy"]
    assert "default-src 'self'" in headers["content-security-policy"]


def test_a_flood_gets_a_text_and_is_over_when_its_senders_leave(app: Running):
    slow = drawing(steps=150, count=16, width=128, height=128)
    with contextlib.ExitStack() as senders, ThreadPoolExecutor(16) as pool:
        joined = list(pool.map(lambda _: app.join("generate", slow), range(100)))
        assert all(answer.status == 200 or (answer.status == 503 and answer.told) for answer, _ in joined)
        for _, code in joined:
            listener = senders.enter_context(contextlib.closing(app.connection()))
            listener.request("GET", f"/gradio_api/queue/data?session_hash={code}")
        until(lambda: health(app)["waiting"] == 32)
        succeeded, told = app.called("generate", drawing())
        assert not succeeded
        assert re.match(r"Too many requests are waiting \(32 of 32\)", told)
    until(lambda: health(app)["waiting"] == health(app)["drawing"] == 0)
    assert app.called("generate", drawing())[0]


def health(app: Running) -> dict[str, Any]:
    return json.loads(app.ask("GET", "/healthz").body)


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.fixture(scope="module")
def closed_app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A page with a password, over a service that needs no model."""
    code = """if True:
        from altdiffusion.web import Options
        from app.launching import launch
        from tests.app.painter import Painter

        launch(Painter(), Options(port=PORT, auth="user:a pass")).block_thread()"""
    with running(tmp_path_factory.mktemp("closed"), "-c", code) as found:
        yield found


def test_with_a_password_nothing_answers_without_it(closed_app: Running):
    asked = [
        *(("GET", "/config"), ("GET", "/gradio_api/info"), ("GET", "/gradio_api/openapi.json")),
        ("GET", "/gradio_api/queue/data?session_hash=a"),
        *(
            ("POST", "/gradio_api/queue/join"),
            ("POST", "/gradio_api/upload"),
            ("POST", "/gradio_api/call/generate"),
        ),
    ]
    for method, target in asked:
        body = b"{}" if method == "POST" else None
        answer = closed_app.ask(method, target, body, Content_Type="application/json")
        assert answer.status in (401, 403, 404), (target, answer)


def test_only_the_right_password_lets_in(closed_app: Running):
    kind = {"Content_Type": "application/x-www-form-urlencoded"}
    for guess in (
        "user&password=b",
        "user&password=",
        "a pass&password=user",
        "\0&password=%00",
        "&password=",
    ):
        answer = closed_app.ask("POST", "/login", f"username={guess}".encode(), **kind)
        assert answer.status in (400, 422) and answer.told, guess
    good = closed_app.ask("POST", "/login", b"username=user&password=a+pass", **kind)
    assert good.status == 200
    cookie = good.headers["set-cookie"]
    assert "httponly" in cookie.lower() and "samesite" in cookie.lower()
    assert closed_app.ask("GET", "/config", Cookie=cookie.split(";")[0]).status == 200
