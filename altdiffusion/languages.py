"""The 18 languages of AltDiffusion-m18 in one table, and the published model that covers each.

Tags are BCP-47 base languages. Coverage is as published: m2 English and Chinese, m9 nine languages, m18 all.
"""

import difflib
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Language:
    """BCP-47 `tag`, English `name`, `endonym` (its own name), writing `direction`, covering `models`."""

    tag: str
    name: str
    endonym: str
    direction: Literal["ltr", "rtl"]
    models: tuple[str, ...]


_M2, _M9, _M18 = ("m2", "m9", "m18"), ("m9", "m18"), ("m18",)

LANGUAGES: dict[str, Language] = {
    row.tag: row
    for row in (
        Language("en", "English", "English", "ltr", _M2),
        Language("zh", "Chinese", "中文", "ltr", _M2),
        Language("ja", "Japanese", "日本語", "ltr", _M9),
        Language("th", "Thai", "ไทย", "ltr", _M18),
        Language("ko", "Korean", "한국어", "ltr", _M9),
        Language("hi", "Hindi", "हिन्दी", "ltr", _M18),
        Language("uk", "Ukrainian", "українська", "ltr", _M18),
        Language("ar", "Arabic", "العربية", "rtl", _M9),
        Language("tr", "Turkish", "Türkçe", "ltr", _M18),
        Language("vi", "Vietnamese", "Tiếng Việt", "ltr", _M18),
        Language("pl", "Polish", "polski", "ltr", _M18),
        Language("nl", "Dutch", "Nederlands", "ltr", _M18),
        Language("pt", "Portuguese", "português", "ltr", _M18),
        Language("it", "Italian", "italiano", "ltr", _M9),
        Language("es", "Spanish", "español", "ltr", _M9),
        Language("de", "German", "Deutsch", "ltr", _M18),
        Language("fr", "French", "français", "ltr", _M9),
        Language("ru", "Russian", "русский", "ltr", _M9),
    )
}

#: Country codes and old codes that people write for a language.
_MISTAKES = {
    **{"cn": "zh", "ch": "zh", "tw": "zh", "hk": "zh", "cmn": "zh", "zho": "zh", "jp": "ja", "jpn": "ja"},
    **{"kr": "ko", "kor": "ko", "ua": "uk", "in": "hi", "gb": "en", "us": "en", "eng": "en", "br": "pt"},
    **{
        "vn": "vi",
        "sa": "ar",
        "eg": "ar",
        "mx": "es",
        "at": "de",
        "be": "nl",
        "po": "pl",
        "sp": "es",
        "ge": "de",
    },
}


def language(tag: object, argument: str = "language") -> Language:
    """The language of a BCP-47 tag; a script or region is accepted and set aside (`pt-BR`, `zh_Hant_TW`)."""
    tag = tag if isinstance(tag, str) else f"a {type(tag).__name__}"
    base = tag.strip().lower().replace("_", "-").split("-")[0]
    if base in LANGUAGES:
        return LANGUAGES[base]
    near = _near(base)
    hint = f"; did you mean '{near}'?" if near else ";"
    raise ValueError(f"{argument}: {tag[:70]!r} is not known{hint} Known: {', '.join(LANGUAGES)}")


def _near(base: str) -> str | None:
    if base in _MISTAKES:
        return _MISTAKES[base]
    names = {name.lower(): row.tag for row in LANGUAGES.values() for name in (row.name, row.endonym, row.tag)}
    found = difflib.get_close_matches(base[:40], names, n=1, cutoff=0.6)
    return names[found[0]] if found else None
