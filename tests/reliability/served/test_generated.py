"""Requests that a machine makes up, from the app's own description of itself and beside it: no answer says
that the server failed, each says something, and the process lives on."""

import contextlib
import functools
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.reliability.served.attacking import Answer, Running, nothing_read, picture

pytest.importorskip("gradio", reason="needs the extra app: pip install 'altdiffusion[app]'")
schemathesis = pytest.importorskip("schemathesis")

CASE = "C2 generated requests"


def attempts(count: int, strategy: Any, attempt: Any) -> None:
    """So many examples, the same ones each time; what is wrong is counted rather than raised, so that nothing
    is shrunk."""

    @settings(
        max_examples=count,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def run(example: Any) -> None:
        attempt(example)

    run()


def verdict(answer: Answer) -> str:
    """`right` for what was taken, `refused` for what was not, with a text; a full queue is 503."""
    if answer.status < 300:
        return "right"
    refused = 400 <= answer.status < 500 or (answer.status == 503 and "ueue" in answer.told)
    return "refused" if refused and answer.told.strip() else "wrong"


def last_news(app: Running, name: str, event: str) -> str:
    """How the drawing, or whatever was asked for, ended."""
    with contextlib.closing(app.connection()) as connection:
        connection.request("GET", f"/gradio_api/call/{name}/{event}")
        told = connection.getresponse().read().decode()
    nothing_read(app, told)
    kind, _, data = told.strip().split("\n\n")[-1].partition("\n")
    found = json.loads(data.removeprefix("data: ") or "null")
    if kind == "event: complete":
        return "right"
    text = found.get("error") if isinstance(found, dict) else None
    return "refused" if kind == "event: error" and text and "went wrong" not in text else "wrong"


def test_no_request_that_the_description_suggests_breaks_the_app(app: Running, tally: Any, amount: Any):
    """With values as described, and with such that are not."""
    from schemathesis.generation import GenerationMode

    counted = tally(CASE)
    text = app.ask("GET", "/gradio_api/openapi.json").body.decode()
    text = text.replace('"type":"filepath"', '"type":"string"')  # gradio's own, which is no JSON schema
    described = schemathesis.openapi.from_dict(json.loads(text))
    targets = [target for target in described if "/call/v2/" in target]
    assert len(targets) == 6
    for target in targets:
        modes = [GenerationMode.POSITIVE, GenerationMode.NEGATIVE]
        cases = st.one_of([described[target]["POST"].as_strategy(generation_mode=mode) for mode in modes])

        attempts(amount(6, 200), cases, functools.partial(described_attempt, app, counted, target))
    assert app.process.poll() is None
    counted.check(6 * amount(5, 190))


def described_attempt(app: Running, counted: Any, target: str, case: Any) -> None:
    body = case.body if isinstance(case.body, dict | list | str | int | float | bool) else None
    answer = app.post(target, frugal(body))
    ending = verdict(answer)
    if ending == "right":
        ending = last_news(app, target.rpartition("/")[2], json.loads(answer.body)["event_id"])
    counted.add(ending, f"{target} {body!r:.300}: {answer.status} {answer.told:.200}")


def frugal(body: Any) -> Any:
    """Numbers that may be asked for, but take long, are brought down: it is the answers that matter here."""
    if not isinstance(body, dict):
        return body
    limits = {"steps": 4, "count": 2, "width": 64, "height": 64}
    numbers = {name: value for name, value in body.items() if isinstance(value, int | float)}
    return body | {name: min(value, limits[name]) for name, value in numbers.items() if name in limits}


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
files = st.fixed_dictionaries({"path": st.text(max_size=30) | st.sampled_from(["/etc/passwd", "http://a/b"])})


def test_nothing_that_joins_the_queue_breaks_it(app: Running, tally: Any, amount: Any):
    """Of any endpoint, also the page's own helpers; nobody listens to what is taken."""
    counted, numbers = tally(CASE), st.sampled_from([*app.numbers.values(), -1, 10**6, None, "1", 1.5])
    joins = st.fixed_dictionaries(
        {"data": st.lists(values | files, max_size=14) | values, "fn_index": numbers},
        optional={"session_hash": values, "event_data": values, "trigger_id": values, "event_id": values},
    )

    def attempt(asked: dict[str, Any]) -> None:
        answer = app.post("/gradio_api/queue/join", asked)
        nothing_read(app, answer.body)
        counted.add(verdict(answer), f"{asked!r:.300}: {answer.status} {answer.told:.200}")

    attempts(amount(20, 500), joins, attempt)
    assert app.process.poll() is None
    counted.check(amount(20, 450))


def test_nothing_that_is_uploaded_breaks_it(app: Running, tally: Any, amount: Any):
    counted = tally(CASE)
    good = picture()
    parts = st.lists(
        st.tuples(
            st.text(max_size=30).filter(lambda name: '"' not in name),
            st.binary(max_size=200) | st.just(good) | st.integers(1, 90).map(lambda at: good[:at]),
        ),
        max_size=3,
    )
    bodies = st.binary(max_size=300) | parts

    def attempt(body: Any) -> None:
        if isinstance(body, bytes):
            kind = "multipart/form-data; boundary=xyz"
            answer = app.ask("POST", "/gradio_api/upload", b"--xyz\r\n" + body, Content_Type=kind)
        else:
            answer = app.upload(*body)
        nothing_read(app, answer.body)
        counted.add(verdict(answer), f"{body!r:.300}: {answer.status} {answer.told:.200}")

    attempts(amount(20, 400), bodies, attempt)
    assert app.process.poll() is None
    counted.check(amount(20, 350))
    assert app.ask("GET", "/healthz").status == 200
