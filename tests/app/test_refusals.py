"""Refusals that the real code makes, in the language of the visitor: translated, their values kept."""

import ast
import io
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image, PngImagePlugin

from altdiffusion import serving
from altdiffusion.classification import check_labels, check_templates
from altdiffusion.images import MAX_BYTES, open_image, read_provenance
from altdiffusion.languages import LANGUAGES
from altdiffusion.pipelines import AltDiffusionPipeline
from altdiffusion.prompts import parse
from altdiffusion.requests import GenerateRequest, parse_size, prompts_by_language
from altdiffusion.retrieval.asking import Asked, check_search
from app import i18n
from app.i18n import say, texts, translate
from tests.reliability.served.attacking import claiming

OTHERS = [tag for tag in LANGUAGES if tag != "en"]


def png(size: tuple[int, int] = (8, 8), **notes: str) -> bytes:
    data, info = io.BytesIO(), PngImagePlugin.PngInfo()
    for name, note in notes.items():
        info.add_itxt(name, note)
    Image.new("1", size).save(data, "PNG", pnginfo=info)
    return data.getvalue()


def built(**fields: Any) -> Callable[[Any], object]:
    return lambda service: GenerateRequest.build(**{"prompt": "cat", **fields})


def started(**fields: Any) -> Callable[[Any], object]:
    """Asked of a service, which knows the model."""
    pictures = {name: fields.pop(name) for name in ("start", "mask") if name in fields}
    return lambda service: service.generate(
        GenerateRequest.build(**{"prompt": "cat", "steps": 2, **fields}), **pictures
    )


BLACK = Image.new("L", (64, 64))
#: What refuses, and what of its line stands in every language's.
REFUSALS: dict[str, tuple[Callable[[Any], object], list[str]]] = {
    "whole": (built(seed=-2), ["-2", "-1", "18446744073709551615"]),
    "whole_text": (built(steps="7"), ["'7'", "1", "1000"]),
    "whole_null": (built(count=None), ["None", "1", "64"]),
    "number": (built(guidance_scale=float("nan")), ["nan", "0", "50"]),
    "above": (built(strength=0), ["0", "1"]),
    "multiple": (built(width=65), ["65", "8", "2048"]),
    "size": (lambda service: parse_size("64x65"), ["'64x65'", "8", "2048"]),
    "missing_text": (lambda service: GenerateRequest.build(), ["2000"]),
    "not_text": (built(prompt=["a"]), ["['a']", "2000"]),
    "too_long": (built(prompt="象" * 2345), ["2345", "2000"]),
    "nul": (built(negative_prompt="a\0b"), [r"'a\x00b'", "2000"]),
    "half": (built(prompt="\ud800"), [r"'\ud800'", "2000"]),
    "names": (built(scheduler=3), ["3", "euler-a"]),
    "choice": (built(scheduler="<script>"), ["'<script>'", "euler-a"]),
    "choice_near": (built(scheduler="eulr"), ["'eulr'", "euler"]),
    "tag": (built(language=5), ["5"]),
    "known": (built(language="xx"), ["'xx'", "en, zh, ja"]),
    "known_near": (built(language="cn"), ["'cn'", "zh", "en, zh, ja"]),
    "boolean": (built(weighting="yes"), ["'yes'", "true", "false"]),
    "needs_mix": (built(mix_share=0.25), ["0.25"]),
    "needs_start": (started(strength=0.5), ["0.5"]),
    "no_step": (started(strength=0.1, start=BLACK), ["0.1", "2", "0.5"]),
    "here": (started(steps=151), ["151", "1", "150"]),
    "large": (started(width=2048, height=2048), ["2048x2048", "262144"]),
    "clip_skip": (started(clip_skip=40), ["40", "0", "1", "2"]),
    "mask_alone": (started(mask=BLACK), []),
    "mask_empty": (started(mask=BLACK, start=BLACK), []),
    "no_prompts": (lambda service: service.compare({}, GenerateRequest.build(prompt="a")), []),
    "weight": (lambda service: parse("(cat:99)"), ["'(cat:99)'", "99", "0", "10"]),
    "address": (lambda service: open_image("http://127.0.0.1/a.png"), ["'http://127.0.0.1/a.png'"]),
    "no_file": (lambda service: open_image("nowhere.png"), ["'nowhere.png'"]),
    "unreadable": (lambda service: open_image("a" * 5000), []),
    "damaged": (lambda service: open_image(Image.effect_noise((64, 64), 50)._repr_png_()[:999]), ["999"]),
    "empty_file": (lambda service: open_image(b""), []),
    "too_big": (lambda service: open_image(b"0" * (MAX_BYTES + 1)), [f"{MAX_BYTES // 10**6}"]),
    "not_picture": (lambda service: open_image(b"<svg/>" * 200), ["1200", "PNG", "WEBP"]),
    "pixels": (lambda service: open_image(claiming(30_000, 30_000)), ["50"]),
    "needs_torch": (
        lambda service: AltDiffusionPipeline.check_preset(SimpleNamespace(unet=None), "fast"),  # type: ignore[arg-type]
        ["'fast'", "exact", "default"],
    ),
    "transparent": (
        lambda service: open_image(claiming(5200, 5000, transparent=True)),
        ["5200", "PNG", "17"],
    ),
    "dimensions": (lambda service: open_image(png((30_000, 1))), ["30000", "1"]),
    "unsaid": (lambda service: read_provenance(png()), []),
    "note": (lambda service: read_provenance(png(altdiffusion='{"prompt": 5}')), ["5"]),
    "no_query": (lambda service: Asked.checked(None, None, 0.5, None, None), []),
    "empty_text": (lambda service: Asked.checked(" ", None, 0.5, None, None), ["' '"]),
    "share": (lambda service: Asked.checked("a", None, 2.0, None, None), ["2.0", "0", "1"]),
    "results": (lambda service: check_search(0, None), ["0", "1"]),
    "results_here": (lambda service: service.search("a", k=101), ["101", "1", "100"]),
    "no_labels": (lambda service: check_labels([]), []),
    "twice": (lambda service: check_labels(["سلحفاة", "سلحفاة"]), ["'سلحفاة'"]),
    "empty_label": (lambda service: check_labels(["a", " "]), []),
    "no_slot": (lambda service: check_templates(["a photo"]), ["'a photo'", "{}"]),
    "line": (lambda service: prompts_by_language("en: a\nqq: b", "versions"), ["2", "'qq'"]),
    "no_colon": (lambda service: prompts_by_language("a", "versions"), ["1", "'a'"]),
    "no_lines": (lambda service: prompts_by_language("# a", "versions"), []),
    "long_line": (
        lambda service: prompts_by_language("en:" + "象" * 3000, "versions"),
        ["1", "3000", "2000"],
    ),
}
#: Lines that only other models or machines make, and one that comes with the picture.
WRITTEN = {
    "left_out": ("prompt: too long by 1,012 tokens, left out: 'a cat'", ["1012", "'a cat'"]),
    "memory": ("size: 2048x2048 does not fit into the memory of cuda:0; lower size", ["2048x2048", "cuda:0"]),
    "no_colours": (
        "guidance_scale: 50 with euler-a in float16 gave values that are no colours; lower guidance_scale, "
        "take another scheduler or float32",
        ["50", "euler-a", "float16"],
    ),
    "no_clip_skip": ("clip_skip: 2; allowed 0 with this model's text encoder", ["2", "0"]),
    "no_collection": (
        "index: this model brings no collection; allowed with --index FOLDER",
        ["--index FOLDER"],
    ),
    "no_encoder": (
        "encoder: this model holds none; allowed to search with --encoder MODEL",
        ["--encoder MODEL"],
    ),
    "not_uploaded": ("image: 5 is not a picture; allowed an uploaded one", ["5"]),
    "no_picture": ("picture: missing; allowed an uploaded picture", []),
    "upload_address": (
        "picture: 'http://a/b.png' is an address; allowed an uploaded picture",
        ["'http://a/b.png'"],
    ),
    "elsewhere": ("picture: '/etc/passwd' was not uploaded; allowed an uploaded picture", ["'/etc/passwd'"]),
    "layers": ("mask: 9; allowed at most 8 pictures", ["9", "8"]),
    "misfit": ("data: a value that does not fit; allowed what the endpoint describes", []),
    "too_few": ("data: too few values; allowed 13, as the endpoint describes", ["13"]),
    "nested": ("data: nested too deeply; allowed what the endpoint describes", []),
    "plain_text": ("labels: 5 is not text; allowed text", ["5"]),
    "one_line": ("versions: 'en' twice; allowed one line for each language", ["'en'"]),
    "own_names": ("labels: 'qwerty' are no names of the model's; allowed its own names", ["'qwerty'"]),
    "result": ("picture: 99; allowed one of the results", ["99"]),
    "history": ("number: -1; allowed one of the history", ["-1"]),
}
#: Words that another language shares with English, and those that are typed as they are.
SHARED = {
    *("torch", "unet", "token", "tokens", "long"),
    *("prompt", "model", "pixel", "pixels", "encoder", "scheduler", "label", "start", "mask", "float32"),
    *(
        "prompts",
        "guidance",
        "collection",
        "multiple",
        "half",
        "file",
        "image",
        "bytes",
        "note",
        "place",
        "endpoint",
    ),
}


@pytest.fixture(scope="module")
def lines(shared_pipeline) -> Iterator[dict[str, tuple[str, list[str]]]]:
    """The English line of each refusal, and what is kept of it."""
    from altdiffusion.serving import Service

    found = dict(WRITTEN)
    with Service(shared_pipeline) as service:
        for name, (refused, kept) in REFUSALS.items():
            with pytest.raises(ValueError, match=r"^\w+: ") as error:
                refused(service)
            found[name] = (str(error.value), kept)
    yield found


def bare(line: str) -> str:
    return re.sub(r"[\u2068\u2069]", "", line)


def words(line: str, kept: list[str]) -> set[str]:
    line = bare(line)
    for value in sorted(kept, key=len, reverse=True):
        line = line.replace(value, " ")
    line = re.sub(r"\([^()]*\)", "", line)  # the words of a library's own error are its own
    return set(re.findall(r"[a-z]\w{3,}", line))


@pytest.mark.parametrize("tag", OTHERS)
def test_refusals_come_in_the_visitor_s_language_with_their_values(tag: str, lines):
    for name, (english, kept) in lines.items():
        line = translate(ValueError(english), tag)
        _, _, rest = english.partition(": ")
        left = words(rest, [*kept, *", ".join(kept).split(", ")]) & words(line, kept)
        assert "allowed" not in line and rest not in line, name
        assert left - SHARED - listed(english) == set(), (name, line)
        for value in kept:
            assert value in bare(line), (name, line)


def listed(english: str) -> set[str]:
    """Words of a list of choices, which are typed as they are."""
    return set(re.findall(r"[a-z]\w{3,}", " ".join(re.findall(r"[\w+-]+(?:, [\w+-]+)+", english))))


def test_every_known_refusal_has_been_tried(lines):
    tried = set()
    for english, _ in lines.values():
        rest = english.partition(": ")[2]
        while found := next(((k, p.fullmatch(rest)) for k, p in i18n._refusals() if p.fullmatch(rest)), None):
            tried.add(found[0])
            rest = found[1].groupdict().get("reason", "")
    assert tried == {key for key in texts("en") if key.startswith("refusal_")}


OURS = [Path(module.__file__ or "").parent for module in (i18n, serving)]


@pytest.mark.parametrize(
    "path", sorted(path for folder in OURS for path in folder.glob("*.py")), ids=lambda path: path.stem
)
def test_every_refusal_that_the_app_writes_is_known(path: Path):
    """All but those to people who start it, or who write programs for Ray Serve."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "BadRequest":
            (line,) = node.args
            parts = line.values if isinstance(line, ast.JoinedStr) else [line]
            english = "".join(part.value if isinstance(part, ast.Constant) else "5" for part in parts)
            name, _, rest = english.partition(": ")
            if path.stem not in ("launching", "scale") and "(start)" not in rest:
                assert translate(ValueError(f"steps: {rest}"), "de") != f"Schritte: {rest}", english
                assert name in {*i18n._FIELDS, "5"}, english


def test_values_in_an_arabic_line_are_isolated(lines):
    for name, (english, _) in lines.items():
        line = translate(ValueError(english), "ar")
        depth, outside = 0, ""
        for character in line:
            depth += {"\u2068": 1, "\u2069": -1}.get(character, 0)
            assert depth >= 0, name
            outside += character if depth == 0 else ""
        assert depth == 0, name
        stray = set(re.findall(r"[A-Za-z0-9]+", outside))
        assert stray <= {"N", "NUL", "CLIP", "UNet", "torch", "float32", "0", "true", "false"}, (name, line)


def test_an_arabic_value_in_an_english_or_german_line_is_isolated():
    line = translate(
        ValueError("labels: 'سلحفاة' twice; allowed different names of what a picture may show"), "de"
    )
    assert "\u2068'سلحفاة'\u2069" in line
    assert "\u2068نمر\u2069" in say("named", "en", label="x", reason="نمر")


def test_english_lines_and_unknown_ones_stay_as_they_are():
    for line, tag in [
        ("steps: 0; allowed a whole number from 1 to 1000", "en"),
        ("steps: 0; allowed a whole number from 1 to 1000", "xx"),
        ("frobnicate: 0; allowed 1", "de"),
        ("no colon", "de"),
        ("", "de"),
    ]:
        assert translate(ValueError(line), tag) == line
    unknown = translate(ValueError("steps: something that nobody foresaw"), "de")
    assert unknown == "Schritte: something that nobody foresaw"


def test_the_kind_of_a_picture_is_translated_too(lines):
    assert "(PNG mit Transparenz)" in translate(ValueError(lines["transparent"][0]), "de")


def test_thousands_are_written_without_commas_as_they_are_fractions_elsewhere():
    line = translate(ValueError("size: 2048x2048 is too large here; allowed up to 262,144 pixels"), "de")
    assert "262144" in line
    assert "1234567" in translate(ValueError("picture: picture of 1,234,567 bytes is empty"), "de")


@pytest.mark.parametrize("filler", ["a", "; allowed ", " is ", "1, ", "line 1: ", "(", "{value}"])
def test_a_long_line_is_translated_in_no_time(filler: str):
    began = time.perf_counter()
    translate(ValueError("prompt: " + filler * (3000 // len(filler))), "de")
    assert time.perf_counter() - began < 0.5
