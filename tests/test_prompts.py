"""Weights, long prompts and what lies between prompts, against encodes worked out by hand."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from altdiffusion.conditioning import encode_prompts
from altdiffusion.prompts import blend, embed, interpolate, parse
from tests.fakes import SENTENCES, padded_encode, tiny_tokenizer, tiny_tower

EXACT = {"rtol": 0, "atol": 1e-5}
LONG = " ".join(SENTENCES[tag] for tag in ("en", "de", "fr", "es", "ja", "ru", "vi", "it", "nl", "pt"))


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def tower():
    """With positions for 512 tokens, as XLM-R has."""
    return tiny_tower(max_position_embeddings=514)


@torch.no_grad()
def embeds(tower, tokenizer, prompts, **arguments):
    return embed(tower, tokenizer, prompts, **arguments)


def draw(pipeline, prompt=None, **arguments) -> np.ndarray:
    arguments = {"num_inference_steps": 3, "guidance_scale": 3.0, "output_type": "np"} | arguments
    return pipeline(prompt, generator=torch.Generator("cpu").manual_seed(0), **arguments).images


def given(pipeline, prompt, **arguments):
    positive, negative = pipeline.embed_prompts(prompt, **arguments)
    return draw(pipeline, prompt_embeds=positive, negative_prompt_embeds=negative)


def marked(prompt: str) -> dict[str, float]:
    """The weighted stretches of a prompt."""
    read = parse(prompt)
    stretches: dict[str, float] = {}
    start = 0
    for end in range(1, len(read.text) + 1):
        if end == len(read.text) or read.weights[end] != read.weights[start]:
            stretches[read.text[start:end]] = round(read.weights[start], 6)
            start = end
    return {text: weight for text, weight in stretches.items() if weight != 1}


@pytest.mark.parametrize(
    ("prompt", "text", "weights"),
    [
        ("a (red:1.3) cat", "a red cat", {"red": 1.3}),
        ("a (red cat)1.3", "a red cat", {"red cat": 1.3}),
        ("a (red: .5 ) cat", "a red cat", {"red": 0.5}),
        ("a red++ cat", "a red cat", {"red": 1.21}),
        ("a (red cat)--, big", "a red cat, big", {"red cat": 0.81}),
        ("((red)1.2 cat:0.5)", "red cat", {"red": 0.6, " cat": 0.5}),
        ("一只(红色:1.3)的猫", "一只红色的猫", {"红色": 1.3}),
        ("🦞++ 🐈-", "🦞 🐈", {"🦞": 1.21, "🐈": 0.9}),
        ("(กุ้งมังกร)1.5สีแดง", "กุ้งมังกรสีแดง", {"กุ้งมังกร": 1.5}),
        ("(a:0)", "a", {"a": 0.0}),
        ("a (red) cat", "a (red) cat", {}),
        (r"a \(red:1.3\) cat\+", "a (red:1.3) cat+", {}),
        ("a (red (cat:1.3", "a (red (cat:1.3", {}),
        ("at 12:30) red) 2.5", "at 12:30) red) 2.5", {}),
        (":-) red-haired -> 1+1 - -- ++", ":-) red-haired -> 1+1 - -- ++", {}),
        ("(two)2nd well-known", "(two)2nd well-known", {}),
        ("", "", {}),
    ],
)
def test_marks_are_read_and_taken_out(prompt, text, weights):
    assert parse(prompt).text == text
    assert marked(prompt) == weights


def test_a_weight_that_would_blow_up_is_refused():
    with pytest.raises(ValueError, match=r"^prompt: '\(a:12\)' has a weight of 12; allowed: 0 to 10$"):
        parse("(a:12)")


def test_without_marks_the_embeds_are_the_encode_to_the_bit(tower, tokenizer):
    texts = [*SENTENCES.values(), "", "a (red) cat"]
    with torch.no_grad():
        plain = encode_prompts(tower, tokenizer, texts)
    assert torch.equal(embeds(tower, tokenizer, texts), plain)
    assert torch.equal(embeds(tower, tokenizer, "(a red:1.0) cat"), embeds(tower, tokenizer, "a red cat"))
    literal = embeds(tower, tokenizer, r"a red\+\+ cat")
    assert torch.equal(embeds(tower, tokenizer, "a red++ cat", weights=False), literal)


@pytest.mark.parametrize("weight", [0.0, 0.7, 1.3, 2.0])
def test_a_weight_moves_its_own_rows_along_the_line_from_the_empty_prompt(tower, tokenizer, weight):
    plain, empty = padded_encode(tower, tokenizer, ["a red cat", ""])
    expected = plain.clone()
    expected[2] = empty[2] + weight * (plain[2] - empty[2])  # <s>, a, red
    ours = embeds(tower, tokenizer, f"a (red:{weight}) cat")[0]
    assert_close(ours, expected, **EXACT)
    assert torch.equal(
        ours[[0, 1, *range(3, 77)]], embeds(tower, tokenizer, "a red cat")[0, [0, 1, *range(3, 77)]]
    )


def test_marks_leave_the_tokens_of_a_script_without_spaces_as_they_are(tower, tokenizer):
    sentence = SENTENCES["zh"]
    with_marks = sentence.replace("红色", "(红色:1.5)")
    rows = (embeds(tower, tokenizer, with_marks) - embeds(tower, tokenizer, sentence)).abs().amax(dim=(0, 2))
    pieces = tokenizer.convert_ids_to_tokens(tokenizer(sentence).input_ids)
    assert [pieces[row] for row in rows.nonzero()[:, 0]] == ["红", "色"]


def test_a_piece_that_a_mark_cuts_through_has_the_mean_weight(tower, tokenizer):
    half = embeds(tower, tokenizer, "lob(ster:2.0)")
    assert_close(half, embeds(tower, tokenizer, f"(lobster:{(3 + 4 * 2) / 7})"), **EXACT)


def test_pads_are_masked_and_clip_skip_holds_for_weighted_prompts(tower, tokenizer):
    weighted = embeds(tower, tokenizer, "a (red:1.0001) cat", clip_skip=1)
    with torch.no_grad():
        plain = encode_prompts(tower, tokenizer, "a red cat", clip_skip=1)
    assert_close(weighted, plain, rtol=0, atol=1e-3)
    assert (plain - embeds(tower, tokenizer, "a red cat")).abs().max() > 0.1


def test_a_long_prompt_is_read_in_windows_of_75_tokens_side_by_side(tower, tokenizer):
    ids = tokenizer(LONG, add_special_tokens=False).input_ids
    assert 75 < len(ids) < 225
    windows = [ids[at : at + 75] for at in range(0, len(ids), 75)]
    states = []
    for window in windows:
        row = [0, *window, 2]
        padded = torch.tensor([row + [1] * (77 - len(row))])
        with torch.no_grad():
            states.append(tower(padded, attention_mask=(padded != 1).long()).last_hidden_state)
    ours = embeds(tower, tokenizer, [LONG, "a cat"], long="windows")
    assert_close(ours[:1], torch.cat(states, dim=1), **EXACT)
    short, empty = padded_encode(tower, tokenizer, ["a cat", ""])
    assert_close(ours[1], torch.cat([short] + [empty] * (len(windows) - 1)), **EXACT)


def test_a_long_prompt_is_read_whole_up_to_the_towers_positions(tower, tokenizer):
    count = len(tokenizer(LONG).input_ids)
    ours = embeds(tower, tokenizer, [LONG, "a cat"], long="whole")
    assert ours.shape == (2, count, 32)
    assert_close(ours, padded_encode(tower, tokenizer, [LONG, "a cat"], count), **EXACT)
    assert embeds(tower, tokenizer, "a " * 600, long="whole").shape == (1, 512, 32)


@pytest.mark.parametrize("long", ["cut", "windows", "whole"])
def test_a_prompt_that_fits_is_the_same_in_every_way_of_reading(tower, tokenizer, long):
    assert torch.equal(embeds(tower, tokenizer, "a cat", long=long), embeds(tower, tokenizer, "a cat"))


def test_weights_reach_beyond_the_first_window(tower, tokenizer):
    plain, heavy = (embeds(tower, tokenizer, text, long="windows") for text in (LONG, LONG + " cat++"))
    plain = embeds(tower, tokenizer, LONG + " cat", long="windows")
    (rows,) = (heavy - plain).abs().amax(dim=2)[0].nonzero(as_tuple=True)
    assert len(rows) >= 1
    assert rows.min() > 77


def test_an_unknown_way_of_reading_is_refused(tower, tokenizer):
    with pytest.raises(ValueError, match=r"^long: 'all'; allowed: cut, windows, whole$"):
        embeds(tower, tokenizer, "a", long="all")


def test_a_blend_is_the_weighted_mean_of_prompts_in_any_language(tower, tokenizer):
    both = embeds(tower, tokenizer, [SENTENCES["en"], SENTENCES["zh"]])
    assert_close(blend(both), both.mean(dim=0, keepdim=True), **EXACT)
    assert_close(blend(both, [3, 1]), 0.75 * both[:1] + 0.25 * both[1:], **EXACT)
    assert_close(blend(both, [1, 0]), both[:1], rtol=0, atol=0)
    for weights in ([1], [1, -1]):
        with pytest.raises(ValueError, match=r"^weights: .*; allowed: 2 numbers, their sum not 0$"):
            blend(both, weights)


def test_an_interpolation_goes_from_one_prompt_to_the_other(tower, tokenizer):
    both = embeds(tower, tokenizer, [SENTENCES["en"], SENTENCES["th"]])
    path = interpolate(both[:1], both[1:], 5)
    assert torch.equal(path[:1], both[:1])
    assert torch.equal(path[-1:], both[1:])
    assert_close(path[2:3], blend(both), **EXACT)
    with pytest.raises(ValueError, match=r"^steps: 1; allowed: 2 or more"):
        interpolate(both[:1], both[1:], 1)


def test_embeds_of_a_pipeline_draw_what_the_prompt_draws(shared_pipeline):
    plain = draw(shared_pipeline, "a red cat", negative_prompt="a dog")
    assert np.array_equal(given(shared_pipeline, "a red cat", negative_prompt="a dog"), plain)
    assert np.array_equal(given(shared_pipeline, "a (red:1.0) cat", negative_prompt="(a dog)1.0"), plain)
    assert np.abs(given(shared_pipeline, "a (red:3.0) cat", negative_prompt="a dog") - plain).max() > 1e-3
    assert np.abs(given(shared_pipeline, "a red cat", negative_prompt="a dog++") - plain).max() > 1e-5


def test_the_end_of_a_long_prompt_reaches_the_picture_in_windows_only(shared_pipeline):
    texts = ["a " * 75 + end for end in ("red cat", "🦞 🌵")]
    with pytest.warns(UserWarning, match=r"^prompt: too long by \d tokens, left out: "):
        cut = [given(shared_pipeline, text) for text in texts]
    assert np.array_equal(*cut)
    windows = [given(shared_pipeline, text, long="windows") for text in texts]
    assert np.abs(windows[0] - windows[1]).max() > 1e-4
