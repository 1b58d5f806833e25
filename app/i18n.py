"""The interface in the visitor's language: texts for widgets, for messages from the server, and refusals.

Widgets' texts travel to the browser, which picks its language (`text`, `translations`, `LOCALE_JS`). What the
server says is written here, from the languages that the browser asks for (`say`, `translate`). The texts are in
`texts/<tag>.json`.
"""

import functools
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from altdiffusion.languages import LANGUAGES

if TYPE_CHECKING:
    import gradio as gr

_FOLDER = Path(__file__).parent / "texts"
_PLACEHOLDER = re.compile(r"\{([a-z_]+)\}")
#: Widgets' keys begin with this: gradio has keys of its own (`label`, `image`), and its browser side also
#: translates any text that happens to equal a key.
_PREFIX = "app_"
#: Where the browser keeps a language that the visitor chose; it goes before those that the browser asks for.
COOKIE = "altdiffusion_language"


@functools.cache
def texts(tag: str) -> dict[str, str]:
    """All texts of a language, by key."""
    return json.loads((_FOLDER / f"{tag}.json").read_text(encoding="utf-8"))


#: Prompts to try, by language.
EXAMPLES: dict[str, list[str]] = json.loads((_FOLDER / "examples.json").read_text(encoding="utf-8"))


def text(key: str) -> Any:
    """The marker that the browser replaces by the text: for labels, placeholders, buttons, Markdown."""
    from gradio.i18n import I18nData

    if _PLACEHOLDER.search(texts("en")[key]):
        raise KeyError(f"{key}: has values to fill in; allowed with say() only")
    return I18nData(_PREFIX + key)


def translations() -> "gr.I18n":
    """What `launch(i18n=…)` takes: the texts without values, of all languages.

    Bare tags are enough: the browser side looks for `pt-BR` in `pt` too.
    """
    import gradio as gr

    return gr.I18n(**{tag: _for_browser(tag) for tag in LANGUAGES})


def _for_browser(tag: str) -> dict[str, str]:
    """Braces are quoted, as the browser side reads texts as ICU messages."""
    return {
        _PREFIX + key: value.replace("{}", "'{}'")
        for key, value in texts(tag).items()
        if not _PLACEHOLDER.search(value)
    }


def say(key: str, tag: str, **values: Any) -> str:
    """A message from the server."""
    template = texts(tag if tag in LANGUAGES else "en")[key]
    return _PLACEHOLDER.sub(lambda found: str(values[found[1]]), template)


def visitor_language(request: "gr.Request | None") -> str:
    """The tag of ours that a visitor chose or whose browser likes best; English where there is none."""
    return "en"


def translate(error: Exception, tag: str) -> str:
    """A refusal's line in another language."""
    return str(error)
