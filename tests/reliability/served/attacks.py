"""What attacks send: paths, names, values, pictures and bodies that are not what the app asks for."""

import json
from pathlib import Path
from typing import Any

from PIL import Image

from tests.reliability.served.attacking import Running, claiming, picture

#: Addresses that lead to no file and to no other server; the words in capitals are put in by who asks.
GET = [
    *("/gradio_api/file=/etc/passwd", "/gradio_api/file=SECRET", "/file=/etc/passwd", "/file=SECRET"),
    *("/gradio_api/file/etc/passwd", "/gradio_api/file=../../../../etc/passwd"),
    "/gradio_api/file=//etc/passwd",
    *("/gradio_api/file=%2e%2e/%2e%2e/%2e%2e/etc/passwd", "/gradio_api/file=/etc/passwd%00.png"),
    *("/gradio_api/file=/proc/self/environ", "/gradio_api/file=/dev/zero", "/gradio_api/file=app/demo.py"),
    *("/gradio_api/file=ROOT/app/demo.py", "/gradio_api/file=file:///etc/passwd"),
    *("/gradio_api/file=http://CANARY/a", "/gradio_api/file=HTTP://CANARY/a"),
    *("/gradio_api/file=//CANARY/a", "/gradio_api/proxy=http://CANARY/a", "/gradio_api/proxy=file:///etc/passwd"),
    *("/static/../../../../etc/passwd", "/static/%2e%2e/%2e%2e/%2e%2e/%2e%2e/routes.py"),
    *("/svelte/../../routes.py", "/svelte/%2e%2e/%2e%2e/routes.py"),
    "/assets/..%2f..%2f..%2f..%2froutes.py",
    "/gradio_api/custom_component/1/client/component/..%2f..%2fetc",
    *("/pwa_icon/SECRET", "/gradio_api/stream/a/b/1/..%2f..%2fetc%2fpasswd.ts", "/gradio_api/vibe-code"),
    *("/monitoring", "/gradio_api/run-history/records", "/gradio_api/run-history/buckets"),
]  # fmt: skip

#: Names of uploaded files.
NAMES = {
    **{"upwards": "../../evil.png", "backslashes": "..\\..\\evil.png", "absolute": "/tmp/evil.png"},
    **{
        "encoded": "%2e%2e%2fevil.png",
        "long": "a" * 300 + ".png",
        "dots": "..",
        "none": "",
        "tag": "<img src=x>.png",
    },
    **{"turned": "\u202egnp.evil", "NUL": "a\0b.png", "device": "CON.png", "emoji": "🦞.png"},
}

#: What is no request to join the queue.
NONSENSE: list[bytes] = [
    *(b"", b"{", b"[]", b"null", b"5", b'"a"', b"[" * 100_000, b'{"data": ' + b"[" * 50_000, b"\xff\xfe"),
    *(b"{}", b'{"data": [], "fn_index": 9999}', b'{"data": [], "fn_index": "x"}'),
    b'{"data": [], "fn_index": -1}',
    *(b'{"data": {"a": 1}, "fn_index": 1}', b'{"data": "cat", "fn_index": 1, "session_hash": 5}'),
    *(b'{"data": [], "fn_index": 1, "session_hash": {"a": 1}}', b'{"data": [1e999], "fn_index": true}'),
]  # fmt: skip

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

#: What may lie in an uploaded file.
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

#: Values of /generate out of their range.
FIELDS = [
    *({"prompt": value} for value in (None, 5, ["cat"], {"a": 1}, "", " ", "a" * 10**6, "a\0b", "\ud800")),
    *({"negative_prompt": value} for value in (5, ["cat"], "a" * 2001, "\0")),
    *({"steps": value} for value in ("7", 0, -1, 2.5, float("nan"), float("inf"), 10**9, 151, True, [1])),
    *({"guidance_scale": value} for value in ("7", -1, 51, float("nan"), float("-inf"), 1e308)),
    *({"width": value} for value in (0, 7, 65, -64, 10**6, "64", float("nan"))),
    *({"width": 2048, "height": 2048}, {"height": 1.5}, {"height": [64]}),
    *({"seed": value} for value in (-2, 2**64, 10**400, "abc", 0.5, float("nan"))),
    *({"scheduler": value} for value in (["ddim"], 5, "evil", "../../etc/passwd", {"a": 1})),
    *({"clip_skip": value} for value in (-1, 50, 99, "1", 0.5)),
    *({"count": value} for value in (0, -1, 17, 65, 10**9, "2", 1.5)),
    *({"weighting": value} for value in ("yes", 5, [])),
    *({"prompt": value, "weighting": True} for value in ("(cat:99)", "(" * 1000 + "cat" + ":9)" * 300)),
]

#: The same of the other endpoints.
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

#: The same of /classify, after the picture.
CLASSIFYING = [
    ["", "en", "", False], [5, "en", "", False], ["cat\ncat", "en", "", False], ["cat", "xx", "", False],
    ["cat", "en", "no slot", False], ["cat", "en", ["{}"], False], ["cat", "en", "{}" * 5000, False],
    ["\n".join(map(str, range(10**4))), "en", "", False], ["cat\0", "en", "", False],
    ["cat", ["en"], "", False],
    ["cat", None, "", False],
]  # fmt: skip


def payload(app: Running, name: str) -> Any:
    places = {"SECRET": str(app.secret), "CANARY": app.canary}
    text = json.dumps(PAYLOADS[name])
    if "UPLOADS" in text:
        places["UPLOADS"] = str(Path(app.file(picture())["path"]).parents[1])
    for key, place in places.items():
        text = text.replace(key, place)
    return json.loads(text)
