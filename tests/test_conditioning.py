import gc
import threading
import weakref

import peft
import pytest
import torch
from torch.testing import assert_close

from altdiffusion import conditioning
from altdiffusion.conditioning import Dropped, as_texts, dropped, encode_prompts, encode_trimmed, tokenize
from tests.fakes import SENTENCES, padded_encode, tiny_tokenizer, tiny_tower

EXACT = {"rtol": 0, "atol": 1e-5}


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture
def tower():
    return tiny_tower()


@torch.no_grad()
def encode(tower, tokenizer, prompts, **arguments):
    return encode_prompts(tower, tokenizer, prompts, **arguments)


def test_the_trimmed_form_has_one_row_more_than_its_longest_prompt(tower, tokenizer):
    states, counts = encode_trimmed(tower, tokenizer, ["a cat", "", SENTENCES["en"]])
    assert counts.tolist() == [4, 2, 11]
    assert states.shape == (3, 12, 32)


def test_gradients_reach_every_weight_of_the_tower_as_in_the_padded_encode(tower, tokenizer):
    weight = torch.randn(2, 77, 32, generator=torch.Generator().manual_seed(0))
    texts = ["a red cat", SENTENCES["zh"]]
    states, _ = encode_trimmed(tower, tokenizer, texts)
    (conditioning.expand(states) * weight).sum().backward()
    ours = {name: parameter.grad.clone() for name, parameter in tower.named_parameters()}
    tower.zero_grad()
    inputs = tokenizer(texts, padding="max_length", max_length=77, return_tensors="pt")
    (tower(inputs.input_ids, attention_mask=inputs.attention_mask)[0] * weight).sum().backward()
    for name, parameter in tower.named_parameters():
        assert_close(ours[name], parameter.grad, rtol=1e-3, atol=1e-4, msg=name)
    assert all(gradient.abs().max() > 0 for gradient in ours.values())


def test_on_the_cpu_a_prompt_has_the_same_bits_alone_and_among_others(tower, tokenizer):
    texts = list(SENTENCES.values())
    together = encode(tower, tokenizer, texts)
    fresh = tiny_tower()
    for text, row in zip(texts, together, strict=True):
        assert torch.equal(encode(fresh, tokenizer, text)[0], row)


def test_a_prompt_is_encoded_once(tower, tokenizer):
    calls = []
    tower.register_forward_hook(lambda *_: calls.append(1))
    first = encode(tower, tokenizer, ["", "a cat", ""])
    assert len(calls) == 2
    assert torch.equal(encode(tower, tokenizer, ["", "a cat", ""]), first)
    assert len(calls) == 2


def test_what_is_remembered_cannot_be_changed_from_outside(tower, tokenizer):
    for length in (77, 5):
        first = encode(tower, tokenizer, "a red cat", max_length=length)
        kept = first.clone()
        first.zero_()
        assert torch.equal(encode(tower, tokenizer, "a red cat", max_length=length), kept)


@pytest.mark.parametrize("change", ["in place", "through data", "loaded", "replaced"])
def test_changed_weights_are_noticed(tower, tokenizer, change):
    encode(tower, tokenizer, "a cat")
    with torch.no_grad():
        match change:
            case "in place":
                tower.transformation.weight.mul_(2)
            case "through data":
                tower.transformation.weight.data.mul_(2)
            case "loaded":
                tower.load_state_dict(tiny_tower(seed=1).state_dict())
            case "replaced":
                tower.transformation.weight = torch.nn.Parameter(tower.transformation.weight * 2)
    assert_close(encode(tower, tokenizer, "a cat"), padded_encode(tower, tokenizer, ["a cat"]), **EXACT)


def test_nothing_is_remembered_while_training(tower, tokenizer):
    tower.train()
    first, second = (encode(tower, tokenizer, "a red cat") for _ in range(2))
    assert not torch.equal(first, second)  # dropout


@pytest.mark.filterwarnings(
    "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"
)  # peft asks for it
def test_nothing_is_remembered_of_a_tower_with_adapters(tower, tokenizer):
    before = encode(tower, tokenizer, "a cat")
    config = peft.LoraConfig(r=2, target_modules=["query"], init_lora_weights=False)
    adapted = peft.get_peft_model(tower, config).eval()
    changed = encode(adapted, tokenizer, "a cat")
    assert (changed - before).abs().max() > 1e-3
    with adapted.disable_adapter():
        assert_close(encode(adapted, tokenizer, "a cat"), before, **EXACT)


def test_a_tower_is_let_go_with_its_memory(tokenizer):
    tower = tiny_tower()
    encode(tower, tokenizer, "a cat")
    gone = weakref.ref(tower)
    del tower
    gc.collect()
    assert gone() is None


def test_the_memory_stays_small(tower, tokenizer):
    for number in range(100):
        encode(tower, tokenizer, f"cat {number}")
    assert len(conditioning._memories[tower].entries) <= 32


def test_inference_mode_leaves_nothing_behind_for_training(tower, tokenizer):
    with torch.inference_mode():
        encode(tower, tokenizer, "a cat")
    assert not encode(tower, tokenizer, "a cat").is_inference()


def test_threads_get_what_they_would_get_alone(tower, tokenizer):
    texts = [text * repeat for text in SENTENCES.values() for repeat in (1, 3)]
    expected = [encode(tiny_tower(), tokenizer, text) for text in texts]
    wrong = []

    def work(offset: int) -> None:
        for i in range(len(texts)):
            at = (i + offset) % len(texts)
            if not torch.equal(encode(tower, tokenizer, texts[at]), expected[at]):
                wrong.append(texts[at])

    threads = [threading.Thread(target=work, args=(offset,)) for offset in (0, 9, 18, 27)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_what_fits_drops_nothing(tokenizer):
    assert dropped(tokenizer, "") is None
    assert dropped(tokenizer, "a " * 75) is None


def test_what_is_too_long_is_told_in_the_words_of_the_prompt(tokenizer):
    assert dropped(tokenizer, "a " * 75 + "red cat") == Dropped(2, "red cat")
    assert dropped(tokenizer, "🦞" * 74 + "กุ้ง") == Dropped(4, "กุ้ง")
    assert dropped(tokenizer, "a red cat on the beach", 5) == Dropped(3, "on the beach")


def test_the_cut_keeps_the_end_mark(tokenizer):
    (row,) = tokenize(tokenizer, "a " * 200)
    expected = tokenizer("a " * 200, truncation=True, max_length=77).input_ids
    assert row == expected
    assert row[-1] == tokenizer.eos_token_id


def test_tokenizing_leaves_the_tokenizer_as_it_was(tokenizer):
    backend = tokenizer.backend_tokenizer
    backend.no_padding()
    backend.no_truncation()
    tokenize(tokenizer, ["a", "a red cat"], 3)
    dropped(tokenizer, "a red cat", 3)
    assert backend.padding is None
    assert backend.truncation is None


@pytest.mark.parametrize("prompts", [[], ()])
def test_no_prompt_at_all_is_refused(prompts):
    with pytest.raises(ValueError, match=r"^prompts: .* is empty; allowed: a text, or a list"):
        as_texts(prompts)


@pytest.mark.parametrize("prompts", [["a", None], [["a", "b"]], [1, 2], None, 42, b"a", {"a": 1}])
def test_what_is_no_text_is_refused(prompts):
    with pytest.raises(TypeError, match=r"^prompts: .* is (NoneType|list|int|bytes|dict); allowed: texts"):
        as_texts(prompts)


def test_half_a_surrogate_pair_is_refused(tower, tokenizer):
    with pytest.raises(ValueError, match=r"^prompts: '\\ud83e' holds half a surrogate pair"):
        encode_prompts(tower, tokenizer, ["a", "\ud83e"])


@pytest.mark.parametrize("clip_skip", [2, 24, -1])
def test_more_layers_skipped_than_there_are_is_refused(tower, tokenizer, clip_skip):
    with pytest.raises(ValueError, match=rf"^clip_skip: {clip_skip} of 2 layers; allowed: 0 to 1"):
        encode_prompts(tower, tokenizer, "a cat", clip_skip=clip_skip)


def test_a_length_without_room_is_refused(tower, tokenizer):
    with pytest.raises(ValueError, match=r"^max_length: 2 leaves no room"):
        encode_prompts(tower, tokenizer, "a cat", max_length=2)


def test_a_tower_that_pads_in_another_way_is_refused(tokenizer):
    clip = tiny_tower().roberta
    with pytest.raises(TypeError, match=r"^text_encoder: AltRobertaModel pads in its own way"):
        encode_prompts(clip, tokenizer, "a cat")
