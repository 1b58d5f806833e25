"""Raw HTTP requests meant to do harm, against the app as people start it: nothing of this machine is read, nothing
is fetched, limits hold on the server, and whoever is refused is told why."""

import contextlib
import http.client
import http.server
import io
import json
import os
import re
import secrets
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from altdiffusion.images import save_png
from altdiffusion.requests import Provenance

ROOT = Path(__file__).parents[2]
SECRET = "the-secret-of-this-machine"
MB = 2**20


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def told(self) -> str:
        """The text of a refusal."""
        found = json.loads(self.body)
        return str(found.get("detail") or found.get("error") or "")


@dataclass
class Running:
    """The app in a process of its own, and how to talk to it without a client that tidies requests up."""

    process: subprocess.Popen
    port: int
    log: Path
    secret: Path
    """A picture outside of the app's folders, whose note holds the secret."""
    canary: str
    fetched: list[str]
    """What somebody asked of the canary."""
    numbers: dict[str, int] = field(default_factory=dict)

    def ask(
        self, method: str, target: str, body: bytes | None = None, host: str | None = None, **headers: str
    ) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            connection.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
            connection.putheader("Host", host or f"127.0.0.1:{self.port}")
            for name, value in headers.items():
                connection.putheader(name.replace("_", "-"), value)
            if body is not None and "Content_Length" not in headers and "Transfer_Encoding" not in headers:
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders()
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # refused before all was sent
                connection.send(body or b"")
            response = connection.getresponse()
            found = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, found, response.read())

    def post(self, target: str, value: Any, **headers: str) -> Answer:
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        return self.ask("POST", target, body, Content_Type="application/json", **headers)

    def join(self, name: str | int, data: Any, **headers: str) -> tuple[Answer, str]:
        code = secrets.token_hex(8)
        number = self.numbers.get(name, name) if isinstance(name, str) else name
        asked = {"data": data, "fn_index": number, "session_hash": code}
        return self.post("/gradio_api/queue/join", asked, **headers), code

    def called(self, name: str | int, data: Any, **headers: str) -> tuple[bool, Any]:
        """(whether it succeeded, its data or what was told)."""
        answer, code = self.join(name, data, **headers)
        if answer.status != 200:
            return False, answer.told
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            connection.request("GET", f"/gradio_api/queue/data?session_hash={code}")
            for line in connection.getresponse():
                news = json.loads(line[5:]) if line.startswith(b"data:") else {}
                if news.get("msg") == "process_completed":
                    output = news["output"]
                    return news["success"], output["data"] if news["success"] else output["error"]
        raise AssertionError(f"{name}: closed without an answer")

    def upload(self, *files: tuple[str, bytes], **headers: str) -> Answer:
        parts = [
            b'--xyz\r\nContent-Disposition: form-data; name="files"; filename="%s"\r\n'
            b"Content-Type: application/octet-stream\r\n\r\n%s\r\n" % (name.encode("utf-8", "replace"), data)
            for name, data in files
        ]
        kind = "multipart/form-data; boundary=xyz"
        body = b"".join(parts) + b"--xyz--\r\n"
        return self.ask("POST", "/gradio_api/upload", body, Content_Type=kind, **headers)

    def file(self, data: bytes) -> dict[str, Any]:
        """An uploaded picture as a widget's value."""
        (path,) = json.loads(self.upload(("a.png", data)).body)
        return {"path": path, "meta": {"_type": "gradio.FileData"}}


@contextlib.contextmanager
def running(folder: Path, model: Path, *arguments: str) -> Iterator[Running]:
    folder.mkdir()
    secret = folder / "secret.png"
    save_png(Image.new("RGB", (64, 64)), secret, Provenance(SECRET))
    log = folder / "log.txt"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "app", "--model", str(model), "--port", str(port), *arguments]
    with canary() as (address, fetched), log.open("wb") as out:
        process = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=out, env=environment(folder))
        try:
            end = time.monotonic() + 120
            while "the app is at" not in log.read_text(encoding="utf-8"):
                assert process.poll() is None and time.monotonic() < end, log.read_text(encoding="utf-8")
                time.sleep(0.1)
            yield Running(process, port, log, secret, address, fetched)
        finally:
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            process.kill()


def environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "TMPDIR": str(folder), "CANARY": SECRET, "OMP_NUM_THREADS": "1"}


@contextlib.contextmanager
def canary() -> Iterator[tuple[str, list[str]]]:
    """A server that must never be asked for anything."""
    fetched: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            fetched.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(picture())

        do_HEAD = do_POST = do_GET

        def log_message(self, *_: Any) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}", fetched
        server.shutdown()


@pytest.fixture(scope="module")
def app(shared_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("attacks") / "app", shared_folder) as found:
        config = json.loads(found.ask("GET", "/config").body)
        found.numbers = {one["api_name"]: one["id"] for one in config["dependencies"]}
        yield found


def picture(size: tuple[int, int] = (64, 64), mode: str = "RGB") -> bytes:
    data = io.BytesIO()
    Image.new(mode, size).save(data, "PNG")
    return data.getvalue()


def claiming(width: int, height: int) -> bytes:
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n\0\0\0\r" + chunk + struct.pack(">I", zlib.crc32(chunk)) + b"\0\0\0\0IDAT"


def nothing_read(app: Running, *found: Any) -> None:
    text = str(found)
    assert SECRET not in text and "root:x:" not in text and "def build_demo" not in text
    assert app.fetched == []


GET = [
    *("/gradio_api/file=/etc/passwd", "/gradio_api/file=SECRET", "/file=/etc/passwd", "/gradio_api/file/etc/passwd"),
    *("/gradio_api/file=../../../../etc/passwd", "/gradio_api/file=%2e%2e/%2e%2e/%2e%2e/etc/passwd"),
    *("/gradio_api/file=//etc/passwd", "/gradio_api/file=/etc/passwd%00.png", "/gradio_api/file=/proc/self/environ"),
    *("/gradio_api/file=file:///etc/passwd", "/gradio_api/file=http://CANARY/a", "/gradio_api/file=//CANARY/a"),
    *("/gradio_api/file=app/demo.py", "/gradio_api/file=ROOT/app/demo.py", "/gradio_api/file=/dev/zero"),
    *("/gradio_api/proxy=http://CANARY/a", "/gradio_api/proxy=file:///etc/passwd", "/static/../../../../etc/passwd"),
    *("/static/%2e%2e/%2e%2e/%2e%2e/%2e%2e/routes.py", "/assets/..%2f..%2f..%2f..%2froutes.py"),
    *("/gradio_api/custom_component/1/client/component/..%2f..%2f..%2fetc%2fpasswd", "/svelte/../../routes.py"),
    *("/pwa_icon/SECRET", "/gradio_api/stream/a/b/1/..%2f..%2fetc%2fpasswd.ts", "/gradio_api/deep_link?session_hash=a"),
    *("/gradio_api/vibe-code", "/monitoring", "/gradio_api/dev/reload", "/gradio_api/run-history/records"),
]  # fmt: skip


@pytest.mark.parametrize("target", GET)
def test_no_path_leads_to_a_file_or_to_another_server(app: Running, target: str):
    places = {"SECRET": str(app.secret), "CANARY": app.canary, "ROOT": str(ROOT)}
    for name, place in places.items():
        target = target.replace(name, place)
    answer = app.ask("GET", target)
    nothing_read(app, answer.body)
    assert 400 <= answer.status < 500, answer


#: What a program may send where a picture is asked for.
PAYLOADS = {
    "a path": {"path": "SECRET"},
    "a path as a file": {"path": "SECRET", "meta": {"_type": "gradio.FileData"}},
    "a system file": {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}},
    "a path upwards": {"path": "UPLOADS/../secret.png", "meta": {"_type": "gradio.FileData"}},
    "a relative path": {"path": "app/demo.py", "meta": {"_type": "gradio.FileData"}},
    "an environment": {"path": "/proc/self/environ"},
    "a device": {"path": "/dev/zero"},
    "an address": {"path": "http://CANARY/a.png", "meta": {"_type": "gradio.FileData"}},
    "an address elsewhere": {"path": None, "url": "http://CANARY/a.png", "meta": {"_type": "gradio.FileData"}},
    "an address alone": {"url": "http://CANARY/a.png"},
    "both": {"path": "SECRET", "url": "http://CANARY/a.png", "meta": {"_type": "gradio.FileData"}},
    "a file address": {"path": "file://SECRET"},
    "an upper-case address": {"path": " HTTP://CANARY/a.png", "meta": {"_type": "gradio.FileData"}},
    "a text": "http://CANARY/a.png",
    "a data address": {"path": "data:image/png;base64,AAAA", "meta": {"_type": "gradio.FileData"}},
    "a list": [{"path": "SECRET", "meta": {"_type": "gradio.FileData"}}],
    "a number": 5,
    "a NUL": {"path": "SECRET\0.png"},
    "a folder": {"path": "UPLOADS"},
}


def payload(app: Running, name: str) -> Any:
    places = {"SECRET": str(app.secret), "CANARY": app.canary}
    text = json.dumps(PAYLOADS[name])
    if "UPLOADS" in text:
        places["UPLOADS"] = str(Path(app.file(picture())["path"]).parents[1])
    for key, place in places.items():
        text = text.replace(key, place)
    return json.loads(text)


def asking(name: str, image: Any) -> list[Any]:
    """All values of an endpoint that takes a picture."""
    return {
        "generate": ["cat", "", 1, None, None, None, 7, "", 0, 1, False, {"background": image, "layers": []}, 1],
        "search": ["", image, 0.5, "", "", 3],
        "classify": [image, "cat\ndog", "en", "", False],
        "read": [image],
    }[name]


@pytest.mark.parametrize("endpoint", ["generate", "search", "classify", "read"])
@pytest.mark.parametrize("name", list(PAYLOADS))
def test_a_picture_is_an_uploaded_one_or_none(app: Running, endpoint: str, name: str):
    succeeded, told = app.called(endpoint, asking(endpoint, payload(app, name)))
    nothing_read(app, told)
    assert not succeeded
    assert isinstance(told, str) and "allowed" in told


PICTURES = {
    "empty": b"",
    "a text": b"no picture at all",
    "cut short": Image.effect_noise((64, 64), 50)._repr_png_()[:999],
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    "html": b"<script>alert(1)</script>",
    "30000 x 1": picture((30_000, 1), "1"),
    "144 million pixels": picture((12_000, 12_000), "1"),
    "900 million pixels": claiming(30_000, 30_000),
    "a pickle": b"\x80\x04cos\nsystem\n(S'touch pwned'\ntR.",
}


@pytest.mark.parametrize("endpoint", ["generate", "search", "classify", "read"])
@pytest.mark.parametrize("name", list(PICTURES))
def test_harmful_pictures_are_refused_by_name(app: Running, endpoint: str, name: str):
    began = time.monotonic()
    succeeded, told = app.called(endpoint, asking(endpoint, app.file(PICTURES[name])))
    assert not succeeded
    assert re.match(r"(image|picture): ", told) and "<script>" not in told
    assert time.monotonic() - began < 5


def test_a_good_picture_goes_through(app: Running):
    """Else all that is refused above would prove nothing."""
    for endpoint in ("generate", "search", "classify"):
        succeeded, told = app.called(endpoint, asking(endpoint, app.file(picture())))
        assert succeeded, told


NAMES = {
    **{"upwards": "../../evil.png", "backslashes": "..\\..\\evil.png", "absolute": "/tmp/evil.png"},
    **{"encoded": "%2e%2e%2fevil.png", "long": "a" * 300 + ".png", "dots": "..", "none": "", "tag": "<img src=x>.png"},
    **{"turned": "\u202egnp.evil", "NUL": "a\0b.png", "device": "CON.png", "emoji": "🦞.png"},
}


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
    assert answer.status == 413
    body = b'a\r\n{"data": ["\r\n' + chunks(40)
    answer = app.ask(
        "POST", "/gradio_api/queue/join", body, Content_Type="application/json", Transfer_Encoding="chunked"
    )
    assert answer.status == 413


def test_one_file_is_limited_as_well(app: Running):
    answer = app.upload(("a.png", b"a" * 11 * MB))
    assert answer.status == 413
    assert answer.told


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"{", b"[]", b"null", b"5", b'"a"', b"[" * 100_000, b'{"data": ' + b"[" * 50_000, b"\xff\xfe"),
        *(b"{}", b'{"data": [], "fn_index": 9999}', b'{"data": [], "fn_index": "x"}', b'{"data": [], "fn_index": -1}'),
        *(b'{"data": {"a": 1}, "fn_index": 1}', b'{"data": "cat", "fn_index": 1, "session_hash": 5}'),
        *(b'{"data": [], "fn_index": 1, "session_hash": {"a": 1}}', b'{"data": [1e999], "fn_index": true}'),
    ],
)  # fmt: skip
def test_requests_that_make_no_sense_are_refused(app: Running, body: bytes):
    answer = app.post("/gradio_api/queue/join", body)
    assert 400 <= answer.status < 500, answer
    assert answer.told


def drawing(**fields: Any) -> list[Any]:
    names = ["prompt", "negative_prompt", "steps", "guidance_scale", "width", "height", "seed", "scheduler"]
    names += ["clip_skip", "count", "weighting", "start", "strength"]
    own = dict.fromkeys(names) | {"prompt": "cat", "steps": 1, "seed": 7, "count": 1, "clip_skip": 0}
    return [{**own, "weighting": False, **fields}[name] for name in names]


FIELDS = [
    *({"prompt": value} for value in (None, 5, ["cat"], {"a": 1}, "", " ", "a" * 10**6, "a\0b", "\ud800")),
    *({"negative_prompt": value} for value in (5, ["cat"], "a" * 2001, "\0")),
    *({"steps": value} for value in ("7", 0, -1, 2.5, float("nan"), float("inf"), 10**9, 151, True, [1])),
    *({"guidance_scale": value} for value in ("7", -1, 51, float("nan"), float("-inf"), 1e308)),
    *({"width": value} for value in (0, 7, 65, -64, 10**6, "64", float("nan"))),
    *({"width": 2048, "height": 2048}, {"height": 1.5}, {"height": [64]}),
    *({"seed": value} for value in (-2, 2**64, 10**400, "abc", 0.5, float("nan"))),
    *({"scheduler": value} for value in (["ddim"], 5, "evil", "../../etc/passwd", {"a": 1})),
    *({"clip_skip": value} for value in (-1, 2, 99, "1", 0.5)),
    *({"count": value} for value in (0, -1, 17, 65, 10**9, "2", 1.5)),
    *({"weighting": value} for value in ("yes", 5, [])),
    *({"prompt": value, "weighting": True} for value in ("(cat:99)", "(" * 1000 + "cat" + ":9)" * 300)),
]


@pytest.mark.parametrize("fields", FIELDS, ids=lambda fields: ",".join(f"{k}={v!r:.20}" for k, v in fields.items()))
def test_a_value_out_of_its_range_is_refused_by_name(app: Running, fields: dict[str, Any]):
    succeeded, told = app.called("generate", drawing(**fields))
    assert not succeeded
    empty = str(fields.get("prompt", "x")).strip() == ""
    assert told == "Please write a prompt first." if empty else told.split(":")[0] in {*fields, "size"}
    assert len(told) < 400


OTHERS = [
    *(("compare", [versions, 7, 1]) for versions in (None, 5, "", "cat", "xx: cat", "en: a\nen: b", "en: \0")),
    *(("compare", ["en: cat", "a", 1]), ("compare", ["en: cat", 7, 10**9]), ("compare", ["en: cat\n" * 10**5, 7, 1])),
    *(("mix", ["cat", "dog", share, 7, 1]) for share in (-1, 2, float("nan"), "x", None, [0.5])),
    *(("mix", [5, "dog", 0.5, 7, 1]), ("mix", ["cat", ["dog"], 0.5, 7, 1])),
    *(("search", values) for values in (
        ["", None, 0.5, "", "", 3], [5, None, 0.5, "", "", 3], ["a", None, float("nan"), "", "", 3],
        ["a", None, 2, "", "", 3], ["a", None, 0.5, "", "", 0], ["a", None, 0.5, "", "", 10**9],
        ["a", None, 0.5, "", "", 2.5], ["a", None, 0.5, ["x"], "", 3], ["a" * 10**6, None, 0.5, "", "", 3],
        ["a", None, 0.5, "", "\0", 3],
    )),
    *(("read", [None]), ("classify", [None, "cat", "en", "", False])),
]  # fmt: skip


@pytest.mark.parametrize(("endpoint", "data"), OTHERS, ids=lambda value: f"{value!r:.40}")
def test_other_endpoints_refuse_by_name_too(app: Running, endpoint: str, data: list[Any]):
    succeeded, told = app.called(endpoint, data)
    assert not succeeded
    assert re.match(r"[a-z_]+: .+", told) and len(told) < 400


CLASSIFYING = [
    ["", "en", "", False], [5, "en", "", False], ["cat\ncat", "en", "", False], ["cat", "xx", "", False],
    ["cat", ["en"], "", False], ["cat", "en", "no slot", False], ["cat", "en", ["{}"], False],
    ["cat", "en", "{}" * 5000, False], ["\n".join(map(str, range(10**4))), "en", "", False],
    ["cat\0", "en", "", False], ["cat", None, "", False],
]  # fmt: skip


@pytest.mark.parametrize("data", CLASSIFYING, ids=lambda value: f"{value!r:.40}")
def test_labels_are_checked(app: Running, data: list[Any]):
    succeeded, told = app.called("classify", [app.file(picture()), *data])
    assert not succeeded
    assert re.match(r"[a-z_]+: .+", told) and len(told) < 400


@pytest.mark.parametrize("data", [None, [], {}, "cat", ["cat"], [[]] * 13])
def test_too_few_values_are_refused_with_a_text(app: Running, data: Any):
    succeeded, told = app.called("generate", data)
    assert not succeeded and told


def test_refusals_come_in_the_language_of_the_browser(app: Running):
    succeeded, told = app.called("generate", drawing(steps=0), Accept_Language="th-TH,th;q=0.9,en;q=0.5")
    assert not succeeded
    assert told.startswith("จำนวนขั้น: 0; ")
    evil = "de;q=" * 20_000  # more than servers take
    assert app.ask("GET", "/config", Accept_Language=evil[:10_000]).status < 500


def test_helpers_of_the_page_take_anything_and_do_no_harm(app: Running):
    """They are private, but whoever wants to can call them."""
    values: list[Any] = [{"path": str(app.secret), "meta": {"_type": "gradio.FileData"}}, 5, "<script>alert(1)</script>"]
    values += [[{"image": {"path": str(app.secret)}}], {"prompt": "<img src=x onerror=alert(1)>", "small": "x"}]
    values += [[{"prompt": "<b>", "small": 'data:image/webp;base64,"><script>'}]]
    public = {"generate", "compare", "mix", "search", "classify", "read"}
    config = json.loads(app.ask("GET", "/config").body)
    for one in config["dependencies"]:
        for value in values if one["api_name"] not in public else ():
            succeeded, told = app.called(one["id"], [value] * len(one["inputs"]))
            nothing_read(app, told)
            assert succeeded or told
            assert "<script>" not in str(told) and "<img src=x" not in str(told), one["api_name"]


@pytest.mark.parametrize("target", ["/gradio_api/run/generate", "/gradio_api/api/generate", "/run/generate"])
def test_there_is_no_way_around_the_queue(app: Running, target: str):
    answer = app.post(target, {"data": drawing()})
    assert answer.status in (404, 405)


@pytest.mark.parametrize(
    ("target", "value"),
    [
        ("/gradio_api/component_server", {"data": ["/etc"], "component_id": 1, "fn_name": "ls", "session_hash": "a"}),
        ("/gradio_api/component_server", {"data": [], "component_id": 24, "fn_name": "__init__", "session_hash": "a"}),
        ("/gradio_api/reset", {"event_id": "../../etc"}),
        ("/gradio_api/cancel", {"session_hash": "a", "fn_index": 1, "event_id": "b"}),
        ("/gradio_api/vibe-edit", {"prompt": "rm"}),
        ("/gradio_api/vibe-code", {"code": "print(1)"}),
        ("/gradio_api/stream/a", {"a": 1}),
        ("/gradio_api/process_recording", {"a": 1}),
        ("/gradio_api/call/nothing", {"data": []}),
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
    for host in ("evil.com", f"evil.com:{app.port}", "localhost.evil.com", "169.254.169.254", "127.0.0.1.evil.com"):
        answer = app.ask("GET", "/config", host=host, Origin=f"http://{host}")
        assert answer.status == 400
        assert "evil" not in str(answer.headers)
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


@pytest.mark.parametrize("target", ["/", "/config", "/nowhere", "/gradio_api/file=/etc/passwd", "/healthz", "/metrics"])
def test_every_answer_has_security_headers(app: Running, target: str):
    headers = app.ask("GET", target).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert "referrer-policy" in headers
    assert "frame-ancestors" in headers["content-security-policy"]
    assert "default-src 'self'" in headers["content-security-policy"]


def test_nothing_was_read_or_fetched_and_the_log_is_short(app: Running):
    nothing_read(app)
    log = app.log.read_text(encoding="utf-8", errors="replace")
    assert SECRET not in log and "Traceback" not in log
    assert max(map(len, log.splitlines()), default=0) < 1000
    assert not Path("pwned").exists()
    assert json.loads(app.ask("GET", "/healthz").body)["status"] == "ok"


def test_a_flood_gets_a_text_and_leaves_others_served(app: Running):
    """Last, as the queue is full then."""
    slow = drawing(steps=150, count=16, width=128, height=128)
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: app.join("generate", slow)[0], range(160)))
    full = [answer for answer in answers if answer.status != 200]
    assert full and {answer.status for answer in full} == {503}
    assert all("full" in answer.told.lower() for answer in full)
    assert json.loads(app.ask("GET", "/healthz").body)["waiting"] <= 32
    assert app.ask("GET", "/config").status == 200
    began = time.monotonic()
    app.process.send_signal(signal.SIGTERM)
    assert app.process.wait(15) == 143
    assert time.monotonic() - began < 15
    assert not list(app.secret.parent.glob("altdiffusion-app-*"))


def test_with_a_password_nothing_answers_without_it(shared_folder: Path, tmp_path: Path):
    with running(tmp_path / "auth", shared_folder, "--auth", "user:a pass") as app:
        for method, target in [
            *(("GET", "/config"), ("GET", "/gradio_api/info"), ("GET", "/gradio_api/openapi.json"), ("GET", "/metrics")),
            *(("POST", "/gradio_api/queue/join"), ("POST", "/gradio_api/upload"), ("GET", "/openapi.json")),
            *(("GET", "/gradio_api/queue/data?session_hash=a"), ("POST", "/gradio_api/call/generate")),
        ]:  # fmt: skip
            answer = app.ask(method, target, b"{}" if method == "POST" else None, Content_Type="application/json")
            assert answer.status in (401, 403, 404), (target, answer)
        kind = {"Content_Type": "application/x-www-form-urlencoded"}
        for guess in ("username=user&password=b", "username=user&password=", "username[]=user", "username=\0&password=%00"):
            assert app.ask("POST", "/login", guess.encode(), **kind).status in (400, 422), guess
        good = app.ask("POST", "/login", b"username=user&password=a+pass", **kind)
        assert good.status == 200
        cookie = good.headers["set-cookie"]
        assert "httponly" in cookie.lower() and "samesite" in cookie.lower()
        assert app.ask("GET", "/config", Cookie=cookie.split(";")[0]).status == 200
