"""The app in a process of its own, and a way to talk to it that tidies nothing up: what attacks need."""

import contextlib
import http.client
import http.server
import io
import json
import os
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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from PIL import Image

from altdiffusion.images import save_png
from altdiffusion.requests import Provenance

ROOT = Path(__file__).parents[3]
SECRET = "the-secret-of-this-machine"


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def told(self) -> str:
        """The text of a refusal."""
        if self.headers.get("content-type") != "application/json":
            return self.body.decode()
        found = json.loads(self.body)
        if not isinstance(found, dict):
            return ""
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

    def learn(self) -> "Running":
        """The endpoints' numbers, which the queue wants; a page with a password does not tell them."""
        found = json.loads(self.ask("GET", "/config").body)["dependencies"]
        self.numbers = {one["api_name"]: one["id"] for one in found}
        return self

    def connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=180)

    def ask(
        self, method: str, target: str, body: bytes | None = None, host: str | None = None, **headers: str
    ) -> Answer:
        with contextlib.closing(self.connection()) as connection:
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
        with contextlib.closing(self.connection()) as connection:
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

    def picture(self, value: dict[str, Any]) -> bytes:
        """Of a result: what the page then shows."""
        answer = self.ask("GET", f"/gradio_api/file={quote(value['path'])}")
        if answer.status != 200:
            raise RuntimeError(f"a picture that was drawn: {answer.status} {answer.told}")
        return answer.body

    def file(self, data: bytes) -> dict[str, Any]:
        """An uploaded picture as a widget's value."""
        (path,) = json.loads(self.upload(("a.png", data)).body)
        return {"path": path, "meta": {"_type": "gradio.FileData"}}


@contextlib.contextmanager
def running(folder: Path, *command: str) -> Iterator[Running]:
    """`PORT` in the command is a free one."""
    secret = folder / "secret.png"
    save_png(Image.new("RGB", (64, 64)), secret, Provenance(SECRET))
    log = folder / "log.txt"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    whole = [sys.executable, *(part.replace("PORT", str(port)) for part in command)]
    with canary() as (address, fetched), log.open("wb") as out:
        process = subprocess.Popen(whole, cwd=ROOT, stdout=out, stderr=out, env=environment(folder))
        try:
            end = time.monotonic() + 300
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


def picture(size: tuple[int, int] = (64, 64), mode: str = "RGB") -> bytes:
    data = io.BytesIO()
    Image.new(mode, size).save(data, "PNG")
    return data.getvalue()


def claiming(width: int, height: int, transparent: bool = False) -> bytes:
    depth, kind = (8, 6) if transparent else (1, 0)
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n\0\0\0\r" + chunk + struct.pack(">I", zlib.crc32(chunk)) + b"\0\0\0\0IDAT"


def nothing_read(app: Running, *found: Any) -> None:
    text = str(found)
    assert SECRET not in text and "root:x:" not in text and "def build_demo" not in text
    assert app.fetched == []


def drawing(**fields: Any) -> list[Any]:
    names = ["prompt", "negative_prompt", "steps", "guidance_scale", "width", "height", "seed", "scheduler"]
    names += ["preset", "clip_skip", "count", "weighting", "start", "strength"]
    own = dict.fromkeys(names) | {"prompt": "cat", "steps": 1, "seed": 7, "count": 1, "clip_skip": 0}
    return [{**own, "weighting": False, **fields}[name] for name in names]


def asking(name: str, image: Any) -> list[Any]:
    """All values of an endpoint that takes a picture."""
    return {
        "generate": [
            "cat",
            "",
            1,
            None,
            None,
            None,
            7,
            "",
            "exact",
            0,
            1,
            False,
            {"background": image, "layers": []},
            1,
        ],
        "search": ["", image, 0.5, "", "", 3],
        "classify": [image, "cat\ndog", "en", "", False],
        "read": [image],
    }[name]
