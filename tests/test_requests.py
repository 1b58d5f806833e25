"""Requests: what passes, what is refused and in which words, and how a picture's making is written down."""

import math
import time
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from altdiffusion.requests import (
    MAX_SEED,
    SCHEDULERS,
    BadRequest,
    GenerateRequest,
    Provenance,
    clean_text,
    parse_size,
    prompts_by_language,
)
from tests.fakes import SENTENCES

BAD = [
    *[("steps", value) for value in (0, -1, 1001, 10**9, 10**5000, 2.5, math.nan, "20", True)],
    *[("guidance_scale", value) for value in (math.nan, math.inf, -1, 51, 1e30, "7", True)],
    *[("seed", value) for value in ("a", -2, 2**64, 1.5, math.nan, True)],
    *[("width", value) for value in (65, 0, -64, 2056, "64", 64.0, math.nan)],
    *[("height", value) for value in (65, 0, 100_000)],
    *[("count", value) for value in (0, -1, 65, 1.5, None)],
    *[("scheduler", value) for value in ("", "eular", 3, "dpm" * 1000)],
    *[("prompt", value) for value in (None, 42, b"", ["a"], "a" * 2001, "\ud800", "a\0b")],
    *[("negative_prompt", value) for value in (None, 42, "a" * 2001, "\udfff", "\0")],
    *[("language", value) for value in ("cn", "", 5)],
    *[
        ("image", value)
        for value in (5, "http://localhost/a.png", "file:///a.png", "data:image/png;base64,AA")
    ],
    *[("widht", value) for value in (64,)],
]


@pytest.mark.parametrize(
    ("name", "value"), BAD, ids=lambda value: repr(value)[:40] if value != 10**5000 else "vast"
)
def test_nonsense_is_refused_in_one_line_that_starts_with_the_argument(name: str, value: object):
    with pytest.raises(BadRequest) as refusal:
        GenerateRequest.build(**{"prompt": "a cat", name: value})
    message = str(refusal.value)
    assert message.startswith(f"{name}: ")
    assert "\n" not in message
    assert len(message) < 400
    assert "allowed" in message or "Known" in message


@pytest.mark.parametrize("text", ["1e9", "nan", "", "0", "-1", "2.5", "٣٠٠٠", "9" * 5000])
def test_the_same_holds_for_texts_from_a_command_line(text: str):
    with pytest.raises(BadRequest, match=r"^steps: "):
        GenerateRequest.from_text(prompt="a", steps=text)


def test_texts_become_the_numbers_that_they_say():
    request = GenerateRequest.from_text(
        prompt="a", steps="20", seed=str(MAX_SEED), guidance_scale="2.5", count="3"
    )
    assert (request.steps, request.seed, request.guidance_scale, request.count) == (20, MAX_SEED, 2.5, 3)


def test_what_is_left_open_is_the_models_own():
    request = GenerateRequest.build(prompt="")
    assert (request.steps, request.guidance_scale, request.width, request.scheduler) == (None,) * 4
    assert request.seed == -1


def test_an_unknown_scheduler_gets_its_near_miss():
    with pytest.raises(
        BadRequest, match=r"^scheduler: 'eular' is not known; did you mean 'euler'\? allowed ddim"
    ):
        GenerateRequest.build(prompt="a", scheduler="eular")
    assert GenerateRequest.build(prompt="a", scheduler=" Euler-A ").scheduler == "euler-a"


def test_a_misspelt_argument_gets_its_near_miss():
    with pytest.raises(BadRequest, match=r"^widht: not an argument; did you mean 'width'\?"):
        GenerateRequest.build(prompt="a", widht=64)


def test_strength_without_a_picture_is_refused_rather_than_ignored():
    request = GenerateRequest.build(prompt="a", strength=0.5)
    request.check_strength(picture=True)
    with pytest.raises(BadRequest, match=r"^strength: 0.5 is for image-to-image; give image as well"):
        request.check_strength(picture=False)


def test_a_share_without_a_second_prompt_is_refused_rather_than_ignored():
    with pytest.raises(BadRequest, match=r"^mix_share: 0.5 is for two prompts; give mix as well"):
        GenerateRequest.build(prompt="a", mix_share=0.5)


def test_minus_one_draws_a_seed_and_any_other_stays():
    drawn = {GenerateRequest.build(prompt="a").with_seed().seed for _ in range(20)}
    assert len(drawn) > 15
    assert all(0 <= seed < 2**32 for seed in drawn)
    assert GenerateRequest.build(prompt="a", seed=0).with_seed().seed == 0


@pytest.mark.parametrize(
    ("size", "sides"),
    [("64", (64, 64)), ("64x96", (64, 96)), (" 8 X 2048 ", (8, 2048)), ("64×96", (64, 96)), (64, (64, 64))],
)
def test_a_size_is_one_side_or_width_by_height(size: str | int, sides: tuple[int, int]):
    assert parse_size(size) == sides


@pytest.mark.parametrize(
    "size", ["65", "0", "a", "100000", "-64", "64x", "x64", "64x65", "64.0", "nan", "٦٤", "", "9" * 99]
)
def test_other_sizes_are_refused_by_name(size: str):
    with pytest.raises(
        BadRequest, match=r"^size: .*; allowed N or WIDTHxHEIGHT, a multiple of 8 from 8 to 2048 each$"
    ):
        parse_size(size)


@pytest.mark.parametrize("sentence", SENTENCES.values(), ids=SENTENCES)
def test_text_in_every_script_passes_unharmed(sentence: str):
    assert clean_text(sentence) == unicodedata.normalize("NFC", sentence)


@pytest.mark.parametrize("emoji", ["👩‍🚀", "❤️", "🏴󠁧󠁢󠁷󠁬󠁳󠁿", "👋🏽", "🇺🇦", "1️⃣"])
def test_joiners_selectors_and_modifiers_of_emoji_stay(emoji: str):
    assert clean_text(emoji) == emoji


def test_controls_and_direction_marks_go_and_line_breaks_become_spaces():
    assert clean_text("a\x1b[31m\x85b\u202ec\u2066d\ne") == "a[31mbcd e"
    assert clean_text("e\u0301") == "é"


def test_a_megabyte_is_refused_before_anything_reads_it():
    start = time.perf_counter()
    with pytest.raises(BadRequest, match=r"^prompt: 'aaa.*1,000,000 characters"):
        GenerateRequest.build(prompt="a" * 1_000_000)
    assert time.perf_counter() - start < 0.05


@settings(max_examples=300, derandomize=True, deadline=None)
@given(st.text(alphabet=st.characters(), max_size=100))
def test_any_text_passes_clean_or_is_refused_by_name(text: str):
    try:
        request = GenerateRequest.build(prompt=text)
    except BadRequest as refusal:
        assert str(refusal).startswith("prompt: ")
        return
    request.prompt.encode()
    assert clean_text(request.prompt) == request.prompt


@settings(max_examples=500, derandomize=True, deadline=None)
@given(
    st.sampled_from(["steps", "guidance_scale", "seed", "width", "height", "count", "strength", "scheduler"]),
    st.one_of(
        st.integers(), st.floats(), st.text(max_size=20), st.none(), st.booleans(), st.lists(st.integers())
    ),
)
def test_any_value_is_in_bounds_or_refused_by_name(name: str, value: object):
    fields = {"prompt": "a", "image": "a.png", name: value}
    try:
        request = GenerateRequest.build(**fields)
    except BadRequest as refusal:
        assert str(refusal).startswith(f"{name}: ")
        return
    got = getattr(request, name)
    if isinstance(got, float):
        assert math.isfinite(got)
    assert name != "scheduler" or got in SCHEDULERS or got is None


def test_requests_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        GenerateRequest.build(prompt="a").steps = 3  # type: ignore[misc]


@pytest.mark.parametrize("sentence", [*SENTENCES.values(), "a\nb 🦞 \\ \" '", ""], ids=repr)
def test_provenance_survives_json(sentence: str):
    made = Provenance(clean_text(sentence), seed=MAX_SEED, guidance_scale=0.1, versions={"torch": "2"})
    assert Provenance.from_json(made.to_json()) == made


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "[]",
        "{}",
        '{"prompt": 3}',
        '{"prompt": "a", "steps": "20"}',
        '{"prompt": "a\\u0000"}',
        "[" * 10_000,
    ],
)
def test_a_forged_note_is_refused_in_one_line(text: str):
    with pytest.raises(BadRequest) as refusal:
        Provenance.from_json(text)
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 300


def test_a_note_of_a_later_version_is_read_as_far_as_it_is_known():
    assert Provenance.from_json('{"prompt": "a", "aura": 9}') == Provenance("a")


def test_prompt_files_are_lines_of_tag_and_prompt():
    text = "\ufeff# animals\nen: a cat: grey\n\nzh-CN: 灰猫\nar: قطة\nen: a dog\n"
    assert prompts_by_language(text) == {"en": ["a cat: grey", "a dog"], "zh": ["灰猫"], "ar": ["قطة"]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("en: a\ncn: b", r"^prompt_file: line 2: 'cn' is not known; did you mean 'zh'\?"),
        ("a cat", r"^prompt_file: line 1: 'a cat' has no colon"),
        ("en: \0", r"^prompt_file: line 1: "),
        ("# nothing", r"^prompt_file: no prompt in it"),
    ],
)
def test_a_faulty_prompt_file_is_refused_with_its_line(text: str, message: str):
    with pytest.raises(ValueError, match=message):
        prompts_by_language(text)
