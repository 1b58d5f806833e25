"""The page without a browser: endpoints, refusals, streams that end when nobody listens."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from altdiffusion import read_provenance
from altdiffusion.requests import BadRequest
from altdiffusion.serving import Busy, Closed
from tests.app.painter import Painter
from tests.test_readme import ROOT, blocks

pytest.importorskip("gradio", reason="needs the extra app: pip install 'altdiffusion[app]'")
httpx = pytest.importorskip("httpx")
# gradio's own, of its event loops and of what FastAPI is to become
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::UserWarning"
)


@pytest.fixture(scope="module")
def app() -> Iterator[SimpleNamespace]:
    from altdiffusion.web import Options
    from app.launching import launch

    painter = Painter()
    demo = launch(painter, Options())
    with httpx.Client(base_url=demo.local_url, timeout=30) as http:
        yield SimpleNamespace(url=demo.local_url, painter=painter, http=http, demo=demo)
    demo.close()


@pytest.fixture(scope="module")
def client(app: SimpleNamespace) -> Any:
    from gradio_client import Client

    return Client(app.url, verbose=False)


@pytest.fixture
def ask(app: SimpleNamespace) -> Callable[..., dict[str, Any]]:
    """The last event of a raw HTTP call, as (kind, data)."""

    def call(name: str, *data: Any, language: str = "en") -> tuple[str, Any]:
        headers = {"accept-language": language, "content-type": "application/json"}
        joined = app.http.post(
            f"/gradio_api/call/{name}", content=json.dumps({"data": data}), headers=headers
        )
        assert joined.status_code == 200, joined.text
        told = app.http.get(f"/gradio_api/call/{name}/{joined.json()['event_id']}", headers=headers).text
        event = told.strip().split("\n\n")[-1]
        kind, data_line = event.split("\n")[:2]
        return kind.removeprefix("event: "), json.loads(data_line.removeprefix("data: "))

    return call


def test_the_page_for_programs_is_right(app: SimpleNamespace):
    code = blocks("python", ROOT / "docs/app.md")[0].replace("http://127.0.0.1:7860/", app.url)
    exec(compile(code, "docs/app.md", "exec"), names := {})
    assert names["made"]["prompt"] == "กุ้งมังกร" and names["best"]["th"]["label"] == "กุ้งมังกร"
    assert names["cosines"]["languages"] == ["en", "zh", "ar"] and len(names["found"]) == 3


#: All values of /generate after the prompt, in order.
REST = ["", 6, 3.0, 64, 64, -1, "", "exact", 0, 1, False, None, 0.8]


def with_value(place: int, value: Any) -> list[Any]:
    return [*REST[:place], value, *REST[place + 1 :]]


def upload(app: SimpleNamespace, picture: Path) -> dict[str, Any]:
    path = app.http.post("/gradio_api/upload", files={"files": picture.read_bytes()}).json()[0]
    return {"path": path, "meta": {"_type": "gradio.FileData"}}


def test_every_action_has_an_endpoint_that_says_what_it_does(app: SimpleNamespace):
    found = app.http.get("/gradio_api/info").json()["named_endpoints"]
    assert set(found) == {"/generate", "/compare", "/mix", "/search", "/classify", "/read"}
    assert all(len(endpoint["description"]) > 40 for endpoint in found.values())


def test_the_prompt_alone_is_enough(client: Any):
    files, line, seed = client.predict("一只龙虾", api_name="/generate")
    assert (len(files), line[:4], int(seed) >= 0) == (1, "Done", True)
    made = read_provenance(files[0]["image"])
    assert (made.prompt, made.seed) == ("一只龙虾", int(seed))


def test_what_is_asked_reaches_the_service(client: Any, app: SimpleNamespace, tmp_path: Path):
    from gradio_client import handle_file

    Image.new("RGB", (32, 32), "red").save(tmp_path / "start.png")
    mask = Image.new("RGBA", (32, 32))
    mask.paste((0, 0, 0, 255), (4, 4, 12, 12))
    mask.save(tmp_path / "mask.png")
    start = {
        "background": handle_file(str(tmp_path / "start.png")),
        "layers": [handle_file(str(tmp_path / "mask.png"))],
        "composite": None,
    }
    files, _, _ = client.predict(
        "a cat", seed=5, count=2, steps=3, scheduler="ddim", start=start, strength=0.5, api_name="/generate"
    )
    request, picture, marked = app.painter.asked[-1]
    assert (request.seed, request.count, request.steps, request.scheduler) == (5, 2, 3, "ddim")
    assert (request.strength, picture.size, marked.getbbox()) == (0.5, (32, 32), (4, 4, 12, 12))
    assert [read_provenance(file["image"]).seed for file in files] == [5, 6]


@pytest.mark.parametrize("preset", ["exact", "default", "fast"])
def test_a_preset_alone_decides_of_steps_and_scheduler(client: Any, app: SimpleNamespace, preset: str):
    """The page's boxes begin with those of its first preset, which are no defaults of a program's."""
    client.predict("a crab", seed=7, preset=preset, api_name="/generate")
    request = app.painter.asked[-1][0]
    assert (request.preset, request.steps, request.scheduler) == (preset, None, None)


def test_languages_are_compared(client: Any):
    grid, line, scores = client.predict("en: lobster\nth: กุ้งมังกร", seed=1, api_name="/compare")
    assert Image.open(grid).size == (64, 64) and line.startswith("Done")
    assert scores["languages"] == ["en", "th"] and scores["texts"] == [[1.0, 0.8], [0.8, 1.0]]


def test_what_was_left_out_or_hidden_is_told_beside_the_pictures(ask: Callable):
    _, (_, line, *_rest) = ask("generate", "too long", *REST, language="de")
    assert "Fertig" in line and "Prompt: um 3 Token zu lang; weggelassen: '&lt;b&gt;end'" in line.replace(
        "&#x27;", "'"
    )
    _, (_, line, _) = ask("compare", "en: a nude\nde: ein Hummer", 7, 2, "exact")
    assert "A picture was hidden" in line and "left out" not in line


def test_a_scheduler_that_the_menu_lacks_is_reused_as_the_models_own():
    from app.history import REUSED, reused
    from tests.app.painter import DEFAULTS

    for scheduler, value in (("DDPMScheduler", ""), ("ddim", "ddim"), (None, "")):
        values = dict(zip(REUSED, reused({"prompt": "a", "scheduler": scheduler}, DEFAULTS), strict=False))
        assert values["scheduler"] == value


def test_two_languages_are_mixed(client: Any, app: SimpleNamespace):
    client.predict("lobster", "กุ้งมังกร", share=0.25, api_name="/mix")
    request = app.painter.asked[-1][0]
    assert (request.prompt, request.mix, request.mix_share) == ("lobster", "กุ้งมังกร", 0.25)


def test_pictures_are_found(client: Any):
    shown, told = client.predict("rot", count=3, api_name="/search")
    assert [one["caption"] for one in shown] == ["0.90 crimson", "0.80 seagreen", "0.70 royalblue"]
    assert [one["name"] for one in told] == ["0", "1", "2"]


def test_a_picture_is_classified_in_several_languages(client: Any, tmp_path: Path):
    from gradio_client import handle_file

    Image.new("RGB", (32, 32), "red").save(tmp_path / "a.png")
    picture = handle_file(str(tmp_path / "a.png"))
    ranked, best = client.predict(picture, "cat\ndog", api_name="/classify")
    assert ranked["label"] == "cat" and list(best) == ["en"]
    _, best = client.predict(picture, "en: cat\nen: dog\nzh: 猫\nzh: 狗", api_name="/classify")
    assert {tag: one["label"] for tag, one in best.items()} == {"en": "cat", "zh": "猫"}


def test_a_picture_that_was_drawn_is_read_back(client: Any):
    from gradio_client import handle_file

    files, _, seed = client.predict("قطة", api_name="/generate")
    made = client.predict(handle_file(files[0]["image"]), api_name="/read")
    assert (made["prompt"], made["seed"]) == ("قطة", int(seed))


@pytest.mark.parametrize(
    ("name", "data", "line"),
    [
        ("generate", ["a", *with_value(1, "7")], "steps: '7'; allowed a whole number from 1 to 1000"),
        ("generate", ["a", *with_value(1, 2.5)], "steps: 2.5; allowed a whole number from 1 to 1000"),
        ("generate", ["a", *with_value(1, 0)], "steps: 0; allowed a whole number from 1 to 1000"),
        ("generate", ["a", *with_value(1, [7])], "steps: [7]; allowed"),
        ("generate", ["a", *with_value(2, 1e9)], "guidance_scale: 1000000000.0; allowed a number"),
        ("generate", ["a", *with_value(3, 65)], "width: 65; allowed a multiple of 8 from 8 to 2048"),
        ("generate", ["a", *with_value(5, "abc")], "seed: 'abc'; allowed"),
        ("generate", ["a", *with_value(6, ["ddim", "euler"])], "scheduler: ['ddim', 'euler']; allowed"),
        ("generate", ["a", *with_value(6, "dddim")], "scheduler: 'dddim' is not known; did you mean 'ddim'?"),
        ("generate", ["a", *with_value(9, 1000)], "count: 1000; allowed a whole number from 1 to 64"),
        ("generate", ["a", *with_value(10, "yes")], "weighting: 'yes'; allowed true or false"),
        ("generate", ["a", *with_value(7, "slow")], "preset: 'slow' is not known; allowed exact, "),
        ("generate", ["a", *with_value(11, 5)], "data: a value that does not fit"),
        ("generate", [None, *REST], "prompt: None is not text"),
        ("generate", [["a"], *REST], "prompt: ['a'] is not text"),
        ("generate", ["x" * 5000, *REST], "prompt: "),
        ("generate", ["\ud800", *REST], "prompt: '\\ud800' has half a character"),
        ("generate", ["", *REST], "Please write a prompt first."),
        ("generate", ["a"], "data: too few values; allowed 14"),
        ("compare", [None, 7, 6, ""], "versions: no prompt in it"),
        ("compare", ["xx: lobster", 7, 6, ""], "versions: line 1: 'xx' is not known"),
        ("compare", ["en: a\nen: b", 7, 6, ""], "versions: 'en' twice"),
        ("mix", ["a", "b", 2, 7, 6, ""], "mix_share: 2; allowed a number from 0 to 1"),
        ("search", ["", None, 0.5, "", "", 12], "text: nothing to search for"),
        ("search", [5, None, 0.5, "", "", 12], "text: 5 is not text"),
        ("classify", [None, "a", "en", "", False], "image: missing"),
        ("read", [None], "picture: missing"),
    ],
)  # fmt: skip
def test_every_refusal_has_a_line(ask: Callable, name: str, data: list[Any], line: str):
    kind, told = ask(name, *data)
    assert kind == "error" and told["error"].startswith(line), told


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (Busy(32, 32), "Too many requests are waiting (32 of 32)"),
        (Closed(), "The app is shutting down"),
        (BadRequest("steps: 0; allowed 1"), "steps: 0; allowed 1"),
        (ZeroDivisionError("secret"), "Something went wrong"),
    ],
)
def test_every_kind_of_error_is_put_into_words(error: Exception, line: str):
    from app.demo import explain

    assert explain(error, "en").startswith(line)


def test_what_a_helper_cannot_work_with_leaves_no_traceback(caplog: pytest.LogCaptureFixture):
    from app.demo import explain

    with caplog.at_level("INFO"):
        assert explain(KeyError("texts"), "en", helper=True).startswith("data: a value that does not fit")
        assert not [record for record in caplog.records if record.exc_info]
        assert explain(KeyError("texts"), "en").startswith("Something went wrong")
        assert [record for record in caplog.records if record.exc_info]


def test_a_refusal_is_in_the_visitors_language(ask: Callable):
    kind, told = ask("generate", "a", *with_value(1, 0), language="de-DE,de;q=0.9,en;q=0.5")
    assert kind == "error" and told["error"].startswith("Schritte: 0; ")
    assert "إ" in ask("generate", "", *REST, language="ar")[1]["error"] + "إ"


OUTSIDE = [
    "/etc/passwd",
    "../../../../etc/passwd",
    "pyproject.toml",
    "file:///etc/passwd",
    "\0",
    "/proc/self/environ",
]


@pytest.mark.parametrize("meta", [{}, {"meta": {"_type": "gradio.FileData"}}], ids=["bare", "with meta"])
@pytest.mark.parametrize(
    "path", [*OUTSIDE, "http://127.0.0.1:9/", "HTTPS://localhost/", "data:image/png;base64,AA"]
)
def test_no_file_is_read_that_was_not_uploaded(ask: Callable, path: str, meta: dict[str, Any]):
    value = {"path": path, **meta}
    for name, data in (
        ("read", [value]),
        ("search", ["", value, 0.5, "", "", 3]),
        ("classify", [value, "a", "en", "", False]),
        ("generate", ["a", *with_value(11, {"background": value, "layers": [], "composite": None})]),
    ):
        kind, told = ask(name, *data)
        assert kind == "error" and told["error"], (name, told)
        assert "bytes" not in told["error"], "it was opened"


def test_damaged_and_foreign_uploads_are_refused_by_name(ask: Callable, app: SimpleNamespace, tmp_path: Path):
    Image.new("RGB", (8, 8)).save(tmp_path / "good.png")
    good = (tmp_path / "good.png").read_bytes()
    for content in (b"", b"<svg/>", b"text", good[:40], good.replace(b"IHDR\0\0", b"IHDR\xff\xff")):
        (tmp_path / "x.png").write_bytes(content)
        kind, told = ask("search", "", upload(app, tmp_path / "x.png"), 0.5, "", "", 3)
        assert kind == "error" and told["error"].startswith("image: "), told


def test_helpers_of_the_page_are_not_in_the_description(app: SimpleNamespace):
    text = app.http.get("/gradio_api/openapi.json").text
    assert "remember" not in text and "_reuse" not in text


def test_the_direct_way_round_the_queue_is_shut(app: SimpleNamespace):
    answer = app.http.post("/gradio_api/run/generate", json={"data": ["a", *REST]})
    assert answer.status_code == 404 and "queue" in answer.text


@pytest.mark.parametrize("way", ["the listener goes", "cancelled"])
def test_a_drawing_ends_within_two_steps_of_its_visitor(app: SimpleNamespace, way: str):
    painter = app.painter
    painter.pace = 0.1
    try:
        for attempt in range(3):
            closed, session = painter.closed, f"{way[:3]}{attempt}"
            body = {"data": ["a", *with_value(1, 40)], "session_hash": session}
            fn = next(i for i, one in app.demo.fns.items() if one.api_name == "generate")
            event = app.http.post("/gradio_api/queue/join", json=body | {"fn_index": fn}).json()["event_id"]
            with app.http.stream("GET", f"/gradio_api/queue/data?session_hash={session}") as stream:
                lines = (line for line in stream.iter_lines() if "process_generating" in line)
                for _ in range(4):
                    next(lines)
                if way == "cancelled":
                    left = {"session_hash": session, "fn_index": fn, "event_id": event}
                    app.http.post("/gradio_api/cancel", json=left)
                drawn = painter.drawn
            deadline = time.monotonic() + 10
            while painter.closed == closed and time.monotonic() < deadline:
                time.sleep(0.02)
            assert painter.closed == closed + 1
            assert painter.drawn <= drawn + 2
    finally:
        painter.pace = 0.0


@pytest.mark.parametrize("way", ["call", "join"])
def test_what_nobody_ever_listens_to_is_given_up(
    app: SimpleNamespace, way: str, monkeypatch: pytest.MonkeyPatch
):
    """A program that never fetches its answer, and a tab that was closed as it asked."""
    monkeypatch.setattr(app.demo.audience, "patience", 0.3)
    monkeypatch.setattr(app.painter, "pace", 0.05)
    data, closed, drawn = ["a", *with_value(1, 100)], app.painter.closed, app.painter.drawn
    if way == "call":
        app.http.post("/gradio_api/call/generate", json={"data": data})
    else:
        fn = next(i for i, one in app.demo.fns.items() if one.api_name == "generate")
        asked = {"data": data, "fn_index": fn, "session_hash": "closed-as-it-asked"}
        assert app.http.post("/gradio_api/queue/join", json=asked).status_code == 200
    deadline = time.monotonic() + 10
    while app.painter.closed == closed and time.monotonic() < deadline:
        time.sleep(0.02)
    assert app.painter.closed == closed + 1
    assert app.painter.drawn - drawn < 20


def test_what_was_drawn_before_somebody_listens_is_there(app: SimpleNamespace):
    joined = app.http.post("/gradio_api/call/generate", json={"data": ["a", *REST]})
    time.sleep(0.5)
    told = app.http.get(f"/gradio_api/call/generate/{joined.json()['event_id']}").text
    assert "event: complete" in told


def test_building_the_page_loads_no_model():
    import subprocess
    import sys

    code = (
        "import sys; import app.demo; from tests.app.painter import Painter; app.demo.build_demo(Painter()); "
        "print(sorted(sys.modules.keys() & {'torch', 'diffusers', 'transformers'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[-1:] == ["[]"], done.stdout + done.stderr
