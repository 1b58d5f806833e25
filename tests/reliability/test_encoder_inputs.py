"""A2: bad inputs of encoder, classifier and index end in a right result or in a named refusal."""

import io
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from altdiffusion import AltCLIP, ImageIndex, ZeroShotClassifier
from altdiffusion.retrieval.where import Where
from tests.reliability.judging import JUNK, PICTURE, WORDS, examples, judge, shown
from tests.reliability.malformed import cut

NAN, INF = math.nan, math.inf
ADDRESS = "http://127.0.0.1:9/latest/meta-data"


@pytest.fixture(scope="module")
def clip(shared_folder) -> AltCLIP:
    return AltCLIP.from_pretrained(shared_folder, device="cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for number, colour in enumerate(("red", "green", "blue", "white")):
        Image.new("RGB", (32 + number, 32), colour).save(folder / f"{colour}.png")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    return folder


@pytest.fixture(scope="module")
def index(clip, folder) -> Iterator[ImageIndex]:
    with ImageIndex.build(clip, folder) as built:
        yield built


@pytest.fixture(scope="module")
def classifier(clip) -> ZeroShotClassifier:
    return ZeroShotClassifier(clip, ["cat", "dog", "house"])


def towers(clip: AltCLIP) -> dict[str, torch.nn.Module]:
    return {"text": clip.model.text_model.roberta, "image": clip.model.vision_model}


def rows_fault(rows: torch.Tensor, count: int | None) -> str:
    """Unit rows, as many as were asked for."""
    if rows.ndim != 2 or rows.shape[1] != 16 or count not in (None, len(rows)):
        return f"of shape {tuple(rows.shape)}"
    lengths = rows.norm(dim=-1)
    return "" if rows.isfinite().all() and (lengths - 1).abs().max() < 1e-5 else f"of lengths {lengths}"


def hits_fault(hits: list, count: int) -> str:
    well = all(math.isfinite(hit.score) and hit.path.is_file() for hit in hits)
    return "" if well and 0 < len(hits) <= count else f"hits {hits}"


def ranked_fault(ranked: list, pictures: int, labels: int) -> str:
    well = all(len(one.labels) == labels and np.isfinite(one.scores).all() for one in ranked)
    return "" if well and len(ranked) == pictures else f"ranked {ranked}"


def pixels(*shape: int, value: float = 0.0) -> torch.Tensor:
    return torch.full(shape or (1, 3, 32, 32), value)


TEXTS = ([], None, 42, b"a", {"a": 1}, [1], [None, "a"], [["a", "b"]], "\ud800", ["a", "\udfff"], "a" * 10**6)
PICTURES = (
    *([], None, 42, b"\x89PNG", ADDRESS, "a.png", Path("a.png"), [None], [PICTURE, "a.png"], {}),
    *(Image.new("RGB", (0, 5)), [PICTURE, Image.new("L", (5, 0))], np.zeros((8, 8, 3)), NAN),
    *(pixels(value=NAN), pixels(value=INF), pixels(1, 3, 8, 8), pixels(3, 32, 32), pixels(0, 3, 32, 32)),
    *(pixels().long(), pixels(1, 1, 32, 32), pixels()[..., :31]),
)  # fmt: skip


def bad(clip: AltCLIP, index: ImageIndex, classifier: ZeroShotClassifier, folder: Path) -> list[tuple]:
    """(the name to be told, the call)."""
    make, find = ZeroShotClassifier, index.search
    cases: list[tuple[str, Callable[[], Any]]] = []
    cases += [("text", lambda v=v: clip.encode_text(v)) for v in TEXTS]
    cases += [("images", lambda v=v: clip.encode_image(v)) for v in PICTURES]
    damaged = [lambda share=share: Image.open(io.BytesIO(cut("PNG", share))) for share in (0.5, 0.9)]
    cases += [("images", lambda make=make: clip.encode_image([PICTURE, make()])) for make in damaged]
    labels = (
        None,
        5,
        [],
        [""],
        ["a", "a"],
        ["a", 5],
        "\ud800",
        ["a" * 2001],
        [["a"]],
        {"a": 1}.values,
        ["\0"],
    )
    cases += [("labels", lambda v=v: make(clip, v)) for v in labels]
    cases += [
        ("language", lambda v=v: make(clip, ["a"], language=v)) for v in ("cn", "", None, 5, ["en"], "../en")
    ]
    templates = ([], "a", ["a {}", "b"], 5, [5], "{}" * 1001, ["\ud800{}"], "{}\0")
    cases += [("templates", lambda v=v: make(clip, ["a"], templates=v)) for v in templates]
    cases += [("k", lambda v=v: classifier(PICTURE, k=v)) for v in (0, -1, 1.5, "2", NAN, True, [1])]
    where = folder / "broken.png"
    files = (
        where,
        str(where),
        folder,
        folder / "none.png",
        ADDRESS,
        "\0",
        "",
        [where],
        5,
        None,
        [],
        pixels(value=NAN),
    )
    cases += [("images", lambda v=v: classifier(v)) for v in files]
    cases += [("text", lambda v=v: find(v)) for v in (*TEXTS[:1], *TEXTS[2:], "", " ", "\u202e", ["a", ""])]
    cases += [("text", lambda: find()), ("text", lambda: find(None, more="a"))]
    cases += [
        ("image", lambda v=v: find(image=v)) for v in (where, str(folder), ADDRESS, "", 5, [], [5], b"a", {})
    ]
    cases += [("image", lambda v=v: find(image=v)) for v in (Image.new("L", (0, 1)), NAN, "\0")]
    cases += [("images", lambda: find(image=pixels(value=NAN)))]
    cases += [("k", lambda v=v: find("a", k=v)) for v in (0, -1, 1001, 1.5, "2", NAN, True, None, 10**5000)]
    cases += [
        ("weight", lambda v=v: find("a", image=PICTURE, weight=v)) for v in (NAN, INF, -1, 2, "a", None, True)
    ]
    cases += [("alike", lambda v=v: find("a", alike=v)) for v in (NAN, INF, -1, 2, "a", True)]
    cases += [
        (n, lambda n=n, v=v: find("a", **{n: v}))
        for n in ("more", "less")
        for v in (5, "", [], "\ud800", [None])
    ]
    cases += [("where", lambda v=v: find("a", where=v)) for v in (5, "a", {"path": "a"}, None)]
    paths = ("..", "a/../b", "", "\0", "\ud800")
    cases += [("path", lambda v=v: find("a", where=Where.build(path=v))) for v in paths]
    cases += [("since", lambda v=v: find("a", where=Where.build(since=v))) for v in ("a", "9999-99-99", "")]
    cases += [("smallest", lambda v=v: find("a", where=Where.build(smallest=v))) for v in ("a", -1, "1e9")]
    return cases


def right(clip: AltCLIP, index: ImageIndex, classifier: ZeroShotClassifier, folder: Path) -> list[tuple]:
    """(the call, what may be wrong with its result)."""
    one, two = (lambda rows: rows_fault(rows, 1)), (lambda rows: rows_fault(rows, 2))
    texts: tuple = ("", "a", "a\0b", "word " * 500, "\u200d", "🦞", ("a",), "e" + "\u0301" * 5000)
    cases: list[tuple[Callable[[], Any], Callable[[Any], str]]] = []
    cases += [(lambda v=v: clip.encode_text(v), one) for v in texts]
    cases += [(lambda: clip.encode_text(["a", ""]), two)]
    shapes = [
        Image.new(mode, (9, 5)) for mode in ("1", "L", "P", "RGBA", "LA", "CMYK", "I;16", "F", "HSV", "YCbCr")
    ]
    shapes += [Image.new("RGB", (1, 1)), Image.new("RGB", (30_000, 1)), Image.new("L", (1, 30_000))]
    cases += [
        (lambda v=v: clip.encode_image(v), one) for v in (*shapes, pixels(), pixels(value=1e3).double())
    ]
    cases += [(lambda: clip.encode_image((PICTURE, PICTURE)), two)]
    file = folder / "red.png"
    for v, rows in ((file, 1), (str(file), 1), ([file, PICTURE], 2), (PICTURE, 1), (pixels(), 1)):
        cases += [(lambda v=v: classifier(v), lambda ranked, rows=rows: ranked_fault(ranked, rows, 3))]
    cases += [
        (lambda: classifier(PICTURE, k=99, multi_label=True), lambda ranked: ranked_fault(ranked, 1, 3))
    ]
    found = lambda hits: hits_fault(hits, 4)  # noqa: E731
    for asked in (
        {"text": "a"}, {"text": ["a", "b"]}, {"image": PICTURE}, {"image": [file, PICTURE]},
        {"image": pixels()}, {"text": "a", "image": file, "weight": 0},
        {"text": "a", "more": "b", "less": "c"},
        {"text": "a", "alike": None}, {"text": "a", "alike": 0}, {"text": "a", "k": 1000}, {"text": "🦞"},
        {"text": "a", "where": Where.build(largest="1M", path="./red.png")},
    ):  # fmt: skip
        cases += [(lambda asked=asked: index.search(**asked), found)]
    return cases


def test_bad_inputs_by_hand(clip, index, classifier, folder, tally):
    counted = tally("A2 encoder, classifier, search")
    cases = bad(clip, index, classifier, folder)
    for number, (name, call) in enumerate(cases):
        judge(
            counted,
            f"{name}, case {number}",
            call,
            names=(name,),
            fault=str,
            models=towers(clip),
            must="refused",
        )
    rights = right(clip, index, classifier, folder)
    for number, (call, fault) in enumerate(rights):
        judge(counted, f"right case {number}", call, names=(), fault=fault, must="right")
    counted.check(80)


def test_bad_inputs_at_random(clip, index, classifier, folder, tally, amount):
    counted, tries = tally("A2 encoder, classifier, search"), amount(100, 1000)
    texts = st.one_of(WORDS, st.lists(WORDS, max_size=3), JUNK)
    pictures = st.one_of(
        JUNK, st.lists(st.just(PICTURE) | JUNK, max_size=2), st.just(str(folder / "red.png"))
    )
    part = st.floats(-0.5, 1.5) | JUNK
    arguments: dict[str, dict[str, st.SearchStrategy]] = {
        "encode_text": {"text": texts},
        "encode_image": {"images": pictures},
        "make": {"labels": texts, "language": st.sampled_from(["en", "zh-TW"]) | JUNK, "templates": texts},
        "classify": {"images": pictures, "k": st.integers(-1, 4) | JUNK},
        "search": {
            **{"text": texts, "image": pictures, "weight": part, "more": texts, "less": texts},
            **{"k": st.integers(-1, 9) | JUNK, "alike": part, "where": JUNK},
        },
    }
    calls: dict[str, tuple[Callable[..., Any], Callable[[Any], str]]] = {
        "encode_text": (clip.encode_text, lambda rows: rows_fault(rows, None)),
        "encode_image": (clip.encode_image, lambda rows: rows_fault(rows, None)),
        "make": (
            lambda **given: ZeroShotClassifier(clip, **{"labels": ["a"]} | given).weights,
            lambda rows: rows_fault(rows, None),
        ),
        "classify": (
            lambda **given: classifier(**{"images": PICTURE} | given),
            lambda ranked: ranked_fault(ranked, len(ranked), len(ranked[0].labels)),
        ),
        "search": (lambda **given: index.search(**{"text": "a"} | given), lambda hits: hits_fault(hits, 9)),
    }
    chosen = st.sampled_from(sorted(arguments)).flatmap(
        lambda name: st.tuples(st.just(name), st.fixed_dictionaries({}, optional=arguments[name]))
    )

    @examples(tries)
    @given(chosen.filter(lambda pair: bool(pair[1])))
    def call(pair: tuple[str, dict[str, Any]]) -> None:
        name, given_now = pair
        do, fault = calls[name]
        names = (*given_now, "text")  # a search for nothing is one without a text
        judge(
            counted,
            f"{name} {shown(given_now)}",
            lambda: do(**given_now),
            names=names,
            fault=fault,
            models=towers(clip),
        )

    call()
    counted.check(tries)
