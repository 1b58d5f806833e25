"""Pictures and values in raw requests to the app: what is wrong with them is told by name, in a line."""

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.app.attacking import Running, asking, claiming, drawing, nothing_read, picture

pytest.importorskip("gradio", reason="needs the extra app: pip install 'altdiffusion[app]'")

ENDPOINTS = ["generate", "search", "classify", "read"]

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
    "an address elsewhere": {
        "path": None,
        "url": "http://CANARY/a.png",
        "meta": {"_type": "gradio.FileData"},
    },
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


@pytest.mark.parametrize("endpoint", ENDPOINTS)
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


@pytest.mark.parametrize("endpoint", ENDPOINTS)
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


@pytest.mark.parametrize(
    "fields", FIELDS, ids=lambda fields: ",".join(f"{k}={v!r:.20}" for k, v in fields.items())
)
def test_a_value_out_of_its_range_is_refused_by_name(app: Running, fields: dict[str, Any]):
    succeeded, told = app.called("generate", drawing(**fields))
    assert not succeeded
    empty = str(fields.get("prompt", "x")).strip() == ""
    assert told == "Please write a prompt first." if empty else told.split(":")[0] in {*fields, "size"}
    assert len(told) < 400


OTHERS = [
    *(("compare", [versions, 7, 1, ""]) for versions in (None, 5, "", "cat", "xx: cat", "en: \0")),
    *(("compare", [versions, 7, 1, ""]) for versions in ("en: a\nen: b", "en: cat\n" * 10**5)),
    *(("compare", ["en: cat", "a", 1, ""]), ("compare", ["en: cat", 7, 10**9, ""])),
    *(("mix", ["cat", "dog", share, 7, 1, ""]) for share in (-1, 2, float("nan"), "x", None, [0.5])),
    *(("mix", [5, "dog", 0.5, 7, 1, ""]), ("mix", ["cat", ["dog"], 0.5, 7, 1, ""])),
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
    ["cat", "en", "no slot", False], ["cat", "en", ["{}"], False], ["cat", "en", "{}" * 5000, False],
    ["\n".join(map(str, range(10**4))), "en", "", False], ["cat\0", "en", "", False],
    ["cat", ["en"], "", False],
    ["cat", None, "", False],
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
