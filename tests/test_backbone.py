"""One set of weights for encoding and drawing: what the view shares, computes and refuses."""

import pytest
import torch
from peft import LoraConfig
from torch.testing import assert_close
from transformers import AltCLIPTextConfig, AltCLIPTextModel

from altdiffusion import towers
from altdiffusion.backbone import share, shared_view
from tests.fakes import padded_encode, tiny_altclip, tiny_tokenizer

PROMPTS = ["a red cat", "一只红猫", ""]


def published(model, head=None) -> dict[str, torch.Tensor]:
    """The text tower's state as a file holds it."""
    head = {f"transformation_pre.{kind}": value for kind, value in (head or {}).items()}
    return {**model.text_model.state_dict(), **head}


def converted(model, form: str, head=None) -> AltCLIPTextModel:
    """The generation tower with weights of its own, as towers.py converts it."""
    config = AltCLIPTextConfig(**towers.stock_config(model.config.text_config.to_dict(), form))
    tower = AltCLIPTextModel(config).eval()
    tower.load_state_dict(towers.to_stock(published(model, head), form), strict=True)
    return tower


@pytest.fixture
def head() -> dict[str, torch.Tensor]:
    return {"weight": torch.randn(32, 32, generator=torch.manual_seed(5)), "bias": torch.linspace(-1, 1, 32)}


@pytest.fixture
def model():
    return tiny_altclip()


@pytest.mark.parametrize("form", towers.FORMS)
def test_the_view_computes_what_the_converted_tower_computes(model, head, form):
    head = head if form == "m18" else None
    view, tower = shared_view(model, form, head), converted(model, form, head)
    expected = padded_encode(tower, tiny_tokenizer(), PROMPTS)
    assert_close(padded_encode(view, tiny_tokenizer(), PROMPTS), expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("form", "own"),
    [
        ("own", set()),
        (
            "m9",
            {
                "roberta.encoder.layers.1.output.LayerNorm.weight",
                "roberta.encoder.layers.1.output.LayerNorm.bias",
            },
        ),
        ("m18", {"transformation.weight", "transformation.bias"}),
    ],
)
def test_all_other_tensors_lie_in_the_storage_of_the_altclip(model, head, form, own):
    view = shared_view(model, form, head if form == "m18" else None)
    storages = {parameter.untyped_storage().data_ptr() for parameter in model.text_model.parameters()}
    apart = {n for n, p in view.named_parameters() if p.untyped_storage().data_ptr() not in storages}
    assert apart == own
    assert not any(parameter.is_meta for parameter in [*view.parameters(), *view.buffers()])


def test_the_m9_view_leaves_the_pooled_feature_of_the_altclip_as_it_was(model):
    inputs = tiny_tokenizer()(PROMPTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        before = model.get_text_features(**inputs).pooler_output
        shared_view(model, "m9")
        assert_close(model.get_text_features(**inputs).pooler_output, before, rtol=0, atol=0)


def test_training_or_casting_one_is_training_or_casting_the_other(model):
    view = shared_view(model, "own")
    with torch.no_grad():
        model.text_model.transformation.bias += 1
    assert_close(view.transformation.bias, model.text_model.transformation.bias)
    view.to(torch.bfloat16)
    assert model.text_model.transformation.bias.dtype is torch.bfloat16
    assert view.transformation.bias.data_ptr() == model.text_model.transformation.bias.data_ptr()


def test_an_adapter_on_the_view_is_not_on_the_altclip(model):
    view, tokenizer = shared_view(model, "own"), tiny_tokenizer()
    inputs = tokenizer(PROMPTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        pooled = model.get_text_features(**inputs).pooler_output
        conditioning = padded_encode(view, tokenizer, PROMPTS)
        view.add_adapter(LoraConfig(target_modules=["query"], init_lora_weights=False))
        assert_close(model.get_text_features(**inputs).pooler_output, pooled, rtol=0, atol=0)
        assert not torch.allclose(padded_encode(view, tokenizer, PROMPTS), conditioning, atol=1e-3)


def test_a_frozen_altclip_stays_frozen(model):
    model.requires_grad_(False)
    view = shared_view(model, "m9")
    assert not any(parameter.requires_grad for parameter in [*view.parameters(), *model.parameters()])


def test_a_saved_view_opens_in_plain_transformers_with_the_same_conditioning(model, head, tmp_path):
    view = shared_view(model, "m18", head)
    view.save_pretrained(tmp_path)
    opened = AltCLIPTextModel.from_pretrained(tmp_path)
    assert opened.config.use_attention_mask is True
    expected = padded_encode(view, tiny_tokenizer(), PROMPTS)
    assert_close(padded_encode(opened.eval(), tiny_tokenizer(), PROMPTS), expected, rtol=0, atol=0)


def test_an_m18_view_needs_the_generation_head(model):
    with pytest.raises(ValueError, match=r"^clip: an m18 without its generation head; allowed: .*$"):
        shared_view(model, "m18")


def test_a_head_of_another_width_is_refused_by_name_and_shape(model):
    head = {"weight": torch.zeros(31, 32), "bias": torch.zeros(32)}
    with pytest.raises(
        ValueError, match=r"'transformation.weight' has shape \(31, 32\), expected \(32, 32\)"
    ):
        shared_view(model, "m18", head)


@pytest.mark.parametrize("form", towers.FORMS)
def test_an_altclip_takes_over_the_parameters_of_a_tower_that_holds_its_values(model, head, form):
    head = head if form == "m18" else None
    tower = converted(model, form, head)
    before = model.text_model.state_dict()
    assert share(model, tower, form)
    storages = {parameter.data_ptr() for parameter in tower.parameters()}
    shared = {n for n, p in model.text_model.named_parameters() if p.data_ptr() in storages}
    assert shared == set(towers.shared_names(tower.state_dict(), form).values())
    for name, value in model.text_model.state_dict().items():
        assert torch.equal(value, before[name])


def test_an_altclip_keeps_its_own_parameters_beside_a_tower_that_was_trained_on(model):
    tower = converted(model, "own")
    with torch.no_grad():
        tower.transformation.bias += 1
    assert not share(model, tower, "own")
    assert not {p.data_ptr() for p in model.text_model.parameters()} & {
        p.data_ptr() for p in tower.parameters()
    }
