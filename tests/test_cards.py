"""What a model card says of a converted model."""

import pytest
import yaml

from altdiffusion import cards
from altdiffusion.languages import LANGUAGES
from tests import published


@pytest.mark.parametrize(
    ("form", "name", "dropout", "model"),
    [
        ("m18", "anything", None, "m18"),
        ("m9", "BAAI/AltDiffusion-m9", None, "m9"),
        ("m9", "AltCLIP-XLMR-L-m9.ckpt", None, "m9"),
        ("m9", "my-m2", 0.0, "m2"),
        ("m9", "model", 0.0, "m9"),
        ("m9", "model", 0.1, "m2"),
        ("m9", "model-m95", None, None),
        ("m9", "model", None, None),
        ("own", "emoji-m9", 0.1, None),
    ],
)
def test_m2_and_m9_are_told_apart_by_name_or_dropout_or_not_at_all(form, name, dropout, model):
    config = None if dropout is None else {"hidden_dropout_prob": dropout}
    assert cards.published_model(form, name, config) == model


def test_the_front_matter_is_yaml_that_the_hub_reads():
    for draws in (True, False):
        text = cards.card("m18", "BAAI/somewhere", draws=draws)
        head = yaml.safe_load(text.split("---")[1])
        assert head["license"] == "creativeml-openrail-m"
        assert head["base_model"] == [f"BAAI/Alt{'Diffusion' if draws else 'CLIP'}-m18"]
        assert head["language"] == list(LANGUAGES)
        assert head["library_name"] == ("diffusers" if draws else "transformers")
        assert "Converted from:** BAAI/somewhere." in text


def test_where_m2_and_m9_look_the_same_both_are_named_and_only_shared_languages_promised():
    text = cards.card("m9", "model.ckpt", draws=True)
    head = yaml.safe_load(text.split("---")[1])
    assert head["base_model"] == ["BAAI/AltDiffusion", "BAAI/AltDiffusion-m9"]
    assert head["language"] == ["en", "zh"]
    assert "English, Chinese; more if it is the model of nine languages." in text


@pytest.mark.parametrize(
    ("text", "licence"),
    [
        ("---\nlicense: apache-2.0\n---\n# A\n", "apache-2.0"),
        ("# A\nlicense: mit\n", None),
        ("---\nlibrary_name: diffusers\n---\nlicense: mit\n", None),
    ],
)
def test_a_folder_s_licence_is_what_its_front_matter_says(tmp_path, text, licence):
    (tmp_path / "README.md").write_text(text)
    assert cards.licence(tmp_path) == licence


def test_a_folder_without_a_card_says_no_licence(tmp_path):
    assert cards.licence(tmp_path) is None


def test_a_card_names_the_hub_s_name_or_the_end_of_a_path(tmp_path):
    assert cards.name_of("BAAI/AltDiffusion-m9") == "BAAI/AltDiffusion-m9"
    (tmp_path / "model").mkdir()
    assert cards.name_of(tmp_path / "model") == "model"


def test_a_published_model_that_is_saved_again_carries_its_terms(tmp_path):
    from altdiffusion import AltCLIP, AltDiffusionPipeline

    source = published.write("B", tmp_path / "AltDiffusion-m9", "m9")
    AltDiffusionPipeline.from_pretrained(source, device="cpu").to_image_to_image().save_pretrained(
        tmp_path / "mine"
    )
    text = (tmp_path / "mine" / "README.md").read_text()
    assert cards.licence(tmp_path / "mine") == cards.OPENRAIL
    assert "- BAAI/AltDiffusion-m9\n" in text and cards.SAVED in text and str(tmp_path) not in text
    source = published.write("A", tmp_path / "clip", "m9")
    AltCLIP.from_pretrained(source, device="cpu").save_pretrained(tmp_path / "mine-too")
    assert cards.licence(tmp_path / "mine-too") == cards.OPENRAIL
    assert "- BAAI/AltCLIP-m9\n" in (tmp_path / "mine-too" / "README.md").read_text()
