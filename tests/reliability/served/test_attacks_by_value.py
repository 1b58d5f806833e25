"""Pictures and values in raw requests to the app: what is wrong with them is told by name, in a line."""

import re
import time
from typing import Any

import pytest

from tests.reliability.served.attacking import Running, asking, drawing, nothing_read, picture
from tests.reliability.served.attacks import CLASSIFYING, FIELDS, OTHERS, PAYLOADS, PICTURES, payload

pytest.importorskip("gradio", reason="needs the extra app: pip install 'altdiffusion[app]'")
pytestmark = pytest.mark.attempt("C1 HTTP attacks", "refused")

ENDPOINTS = ["generate", "search", "classify", "read"]


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize("name", list(PAYLOADS))
def test_a_picture_is_an_uploaded_one_or_none(app: Running, endpoint: str, name: str):
    succeeded, told = app.called(endpoint, asking(endpoint, payload(app, name)))
    nothing_read(app, told)
    assert not succeeded
    assert isinstance(told, str) and "allowed" in told


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize("name", list(PICTURES))
def test_harmful_pictures_are_refused_by_name(app: Running, endpoint: str, name: str):
    began = time.monotonic()
    succeeded, told = app.called(endpoint, asking(endpoint, app.file(PICTURES[name])))
    assert not succeeded
    assert re.match(r"(image|picture): ", told) and "<script>" not in told
    assert time.monotonic() - began < 5


@pytest.mark.attempt("C1 HTTP attacks", "right")
def test_a_good_picture_goes_through(app: Running):
    """Else all that is refused above would prove nothing."""
    for endpoint in ("generate", "search", "classify"):
        succeeded, told = app.called(endpoint, asking(endpoint, app.file(picture())))
        assert succeeded, told


@pytest.mark.parametrize(
    "fields", FIELDS, ids=lambda fields: ",".join(f"{k}={v!r:.20}" for k, v in fields.items())
)
def test_a_value_out_of_its_range_is_refused_by_name(app: Running, fields: dict[str, Any]):
    succeeded, told = app.called("generate", drawing(**fields))
    assert not succeeded
    empty = str(fields.get("prompt", "x")).strip() == ""
    assert told == "Please write a prompt first." if empty else told.split(":")[0] in {*fields, "size"}
    assert len(told) < 400


@pytest.mark.parametrize(("endpoint", "data"), OTHERS, ids=lambda value: f"{value!r:.40}")
def test_other_endpoints_refuse_by_name_too(app: Running, endpoint: str, data: list[Any]):
    succeeded, told = app.called(endpoint, data)
    assert not succeeded
    assert re.match(r"[a-z_]+: .+", told) and len(told) < 400


@pytest.mark.parametrize("data", CLASSIFYING, ids=lambda value: f"{value!r:.40}")
def test_labels_are_checked(app: Running, data: list[Any]):
    succeeded, told = app.called("classify", [app.file(picture()), *data])
    assert not succeeded
    assert re.match(r"[a-z_]+: .+", told) and len(told) < 400


@pytest.mark.parametrize("data", [None, [], {}, "cat", ["cat"], [[]] * 13])
def test_too_few_values_are_refused_with_a_text(app: Running, data: Any):
    succeeded, told = app.called("generate", data)
    assert not succeeded and told
