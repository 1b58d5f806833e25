"""The texts of all 18 languages, the choice among them, and refusals that the real code makes, in each."""

import ast
import http.cookies
import re
import time
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from altdiffusion.languages import LANGUAGES
from altdiffusion.requests import clean_text
from app import i18n
from app.i18n import EXAMPLES, say, text, texts, translations, visitor_language

pytest.importorskip("gradio", reason="needs the extra app: pip install 'altdiffusion[app]'")

OTHERS = [tag for tag in LANGUAGES if tag != "en"]
#: The letters that a language is written in, by the names that Unicode gives them; all others are Latin.
SCRIPTS = {
    **{"zh": ("CJK",), "ja": ("HIRAGANA", "KATAKANA", "CJK"), "ko": ("HANGUL",), "th": ("THAI",)},
    **{"hi": ("DEVANAGARI",), "ar": ("ARABIC",), "uk": ("CYRILLIC",), "ru": ("CYRILLIC",)},
}
#: Letters that set a language that is written in Latin ones apart.
OWN_LETTERS = {
    **{"tr": "ğışö", "vi": "ảạốđ", "pl": "łąęż", "pt": "ãçõ", "es": "ñáó", "de": "äöüß", "fr": "éàèê"},
    **{"it": "àèù", "nl": ""},
}
#: Texts that are the same in English and some other language, and why.
SAME = {
    "named": set(OTHERS),  # signs only; Chinese, Japanese and French have others
    "prompt": {"de", "fr", "es", "it", "pt", "pl", "nl"},  # people who draw this way call it so
    "seed": {"de", "nl"},  # as above
    "scheduler": {"de", "nl"},
    "model": {"tr", "pl", "nl"},  # the word of these languages too
    "labels": {"nl"},
    "score": {"fr", "nl"},
}


def named() -> set[str]:
    """The texts that the app's code asks for."""
    return {one for call in calls("say", "text", "_number") for one in strings(call.args[:1])}


def listed() -> set[str]:
    """What stands in its tables: values of dictionaries, parts of tuples."""
    found = set()
    for node in nodes():
        found |= strings(node.values if isinstance(node, ast.Dict) else getattr(node, "elts", []))
    return found


def nodes() -> Iterator[ast.AST]:
    for path in Path(i18n.__file__).parent.glob("*.py"):
        yield from ast.walk(ast.parse(path.read_text(encoding="utf-8")))


def calls(*names: str) -> list[ast.Call]:
    return [node for node in nodes() if isinstance(node, ast.Call) and getattr(node.func, "id", "") in names]


def strings(parts: Sequence[ast.AST]) -> set[str]:
    found = [node for part in parts for node in ast.walk(part) if isinstance(node, ast.Constant)]
    return {node.value for node in found if isinstance(node.value, str)}


def test_every_text_is_shown_somewhere():
    """Refusals are found by their English, and tried in test_refusals."""
    keys = {key for key in texts("en") if not key.startswith(("refusal_", "value_"))}
    assert keys <= named() | listed() | {"named"}


def test_every_text_that_the_code_asks_for_exists():
    assert len(named()) > 50
    assert named() <= set(texts("en"))


def placeholders(template: str) -> list[str]:
    return sorted(re.findall(r"\{\w*\}", template))


@pytest.mark.parametrize("tag", OTHERS)
def test_a_language_has_all_texts_with_all_their_values(tag: str):
    assert list(texts(tag)) == list(texts("en"))
    for key, english in texts("en").items():
        assert placeholders(texts(tag)[key]) == placeholders(english), key


@pytest.mark.parametrize("tag", OTHERS)
def test_no_text_is_left_in_english(tag: str):
    same = {key for key, value in texts(tag).items() if value == texts("en")[key]}
    assert same <= {key for key, tags in SAME.items() if tag in tags}


@pytest.mark.parametrize("tag", OTHERS)
def test_texts_are_written_in_their_language_s_letters(tag: str):
    whole = "".join(texts(tag).values())
    if tag not in SCRIPTS:
        assert set(OWN_LETTERS[tag]) <= set(whole)
        return
    for key, value in texts(tag).items():
        letters = [c for c in re.sub(r"\{\w*\}", "", value) if c.isalpha()]
        own = [c for c in letters if unicodedata.name(c).startswith(SCRIPTS[tag])]
        assert own or key in SAME, key
    names = {unicodedata.name(c).split()[0] for c in whole if c.isalpha()}
    foreign = names - {*SCRIPTS[tag], "LATIN", "MODIFIER", "IDEOGRAPHIC", "KATAKANA-HIRAGANA"}
    assert not foreign, foreign


@pytest.mark.parametrize("tag", list(LANGUAGES))
def test_texts_are_clean(tag: str):
    for key, value in {**texts(tag), **{f"example {i}": one for i, one in enumerate(EXAMPLES[tag])}}.items():
        assert value == unicodedata.normalize("NFC", value).strip(), key
        assert value.count("\u2068") == value.count("\u2069"), key
        assert not re.search(r"[\n\t<>]|  ", value), key
        assert not any(unicodedata.category(c) in ("Cc", "Cs", "Co", "Cn") for c in value), key


def test_ukrainian_and_russian_are_told_apart():
    assert set("іїє") <= set("".join(texts("uk").values()))
    assert not set("ыэъё") & set("".join(texts("uk").values()))
    assert not set("іїєґ") & set("".join(texts("ru").values()))


def test_every_language_has_the_same_number_of_examples():
    assert list(EXAMPLES) == list(LANGUAGES)
    assert {len(set(several)) for several in EXAMPLES.values()} == {4}
    assert all(clean_text(one) == one for several in EXAMPLES.values() for one in several)


def test_widgets_get_markers_and_the_browser_all_texts_without_values():
    marker = text("generate")
    of_browser = translations().translations
    assert set(of_browser) == set(LANGUAGES)
    assert marker.key in of_browser["th"]
    assert of_browser["th"][marker.key] == texts("th")["generate"]
    assert all(set(one) == set(of_browser["en"]) for one in of_browser.values())
    assert not any(re.search(r"\{\w+\}", value) for one in of_browser.values() for value in one.values())


def test_a_tab_is_known_by_its_name_in_any_language():
    """`locale.js` finds tabs that way, to rename them."""
    keys = [key for key in texts("en") if key.startswith("tab_")]
    named = {(texts(tag)[key], key) for tag in LANGUAGES for key in keys}
    assert len(named) == len({name for name, _ in named})


@pytest.mark.parametrize("key", ["waiting", "refusal_tag", "value_bytes"])
def test_a_text_with_values_is_no_text_for_a_widget(key: str):
    with pytest.raises(ValueError, match=r"^key: .*allowed with say\(\) only$"):
        text(key)


def test_a_message_has_its_values_in_it_and_english_where_the_tag_is_not_ours():
    assert say("drawing_step", "de", step=3, steps=20) == "Schritt 3 von 20"
    assert say("drawing_step", "xx", step=3, steps=20) == "Step 3 of 20"
    assert say("busy", "fr", waiting="{allowed}", allowed=32).count("{allowed}") == 1


def visitor(header: str | None, cookie: str | None = None) -> Any:
    cookies = http.cookies.SimpleCookie({i18n.COOKIE: cookie} if cookie else {})
    return SimpleNamespace(
        headers={} if header is None else {"accept-language": header},
        cookies={name: morsel.value for name, morsel in cookies.items()},
    )


@pytest.mark.parametrize(
    ("header", "tag"),
    [
        ("de", "de"),
        ("zh-CN,zh;q=0.9,en;q=0.8", "zh"),
        ("zh-Hant-TW", "zh"),
        ("pt-BR,pt;q=0.9", "pt"),
        ("PT_br", "pt"),
        ("sv-SE,sv;q=0.9,th;q=0.5,en;q=0.4", "th"),
        ("en;q=0.3, uk;q=0.8", "uk"),
        ("ja;q=0.8, ko;q=0.8", "ja"),  # the first of equals
        ("ko; q = 0.9 , en;q=0.1", "ko"),
        ("de;q=0, fr;q=0.1", "fr"),
        ("de;q=0", "en"),
        ("*", "en"),
        ("sv, xx-YY", "en"),
        ("", "en"),
        (None, "en"),
        ("de;q=abc, it;q=0.2", "it"),
        ("de;q=-1, it;q=0.2", "it"),
        ("de;q=1e9, it;q=0.2", "it"),
        ("de;q=٠.٩, it;q=0.2", "it"),
        ("de;level=1, it", "it"),
        (";;,;q=1,,=", "en"),
        ("\0\r\n;q=\ud800", "en"),
    ],
)
def test_the_browser_s_languages_are_weighed(header: str | None, tag: str):
    assert visitor_language(visitor(header)) == tag


def test_a_chosen_language_goes_before_the_browser_s_unless_it_is_not_ours():
    assert visitor_language(visitor("de", cookie="ar")) == "ar"
    assert visitor_language(visitor("de", cookie="../../etc")) == "de"
    assert visitor_language(None) == "en"


@pytest.mark.parametrize(
    "header", ["de;q=" * 2000, "," * 10_000, "a" * 10_000, "q" + "-" * 10_000, "en;q=0." + "9" * 10_000]
)
def test_long_headers_cost_nothing(header: str):
    began = time.perf_counter()
    assert visitor_language(visitor(header)) in LANGUAGES
    assert time.perf_counter() - began < 0.05
