"""Published text towers to stock ones and back: every tensor kept, the configuration, the form.

`roberta_series` writes a published tower of either form with the names that its files have.
"""

import pytest
import torch
from torch.testing import assert_close
from transformers import AltCLIPTextConfig, AltCLIPTextModel

from altdiffusion import towers
from tests.fakes import tiny_text_config, tiny_tower

LAYERS = 3
#: Fields that the published text configurations hold beside the stock ones.
LEGACY = {
    "pooler_fn": "cls",
    "learn_encoder": False,
    "position_embedding_type": "absolute",
    "bad_words_ids": None,
}


def published_tower(form: str, *, with_pre_ln: bool = True) -> dict[str, torch.Tensor]:
    """A tower as its file names it, with everything that has been seen beside the tower itself."""
    tower = tiny_tower(3, vocab_size=50, num_hidden_layers=LAYERS, project_dim=24)
    state = {name.replace(".layers.", ".layer."): value for name, value in tower.state_dict().items()}
    state["roberta.embeddings.position_ids"] = torch.arange(82)[None]
    state["roberta.pooler.dense.weight"] = torch.randn(32, 32)
    state["roberta.pooler.dense.bias"] = torch.randn(32)
    state["logit_scale"] = torch.tensor(2.6592)
    if form == "m18":
        state["transformation_pre.weight"] = torch.randn(24, 32)
        state["transformation_pre.bias"] = torch.randn(24)
    if not with_pre_ln:
        del state["pre_LN.weight"], state["pre_LN.bias"]
    return state


def published_text_config() -> dict:
    config = tiny_text_config(50, num_hidden_layers=LAYERS, project_dim=24).to_dict() | LEGACY
    del config["use_attention_mask"]
    return config


def assert_identical(found: dict, expected: dict):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", towers.FORMS)
def test_the_way_to_stock_and_back_restores_every_published_tensor(form, dtype):
    source = published_tower(form)
    source = {name: value.to(dtype) if value.is_floating_point() else value for name, value in source.items()}
    stock, left = towers.to_stock(source, form), towers.left_over(source, form)
    assert_identical(towers.to_published(stock, left, form), source)


def test_an_m9_tower_without_pre_ln_comes_back_without_one():
    source = published_tower("m9", with_pre_ln=False)
    stock, left = towers.to_stock(source, "m9"), towers.left_over(source, "m9")
    assert_identical(towers.to_published(stock, left, "m9"), source)


@pytest.mark.parametrize("form", towers.FORMS)
def test_the_stock_class_takes_the_tensors_and_the_configuration_without_a_gap(form):
    stock = towers.to_stock(published_tower(form), form)
    config = AltCLIPTextConfig(**towers.stock_config(published_text_config(), form))
    model = AltCLIPTextModel(config)
    model.load_state_dict(stock, strict=True)
    assert len(model.roberta.encoder.layers) == (LAYERS - 1 if form == "m18" else LAYERS)


@pytest.mark.parametrize("form", towers.FORMS)
def test_names_with_layer_and_with_layers_give_the_same_tower(form):
    source = published_tower(form)
    renamed = {towers.in_memory(name): value for name, value in source.items()}
    assert any("encoder.layers.0." in name for name in renamed)
    assert_identical(towers.to_stock(renamed, form), towers.to_stock(source, form))


def test_what_no_published_tower_has_stays_to_be_refused():
    stock = towers.to_stock({**published_tower("m9"), "surprise.weight": torch.ones(1)}, "m9")
    assert "surprise.weight" in stock


def test_an_m9_tower_trained_after_conversion_is_not_written_as_published():
    source = published_tower("m9")
    stock, left = towers.to_stock(source, "m9"), towers.left_over(source, "m9")
    stock[f"roberta.encoder.layers.{LAYERS - 1}.output.LayerNorm.bias"] += 0.5
    with pytest.raises(ValueError, match="was trained after conversion"):
        towers.to_published(stock, left, "m9")


def test_an_unknown_form_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"^form: 'm2' is none; allowed: m9, m18, own$"):
        towers.to_stock({}, "m2")


def test_the_head_of_its_own_makes_an_m18():
    assert towers.form_of(published_tower("m18")) == "m18"
    assert towers.form_of(published_tower("m18"), published_text_config()) == "m18"


def test_without_pre_ln_a_tower_is_an_m9_whatever_its_configuration():
    for config in (None, published_text_config(), tiny_text_config(50).to_dict()):
        assert towers.form_of(published_tower("m9", with_pre_ln=False), config) == "m9"


def test_with_pre_ln_the_configuration_tells_a_published_m9_from_a_stock_model():
    source = published_tower("m9")
    assert towers.form_of(source) == "m9"
    assert towers.form_of(source, published_text_config()) == "m9"
    assert towers.form_of(source, tiny_text_config(50).to_dict()) == "own"
    named = {**tiny_text_config(50).to_dict(), towers.FORM_FIELD: "m9"}
    assert towers.form_of(source, named) == "m9"


def test_a_copy_of_m18_that_lost_its_generation_head_keeps_the_stock_formula():
    shapes = {"transformation.weight": (1024, 1024), "pre_LN.weight": (1024,)}
    assert towers.form_of(shapes, published_text_config()) == "own"
    assert towers.form_of({**shapes, "transformation.weight": (768, 1024)}, published_text_config()) == "m9"


def test_the_stock_configuration_holds_the_shape_the_mask_and_no_legacy_field():
    config = towers.stock_config(published_text_config(), "m18")
    assert config["num_hidden_layers"] == LAYERS - 1
    assert config["use_attention_mask"] is True
    assert not LEGACY.keys() & config.keys()
    expected = tiny_text_config(50, num_hidden_layers=LAYERS, project_dim=24)
    for field in (
        "hidden_size",
        "num_attention_heads",
        "layer_norm_eps",
        "hidden_act",
        "max_position_embeddings",
    ):
        assert config[field] == getattr(expected, field)


def test_gaps_in_a_configuration_are_defaults_of_the_class_that_wrote_it():
    assert towers.stock_config({"model_type": "xlm-roberta"}, "m9")["layer_norm_eps"] == 1e-12
    assert towers.stock_config({"model_type": "altclip_text_model"}, "m9")["layer_norm_eps"] == 1e-5


@pytest.mark.parametrize("form", ["m9", "m18"])
def test_the_published_configuration_turns_into_the_same_stock_one(form):
    stock = towers.stock_config(published_text_config(), form)
    published = towers.published_config(stock, form)
    assert published["num_hidden_layers"] == LAYERS
    assert published.get("has_pre_transformation", False) is (form == "m18")
    assert towers.stock_config(published, form) == stock


@pytest.mark.parametrize("form", towers.FORMS)
def test_shared_names_lead_to_the_same_values_in_the_altclip(form):
    source = published_tower(form)
    stock = towers.to_stock(source, form)
    original = {towers.in_memory(name): value for name, value in source.items()}
    pairs = towers.shared_names(stock, form)
    for name, same in pairs.items():
        assert_close(stock[name], original[same], rtol=0, atol=0)
    expected = {"m9": {"output.LayerNorm"}, "m18": {"transformation"}, "own": set()}[form]
    left = {name.rpartition(".")[0] for name in stock.keys() - pairs.keys()}
    assert {".".join(name.split(".")[-2:]) for name in left} == expected
