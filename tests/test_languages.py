"""The table of languages: BCP-47 tags, near misses, and which published model covers what."""

import unicodedata

import pytest

from altdiffusion.languages import LANGUAGES, language


def test_the_languages_are_the_18_of_altdiffusion_m18_in_its_order():
    assert list(LANGUAGES) == [
        "en",
        "zh",
        "ja",
        "th",
        "ko",
        "hi",
        "uk",
        "ar",
        "tr",
        "vi",
        "pl",
        "nl",
        "pt",
        "it",
        "es",
        "de",
        "fr",
        "ru",
    ]


def test_each_published_model_covers_as_many_languages_as_its_name_says():
    for model, count in {"m2": 2, "m9": 9, "m18": 18}.items():
        assert sum(model in row.models for row in LANGUAGES.values()) == count


def test_only_arabic_is_written_from_right_to_left():
    assert [tag for tag, row in LANGUAGES.items() if row.direction == "rtl"] == ["ar"]


def test_endonyms_are_nfc_and_distinct():
    endonyms = [row.endonym for row in LANGUAGES.values()]
    assert all(unicodedata.is_normalized("NFC", name) for name in endonyms)
    assert len(set(endonyms)) == 18


@pytest.mark.parametrize(
    ("tag", "base"),
    [("en", "en"), ("pt-BR", "pt"), ("zh-CN", "zh"), ("zh_Hant_TW", "zh"), (" FR ", "fr")],
)
def test_a_region_or_script_is_set_aside(tag: str, base: str):
    assert language(tag).tag == base


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("cn", "zh"),
        ("ch", "zh"),
        ("jp", "ja"),
        ("kr", "ko"),
        ("ua", "uk"),
        ("german", "de"),
        ("français", "fr"),
    ],
)
def test_a_country_code_or_a_name_gets_the_tag_that_was_meant(wrong: str, meant: str):
    with pytest.raises(
        ValueError, match=f"^languages: '{wrong}' is not known; did you mean '{meant}'\\? Known: en, zh"
    ):
        language(wrong, "languages")


@pytest.mark.parametrize("wrong", ["", "xx", "qqq", "q" * 10_000, "\ud800", "cz"])
def test_an_unknown_tag_is_refused_in_one_short_line(wrong: str):
    with pytest.raises(ValueError, match=r"^language: ") as refusal:
        language(wrong)
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 300
