"""What visitors of the app do in a long run, and whether what they get is right: for `python -m bench.soak`.

As the page and gradio_client ask, and as strangers do who mean no good: each visit says how it ended.
"""

import contextlib
import io
import json
import random
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from gradio_client import Client
from gradio_client.exceptions import AppError
from PIL import Image

from altdiffusion import read_provenance
from app.i18n import EXAMPLES
from tests.reliability.served.attacking import Running, asking, drawing, picture
from tests.reliability.served.attacks import (
    CLASSIFYING,
    FIELDS,
    NONSENSE,
    OTHERS,
    PAYLOADS,
    PICTURES,
    payload,
)

#: How a visit ended, as in bench/soak_report.py, and what of it was wrong.
Ended = tuple[str, str]
#: What a full queue says in any language, ours and gradio's.
_BUSY = re.compile(r"\D32\D+32\D|Queue is full")
_PRESETS = ("default", "fast", "exact")
_BURST = 100
MB = 2**20


@dataclass
class Visits:
    """All that visitors of one app do. Threads share it; each brings its own `random.Random`."""

    app: Running
    folder: Path
    """For what gradio_client downloads."""
    known: dict[Any, Any] = field(default_factory=dict)
    """The first answer to each question, which later ones must equal."""
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _one_client: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.app.learn()
        address = f"http://127.0.0.1:{self.app.port}"
        self.client = Client(
            address, verbose=False, analytics_enabled=False, download_files=self.folder,
            httpx_kwargs={"timeout": 180},
        )  # fmt: skip

    def questions(self) -> Iterator[Callable[[], Ended]]:
        """One of each kind whose answers are compared: asked one by one before the others come, so that each
        is drawn alone."""
        for number in range(len(EXAMPLES)):
            yield lambda number=number: self.draw(number)
        for tag in EXAMPLES:
            yield lambda tag=tag: self.search(tag)
        yield from (self.from_picture, self.search_picture, self.classify, self.read, self.compare, self.mix)

    def any(self, chance: random.Random) -> tuple[str, Ended]:
        """(name, how it ended) of one of the visits, some more often than others."""
        tag, number = chance.choice(list(EXAMPLES)), chance.randrange(len(EXAMPLES))
        visits: list[tuple[int, str, Callable[[], Ended]]] = [
            (24, "draw", lambda: self.draw(number)),
            (12, "draw by gradio_client", lambda: self.draw_by_client(number)),
            (5, "from a picture", self.from_picture),
            (5, "compare", self.compare),
            (4, "mix", self.mix),
            (8, "search", lambda: self.search(tag)),
            (4, "search by a picture", self.search_picture),
            (6, "classify", self.classify),
            (5, "read", self.read),
            (4, "open the page", self.open),
            (5, "leave", lambda: self.leave(number)),
            (4, "cancel", lambda: self.cancel(number)),
            (3, "cancel by gradio_client", lambda: self.cancel_by_client(number)),
            (6, "bad value", lambda: self.bad_value(chance)),
            (4, "bad picture", lambda: self.bad_picture(chance)),
            (3, "foreign path", lambda: self.foreign_path(chance)),
            (3, "no request at all", lambda: self.nonsense(chance)),
            (2, "large body", lambda: self.large(chance)),
        ]
        ((_, name, visit),) = chance.choices(visits, [weight for weight, _, _ in visits])
        return name, self.ended(visit)

    @staticmethod
    def ended(visit: Callable[[], Ended]) -> Ended:
        try:
            return visit()
        except Exception as error:  # whatever it is, the run goes on and counts it
            return "wrong", f"{type(error).__name__}: {error}"[:400]

    def draw(self, number: int) -> Ended:
        """As the page does, in one of 18 languages and by one of the presets."""
        prompt, preset = self._wish(number)
        asked = drawing(prompt=prompt, preset=preset, steps=None, seed=number)
        succeeded, told = self.app.called("generate", asked, Accept_Language=list(EXAMPLES)[number])
        if not succeeded:
            return _refused_or_wrong(told)
        return self._drawn(("draw", number), self.app.picture(told[0][0]["image"]), prompt, number)

    def draw_by_client(self, number: int) -> Ended:
        """Anybody's client joins and listens in threads of its own; one at a time is enough."""
        prompt, preset = self._wish(number)
        with self._one_client:
            try:
                files, _, _ = self.client.predict(
                    prompt, seed=number, preset=preset, steps=None, guidance_scale=None, width=None,
                    height=None, api_name="/generate",
                )  # fmt: skip
            except AppError as error:
                return _refused_or_wrong(str(error))
        path = Path(files[0]["image"])
        data = path.read_bytes()
        path.unlink()
        return self._drawn(("draw", number), data, prompt, number)

    def from_picture(self) -> Ended:
        asked = asking("generate", self.app.file(_start()))
        succeeded, told = self.app.called("generate", asked)
        if not succeeded:
            return _refused_or_wrong(told)
        return self._drawn("from a picture", self.app.picture(told[0][0]["image"]), "cat", 7)

    def compare(self) -> Ended:
        versions = "\n".join(f"{tag}: {EXAMPLES[tag][0]}" for tag in ("en", "zh", "ar", "th"))
        succeeded, told = self.app.called("compare", [versions, 7, 4, "fast"])
        if not succeeded:
            return _refused_or_wrong(told)
        grid, _, scores = told
        with Image.open(io.BytesIO(self.app.picture(grid))) as found:
            found.load()
        cosines = np.array([scores["texts"], scores["pictures"]])
        return self._same("compare", cosines, 0.02, f"cosines {cosines.round(2).tolist()}")

    def mix(self) -> Ended:
        succeeded, told = self.app.called("mix", ["a lobster", "龙虾", 0.5, 7, 4, "fast"])
        if not succeeded:
            return _refused_or_wrong(told)
        return self._drawn("mix", self.app.picture(told[0][0]["image"]), "a lobster", 7)

    def search(self, tag: str) -> Ended:
        values = [EXAMPLES[tag][0], None, 0.5, "", "", 5]
        return self._found(("search", tag), *self.app.called("search", values))

    def search_picture(self) -> Ended:
        values = asking("search", self.app.file(_start()))
        return self._found("search by a picture", *self.app.called("search", values))

    def classify(self) -> Ended:
        labels = "en: lobster\nen: rainbow\nth: กุ้งมังกร\nth: รุ้ง"
        values = [self.app.file(_start()), labels, "en", "", False]
        succeeded, told = self.app.called("classify", values)
        if not succeeded:
            return _refused_or_wrong(told)
        scores = np.array([one["confidence"] for one in told[0]["confidences"]])
        return self._same("classify", scores, 1e-3, f"scores {scores}")

    def read(self) -> Ended:
        """Of a picture that was drawn just before, with a seed that nobody else has."""
        seed = secrets.randbelow(2**31)
        succeeded, told = self.app.called("generate", drawing(preset="fast", steps=2, seed=seed))
        if not succeeded:
            return _refused_or_wrong(told)
        data = self.app.picture(told[0][0]["image"])
        succeeded, told = self.app.called("read", [self.app.file(data)])
        if not succeeded:
            return _refused_or_wrong(told)
        right = (told[0]["prompt"], told[0]["seed"]) == ("cat", seed)
        return ("right", "") if right else ("wrong", f"read {told[0]}, seed {seed}")

    def open(self) -> Ended:
        """The page, what it asks for as it opens, and its heartbeat for a moment."""
        for target in ("/", "/config", "/gradio_api/info", "/theme.css", "/healthz", "/metrics"):
            answer = self.app.ask("GET", target)
            if answer.status != 200 or not answer.body:
                return "wrong", f"{target}: {answer.status}"
        with contextlib.closing(self.app.connection()) as connection:
            connection.request("GET", f"/gradio_api/heartbeat/{secrets.token_hex(8)}")
            alive = connection.getresponse().fp.readline()
        return ("right", "") if alive else ("wrong", "no heartbeat")

    def leave(self, number: int) -> Ended:
        """In the middle of a drawing, or while it waits."""
        answer, code = self.app.join("generate", drawing(prompt=self._wish(number)[0], steps=50))
        if answer.status != 200:
            return _refused_or_wrong(answer.told)
        with contextlib.closing(self.app.connection()) as connection:
            connection.request("GET", f"/gradio_api/queue/data?session_hash={code}")
            _read_news(connection.getresponse(), number % 4)
        return "left", ""

    def cancel(self, number: int) -> Ended:
        """Stop, of the page; it listens on."""
        answer, code = self.app.join("generate", drawing(prompt=self._wish(number)[0], steps=50))
        if answer.status != 200:
            return _refused_or_wrong(answer.told)
        event = json.loads(answer.body)["event_id"]
        with contextlib.closing(self.app.connection()) as connection:
            connection.request("GET", f"/gradio_api/queue/data?session_hash={code}")
            news = connection.getresponse()
            _read_news(news, 1 + number % 4)
            left = {
                "session_hash": code,
                "fn_index": self.app.numbers["generate"],
                "event_id": event,
            }
            stopped = self.app.post("/gradio_api/cancel", left)
        return ("left", "") if stopped.status == 200 else ("wrong", f"cancel: {stopped}")

    def cancel_by_client(self, number: int) -> Ended:
        with self._one_client:
            job = self.client.submit(self._wish(number)[0], steps=50, preset="fast", api_name="/generate")
            end = time.monotonic() + 60
            while not job.outputs() and not job.done() and time.monotonic() < end:
                time.sleep(0.05)
            job.cancel()
            self.client.reset_session()
        return "left", ""

    def bad_value(self, chance: random.Random) -> Ended:
        kind = chance.randrange(3)
        if kind == 0:
            return _refused(*self.app.called("generate", drawing(**chance.choice(FIELDS))))
        if kind == 1:
            return _refused(*self.app.called(*chance.choice(OTHERS)))
        return _refused(*self.app.called("classify", [self.app.file(picture()), *chance.choice(CLASSIFYING)]))

    def bad_picture(self, chance: random.Random) -> Ended:
        endpoint = chance.choice(("generate", "search", "classify", "read"))
        file = self.app.file(chance.choice(list(PICTURES.values())))
        return _refused(*self.app.called(endpoint, asking(endpoint, file)))

    def foreign_path(self, chance: random.Random) -> Ended:
        endpoint = chance.choice(("generate", "search", "classify", "read"))
        value = payload(self.app, chance.choice(list(PAYLOADS)))
        return _refused(*self.app.called(endpoint, asking(endpoint, value)))

    def nonsense(self, chance: random.Random) -> Ended:
        answer = self.app.post("/gradio_api/queue/join", chance.choice(NONSENSE))
        well = 400 <= answer.status < 500 and answer.told
        return ("refused", "") if well else ("wrong", f"{answer.status} {answer.told}"[:400])

    def large(self, chance: random.Random) -> Ended:
        if chance.random() < 0.5:
            answer = self.app.upload(("a.png", b"a" * 13 * MB))
        else:
            answer = self.app.post("/gradio_api/queue/join", b'{"data": ["' + b"a" * 13 * MB)
        well = answer.status == 413 and "allowed at most" in answer.told
        return ("refused", "") if well else ("wrong", f"{answer.status} {answer.told}"[:400])

    def burst(self) -> list[Ended]:
        """More at once than the queue takes; each gets a picture or a text."""

        def one(seed: int) -> Ended:
            succeeded, told = self.app.called("generate", drawing(preset="fast", steps=2, seed=seed))
            if not succeeded:
                return _refused_or_wrong(told)
            return self._drawn(None, self.app.picture(told[0][0]["image"]), "cat", seed)

        with ThreadPoolExecutor(_BURST) as pool:
            return list(pool.map(lambda seed: self.ended(lambda: one(seed)), range(_BURST)))

    @staticmethod
    def _wish(number: int) -> tuple[str, str]:
        tag = list(EXAMPLES)[number]
        return EXAMPLES[tag][number % 4], _PRESETS[number % 3]

    def _drawn(self, key: Any, data: bytes, prompt: str, seed: int) -> Ended:
        made = read_provenance(data)
        if (made.prompt, made.seed) != (prompt, seed):
            return "wrong", f"asked for {prompt!r}, seed {seed}; got {made.prompt!r}, seed {made.seed}"
        with Image.open(io.BytesIO(data)) as found:
            values = np.asarray(found.convert("RGB")).astype(int)
        if values.shape != (64, 64, 3):
            return "wrong", f"{prompt!r}: shape {values.shape}"
        return ("right", "") if key is None else self._same(key, values, 1, f"picture of {prompt!r}")

    def _found(self, key: Any, succeeded: bool, told: Any) -> Ended:
        if not succeeded:
            return _refused_or_wrong(told)
        for one in told[0]:
            self.app.picture(one["image"])
        names = [one["name"] for one in told[1]]
        with self._lock:
            first = self.known.setdefault(key, names)
        return ("right", "") if names == first else ("wrong", f"{key}: {names}, first {first}")

    def _same(self, key: Any, values: np.ndarray, tolerance: float, what: str) -> Ended:
        """As those of the first time: joined drawings may be one level of 255 apart."""
        with self._lock:
            first = self.known.setdefault(key, values)
        apart = float(np.abs(first - values).max()) if first.shape == values.shape else float("inf")
        return ("right", "") if apart <= tolerance else ("wrong", f"{what}: {apart} from the first")


def _start() -> bytes:
    data = io.BytesIO()
    Image.radial_gradient("L").resize((64, 64)).convert("RGB").save(data, "PNG")
    return data.getvalue()


def _read_news(response: Any, count: int) -> None:
    """So many of the steps; fewer where it ends before."""
    for line in response:
        if count <= 0 or b"process_completed" in line:
            return
        count -= b"process_generating" in line


def _refused(succeeded: bool, told: Any) -> Ended:
    """What must be refused, with a line that says why."""
    if succeeded:
        return "wrong", f"taken: {told!s:.300}"
    return ("refused", "") if isinstance(told, str) and told.strip() else ("wrong", f"told {told!r}")


def _refused_or_wrong(told: Any) -> Ended:
    """Good requests are refused by a full queue alone."""
    text = str(told)
    return ("refused", "") if _BUSY.search(text) else ("wrong", text[:400])
