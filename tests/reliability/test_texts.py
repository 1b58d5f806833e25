"""A4: texts of every kind, wherever texts go in: they pass clean and whole, or are refused by name."""

import logging
import time
import unicodedata
import warnings
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from altdiffusion import AltCLIP
from altdiffusion.classification import check_labels
from altdiffusion.images import file_stem, read_provenance, save_png
from altdiffusion.requests import (
    BadRequest,
    GenerateRequest,
    Provenance,
    clean_text,
    prompts_by_language,
    shorten,
)
from altdiffusion.retrieval.asking import Asked
from altdiffusion.retrieval.pictures import printed
from tests.fakes import SENTENCES
from tests.reliability.judging import examples, judge

MEGABYTE = "a" * 2**20
#: Texts that break things, and whether they are texts to be taken.
HARD: dict[str, tuple[str, bool]] = {
    "a megabyte": (MEGABYTE, False),
    "a megabyte of emoji": ("🦞" * 2**18, False),
    "100,000 combining marks": ("e" + "\u0301" * 100_000, False),
    "2,000 combining marks": ("e" + "\u0301" * 1999, True),
    "a high surrogate": ("\ud800", False),
    "a low surrogate": ("a\udfff", False),
    "surrogates the wrong way round": ("\udc00\ud800", False),
    "NUL": ("a\0b", False),
    "controls": ("".join(map(chr, range(1, 32))) + "\x7f\x80\x9f", True),
    "an escape sequence": ("\x1b[2J\x1b]0;title\x07a", True),
    "turned text": ("\u202eevil\u202c \u2066a\u2069", True),
    "marks of direction": ("\u200ea\u200f\u061c", True),
    "joined emoji": ("👩\u200d🚀 👨\u200d👩\u200d👧", True),
    "selectors and skin": ("❤\ufe0f 👋🏽 🇺🇦 🏴\U000e0067\U000e0062\U000e007f", True),
    "joiners alone": ("\u200d\u200c\u200b\ufeff", True),
    "lines": ("a\r\nb\u2028c\u2029d\x85e", True),
    "spaces": (" \t\u00a0\u3000\u1680 ", True),
    "nothing": ("", True),
    "no characters": ("\ufffe\uffff\U0010ffff\ufdd0", True),
    "private use": ("\ue000\U000f0000", True),
    "a long word": ("ß" * 2000, True),
    "expanding when composed": ("\ufb1d\u0958" * 900, False),
    "Zalgo": ("".join(c + "\u0300\u0316\u0489" * 20 for c in "cat"), True),
    "markup": ("<script>alert(1)</script> <lora:x:1> {{7*7}} ${jndi:ldap://a}", True),
    "marks of weight": ("((((" * 300 + "a" + "))))" * 100 + "++--", True),
    "percent and braces": ("%s %d {0} {} \\n \\x00 %00", True),
    **{f"in {tag}": (text, True) for tag, text in SENTENCES.items()},
    **{
        f"decomposed {tag}": (unicodedata.normalize("NFD", SENTENCES[tag]), True)
        for tag in ("ko", "vi", "hi")
    },
}
#: Where texts go in: what is to be named, and what takes them.
DOORS: dict[str, Any] = {
    "prompt": lambda text: GenerateRequest.build(prompt=text).prompt,
    "negative_prompt": lambda text: GenerateRequest.build(prompt="", negative_prompt=text).negative_prompt,
    "labels": lambda text: check_labels([text])[0],
    "text": lambda text: Asked.checked(text, None, 0.5, None, None).texts[0],
}


@pytest.fixture(scope="module")
def clip(shared_folder) -> AltCLIP:
    return AltCLIP.from_pretrained(shared_folder, device="cpu")


def text_fault(text: str) -> str:
    """What is wrong with a text that was taken."""
    if not isinstance(text, str) or text != unicodedata.normalize("NFC", text):
        return f"is not composed: {text[:50]!r}"
    bad = [
        c for c in text if unicodedata.category(c) in ("Cc", "Cs") or c in "\u202a\u202b\u202d\u202e\u2066"
    ]
    if bad or clean_text(text) != text:
        return f"is not clean: {bad}"
    return ""


def drawn_fault(pipeline: Any, text: str) -> str:
    """Through the whole: conditioning, the picture's note, its name, what is printed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        embeds, _ = pipeline.embed_prompts(text, weights=True)
    if not embeds.isfinite().all():
        return "has embeds that are not finite"
    name = file_stem(text)
    if not 0 < len(name.encode()) <= 100 or set(name) & set("/\\\0\n\x1b"):
        return f"has the file name {name!r}"
    shown = printed(text)
    return f"prints as {shown!r}" if any(unicodedata.category(c) in ("Cc", "Cs") for c in shown) else ""


def test_hard_texts(shared_pipeline, clip, tally, tmp_path):
    counted = tally("A4 texts")
    for what, (text, taken) in HARD.items():
        for name, door in DOORS.items():
            empty = taken and not clean_text(text) and name in ("labels", "text")
            must = "right" if taken and not empty else "refused"
            judge(
                counted,
                f"{name}, {what}",
                lambda d=door, t=text: d(t),
                names=(name,),
                fault=text_fault,
                must=must,
            )
        if taken:
            cleaned = clean_text(text)
            save_png(Image.new("RGB", (8, 8)), tmp_path / "a.png", Provenance(cleaned), overwrite=True)
            wrong = drawn_fault(shared_pipeline, cleaned)
            wrong = wrong or (
                "" if read_provenance(tmp_path / "a.png").prompt == cleaned else "has another note"
            )
            counted.add("wrong" if wrong else "right", f"{what} {wrong}")
        rows = lambda t=text: clip.encode_text(t)  # noqa: E731 (takes also what no request does)
        fault = lambda rows: "" if torch.isfinite(rows).all() else "is not finite"  # noqa: E731
        judge(counted, f"encode_text, {what}", rows, names=("text",), fault=fault)
    counted.check(60)


def test_random_texts(shared_pipeline, tally, amount):
    counted, tries = tally("A4 texts"), amount(150, 2000)
    anything = st.text(st.characters(), max_size=300)

    @examples(tries)
    @given(anything)
    def take(text: str) -> None:
        judge(counted, repr(text), lambda: clean_text(text), names=("prompt",), fault=text_fault)
        try:
            wrong = drawn_fault(shared_pipeline, clean_text(text))
        except BadRequest:
            return
        except ValueError as refusal:  # weights that are too strong
            wrong = "" if str(refusal).startswith("prompt: ") else str(refusal)
        counted.add("wrong" if wrong else "right", f"{text!r} {wrong}")

    take()
    counted.check(tries)


def test_what_is_said_of_a_megabyte_is_short_and_said_at_once(shared_pipeline, clip, tally, caplog, capfd):
    """Of a text, of a file of texts, of one in the middle of a list; on every door that takes texts."""
    counted = tally("A4 texts")
    doors = DOORS | {
        "text of a list": lambda text: clip.encode_text(["a", text]),
        "prompt of the pipeline": lambda text: shared_pipeline(text),
        "prompt of a list": lambda text: shared_pipeline(["a", text], num_inference_steps=1),
        "prompt_file: line 2": lambda text: prompts_by_language(f"en: a\nzh: {text}"),
        "prompt_file: line 1": lambda text: prompts_by_language(text),
    }
    caplog.set_level(logging.DEBUG)
    for name, door in doors.items():
        began = time.process_time()
        with pytest.raises((ValueError, TypeError)) as refusal:
            door(MEGABYTE)
        seconds, message = time.process_time() - began, str(refusal.value)
        well = message.startswith(name.split(" of ")[0]) and seconds < 0.05 and len(message) < 500
        counted.add("refused" if well else "wrong", f"{name}: {seconds * 1000:.0f} ms, {shorten(message)}")
    said = [*(record.getMessage() for record in caplog.records), *"".join(capfd.readouterr()).splitlines()]
    assert all(len(line) < 500 for line in said)
    counted.check(len(doors))
