"""The interface in the visitor's language: texts for widgets, for messages from the server, and refusals.

Widgets' texts travel to the browser, which picks its language (`text`, `translations`, `LOCALE_JS`). What the
server says is written here, in the language that the browser asks for (`say`, `translate`). The texts are in
`texts/<tag>.json`, all with the same keys.
"""

import functools
import json
import re
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from altdiffusion.languages import LANGUAGES

if TYPE_CHECKING:
    import gradio as gr

_FOLDER = Path(__file__).parent / "texts"
_PLACEHOLDER = re.compile(r"\{([a-z]+)\}")
#: Widgets' keys begin with this: gradio has keys of its own (`label`, `image`), and its browser side also
#: translates any text that happens to equal a key.
_PREFIX = "app_"
#: Texts with these beginnings are matched and written by `translate` alone.
_REFUSAL, _VALUE = "refusal_", "value_"
#: Where the browser keeps a language that the visitor chose; it goes before those that the browser asks for.
COOKIE = "altdiffusion_language"
_LONGEST_HEADER = 1000  # characters; browsers send some 50

#: An argument's name in a refusal, and the key of the label that its widget has.
_FIELDS = {
    **{name: name for name in ("prompt", "negative_prompt", "steps", "size", "width", "height", "count")},
    **{
        name: name
        for name in ("seed", "scheduler", "strength", "language", "labels", "weight", "picture", "preset")
    },
    **{name: name for name in ("clip_skip", "mask", "mix", "mix_share", "weighting", "versions")},
    **{"guidance_scale": "guidance", "image": "picture", "images": "picture", "templates": "template"},
    **{"text": "query", "more": "more_like", "less": "less_like", "k": "results_count"},
    **{"prompts": "versions", "number": "history", "index": "search", "encoder": "model"},
    **{"data": "bad_request"},
}
_NUMBER, _NAMES = r"-?[\d.,]+(?:e[+-]?\d+)?", r"[\w+-]+(?:, [\w+-]+)*"
#: What a refusal's placeholders match; the rest matches anything.
_SHAPES = {
    **dict.fromkeys(("low", "high", "step", "limit", "length", "steps", "layers", "line", "bytes"), _NUMBER),
    **dict.fromkeys(("width", "height", "weight", "count"), _NUMBER),
    **dict.fromkeys(("choices", "near", "format"), _NAMES),
}

#: For `launch(js=…)`. gradio compares `navigator.language` with the languages that it has itself (no Italian,
#: no Vietnamese, no bare `zh`) and takes English for all others, whatever `i18n` holds; it never sets `dir`.
#: So the choice is made anew here, by the rule of `visitor_language`, and given to gradio's own switch.
LOCALE_JS = (
    (_FOLDER.parent / "locale.js")
    .read_text(encoding="utf-8")
    .replace("KNOWN", json.dumps(list(LANGUAGES)))
    .replace("RTL", json.dumps([row.tag for row in LANGUAGES.values() if row.direction == "rtl"]))
    .replace("COOKIE", COOKIE)
)
#: For the event of a language menu, whose value is a tag.
CHOOSE_JS = "(tag) => { window.altdiffusionLanguage(tag); return tag; }"


@functools.cache
def texts(tag: str) -> dict[str, str]:
    """All texts of a language, by key."""
    return json.loads((_FOLDER / f"{tag}.json").read_text(encoding="utf-8"))


#: Prompts to try, by language: the same in each, so that they can be compared.
EXAMPLES: dict[str, list[str]] = json.loads((_FOLDER / "examples.json").read_text(encoding="utf-8"))


def text(key: str) -> Any:
    """The marker that the browser replaces by the text: for labels, placeholders, buttons, Markdown."""
    from gradio.i18n import I18nData

    if not _for_widgets(key, texts("en")[key]):
        raise ValueError(f"key: {key!r} has values to fill in; allowed with say() only")
    return I18nData(_PREFIX + key)


def translations() -> "gr.I18n":
    """What `launch(i18n=…)` takes: the widgets' texts of all languages.

    Bare tags are enough: the browser side looks for `pt-BR` in `pt` too.
    """
    import gradio as gr

    return gr.I18n(**{tag: _for_browser(tag) for tag in LANGUAGES})


def _for_widgets(key: str, template: str) -> bool:
    return not key.startswith((_REFUSAL, _VALUE)) and not _PLACEHOLDER.search(template)


def _for_browser(tag: str) -> dict[str, str]:
    return {_PREFIX + key: value for key, value in texts(tag).items() if _for_widgets(key, value)}


def say(key: str, tag: str, **values: Any) -> str:
    """A message from the server; a tag that is none of ours gives English."""
    tag = tag if tag in LANGUAGES else "en"
    return _filled(texts(tag)[key], tag, {name: str(value) for name, value in values.items()})


def _filled(template: str, tag: str, values: dict[str, str]) -> str:
    return _PLACEHOLDER.sub(lambda found: _isolated(values[found[1]], tag), template)


def _isolated(value: str, tag: str) -> str:
    """The value between U+2068 and U+2069 where its direction and the line's may differ.

    Without them the brackets and numbers beside a Latin value in an Arabic line, or beside an Arabic value in
    an English one, are shown on the wrong side.
    """
    turned = any(unicodedata.bidirectional(character) in ("R", "AL") for character in value)
    return f"\u2068{value}\u2069" if turned or LANGUAGES[tag].direction == "rtl" else value


def visitor_language(request: "gr.Request | None") -> str:
    """The tag of ours that a visitor chose or whose browser likes best; English where there is none."""
    headers = getattr(request, "headers", None) or {}
    chosen = (getattr(request, "cookies", None) or {}).get(COOKIE)
    if chosen in LANGUAGES:
        return chosen
    ranges = headers.get("accept-language", "")[:_LONGEST_HEADER].split(",")
    liked = [(quality, tag) for quality, tag in map(_range, ranges) if quality > 0 and tag in LANGUAGES]
    return max(liked, key=lambda pair: pair[0], default=(1, "en"))[1]  # the first of equals


def _range(text: str) -> tuple[float, str]:
    """`pt-BR;q=0.8` → (0.8, "pt"); what cannot be read has the quality 0."""
    tag, _, quality = text.strip().partition(";")
    number = re.fullmatch(r"\s*q\s*=\s*([01](?:\.\d{0,3})?)\s*", quality, re.ASCII) if quality else None
    if quality and not number:
        return 0.0, ""
    return float(number[1]) if number else 1.0, tag.strip().lower().replace("_", "-").split("-")[0]


def translate(error: Exception | str, tag: str) -> str:
    """A refusal's line in another language; English where it is none that is known here.

    The line is "argument: value and what is wrong; what is allowed". English itself stays as it is: programs
    get that, to whom the argument's name says more than its label.
    """
    line = str(error)
    name, colon, rest = line.partition(": ")
    if tag not in LANGUAGES or tag == "en" or not colon or name not in _FIELDS:
        return line
    parts = {"label": texts(tag)[_FIELDS[name]], "reason": _sentence(rest, tag) or _isolated(rest, tag)}
    return _PLACEHOLDER.sub(lambda found: parts[found[1]], texts(tag)["named"])


def _sentence(english: str, tag: str, inner: bool = False) -> str | None:
    for key, pattern in _refusals():
        if found := pattern.fullmatch(english):
            values = {name: _value(name, value, tag, inner) for name, value in found.groupdict().items()}
            return _filled(texts(tag)[key], tag, values)
    return None


@functools.cache
def _refusals() -> list[tuple[str, re.Pattern[str]]]:
    """The English sentences as patterns, those first that begin with words of their own, then the longest."""
    keys = [key for key in texts("en") if key.startswith(_REFUSAL)]
    keys.sort(key=lambda key: -len(_PLACEHOLDER.sub("", texts("en")[key])))
    keys.sort(key=lambda key: texts("en")[key].startswith("{"))
    return [(key, _pattern(texts("en")[key])) for key in keys]


def _pattern(template: str) -> re.Pattern[str]:
    literals = _PLACEHOLDER.split(template)
    parts = [
        f"(?P<{part}>{_SHAPES.get(part, '.+?')})" if place % 2 else re.escape(part)
        for place, part in enumerate(literals)
    ]
    return re.compile("".join(parts), re.DOTALL)


def _value(name: str, value: str, tag: str, inner: bool) -> str:
    """A value as it stands in the other language: 2,000 would be 2 in some of them."""
    if name == "reason":  # a refusal inside another, and no deeper: lines may hold what people wrote
        return value if inner else _sentence(value, tag, inner=True) or value
    if name == "action" or value == "picture":
        return texts(tag).get(value, value)
    for key in (key for key in texts("en") if key.startswith(_VALUE)):
        if found := _pattern(texts("en")[key]).fullmatch(value):
            return _filled(
                texts(tag)[key], tag, {part: _plain(one) for part, one in found.groupdict().items()}
            )
    return _plain(value)


def _plain(value: str) -> str:
    return value.replace(",", "") if re.fullmatch(r"-?\d{1,3}(,\d{3})+", value) else value
