"""Zero-shot classification: the weights by hand, scores, refusals, saving."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from torch.testing import assert_close

from altdiffusion.classification import ZeroShotClassifier, class_weights, fill, templates_of
from altdiffusion.languages import LANGUAGES
from altdiffusion.model import AltCLIP
from tests.fakes import tiny_altclip_folder

LABELS = ["龙虾", "猫", "海滩"]


@pytest.fixture(scope="module")
def clip(shared_folder) -> AltCLIP:
    return AltCLIP.from_pretrained(shared_folder, device="cpu")


@pytest.fixture(scope="module")
def classifier(clip) -> ZeroShotClassifier:
    return ZeroShotClassifier(clip, LABELS, language="zh")


def picture(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 50, 3), dtype=np.uint8))


def test_a_class_is_the_mean_of_its_filled_templates_brought_back_to_unit_length(clip):
    templates = ["{}", "a photo of {c}"]
    expected = []
    for label in LABELS:
        features = clip.encode_text([label, f"a photo of {label}"])
        mean = features.sum(dim=0) / 2
        expected.append(mean / mean.norm())
    assert_close(class_weights(clip, LABELS, templates), torch.stack(expected), rtol=0, atol=1e-5)


def test_more_texts_than_go_together_give_the_same_weights(clip, monkeypatch):
    whole = class_weights(clip, LABELS, ["{}", "a {}"])
    monkeypatch.setattr("altdiffusion.classification._TEXTS", 2)
    assert_close(class_weights(clip, LABELS, ["{}", "a {}"]), whole, rtol=0, atol=1e-5)


def test_a_label_that_looks_like_a_slot_is_put_in_once():
    assert fill("a {} and {c}", "{}") == "a {} and {}"


@pytest.mark.parametrize("tag", LANGUAGES)
def test_every_language_has_templates_with_a_place_for_the_label(tag):
    own = templates_of(tag)
    assert len(set(own.templates)) == len(own.templates) >= 8
    assert own.anything and own.source
    assert all(fill(template, "X").count("X") == 1 for template in own.templates)


def test_scores_are_the_softmax_of_scaled_cosines(clip, classifier):
    images = [picture(0), picture(1)]
    cosines = clip.encode_image(images) @ classifier.weights.T
    expected = (clip.model.logit_scale.exp() * cosines).softmax(dim=1)
    assert_close(classifier.scores(images), expected)
    assert_close(classifier.scores(images).sum(dim=1), torch.ones(2))


def test_the_scores_of_many_labels_do_not_depend_on_the_other_labels(clip, classifier):
    alone = ZeroShotClassifier(clip, LABELS[1], language="zh")
    image = picture()
    together = classifier.scores(image, multi_label=True)
    assert_close(together[:, 1:2], alone.scores(image, multi_label=True), rtol=0, atol=1e-4)
    assert ((together > 0) & (together < 1)).all()


def test_the_best_labels_come_first(classifier):
    (found,) = classifier(picture())
    assert sorted(found.labels) == sorted(LABELS)
    assert list(found.scores) == sorted(found.scores, reverse=True)
    assert (found.label, found.score) == (found.labels[0], found.scores[0])
    assert classifier(picture(), k=2)[0].labels == found.labels[:2]
    assert len(classifier([picture(), picture(1)], k=9)) == 2


def test_files_pictures_and_tensors_give_the_same_scores(clip, classifier, tmp_path):
    picture().save(tmp_path / "a.png")
    expected = classifier.scores(picture())
    for given in (tmp_path / "a.png", str(tmp_path / "a.png"), [picture()], clip.preprocess(picture())):
        assert torch.equal(classifier.scores(given), expected)


def test_own_templates_replace_the_languages(clip):
    own = ZeroShotClassifier(clip, LABELS, language="zh", templates="{}")
    assert_close(own.weights, F.normalize(clip.encode_text(LABELS), dim=-1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("labels", [[], [""], ["a", "a"], ["a", ""], ["x" * 2001], [3], ""])
def test_labels_that_say_nothing_are_refused(clip, labels):
    with pytest.raises(ValueError, match=r"^labels: [^\n]*allowed"):
        ZeroShotClassifier(clip, labels)


@pytest.mark.parametrize("arguments", [{"templates": ["a cat"]}, {"templates": []}, {"language": "xx"}])
def test_templates_without_a_place_and_unknown_languages_are_refused(clip, arguments):
    with pytest.raises(ValueError, match=r"^(templates: .*allowed|language: .*Known)"):
        ZeroShotClassifier(clip, LABELS, **arguments)


@pytest.mark.parametrize("k", [0, -1, True])
def test_numbers_of_labels_that_are_none_are_refused(classifier, k):
    with pytest.raises(ValueError, match=r"^k: .*; allowed whole numbers from 1"):
        classifier(picture(), k=k)


def test_a_saved_classifier_gives_the_same_scores(clip, classifier, tmp_path):
    classifier.save(tmp_path / "labels.safetensors")
    again = ZeroShotClassifier.load(tmp_path / "labels.safetensors", clip)
    assert (again.labels, again.language, again.templates) == (tuple(LABELS), "zh", classifier.templates)
    for multi_label in (False, True):
        scores = again.scores(picture(), multi_label=multi_label)
        assert torch.equal(scores, classifier.scores(picture(), multi_label=multi_label))
    assert [file.name for file in tmp_path.iterdir()] == ["labels.safetensors"]


def test_the_weights_of_another_model_are_refused_by_name(classifier, tmp_path):
    classifier.save(tmp_path / "labels.safetensors")
    other = AltCLIP.from_pretrained(tiny_altclip_folder(tmp_path / "other", seed=1), device="cpu")
    with pytest.raises(ValueError, match=r"^weights: .* was made with the model") as refusal:
        ZeroShotClassifier.load(tmp_path / "labels.safetensors", other)
    assert classifier.clip.fingerprint[:10] in str(refusal.value)
    assert other.fingerprint[:10] in str(refusal.value)


@pytest.mark.parametrize("fault", ["missing", "text", "truncated", "another file"])
def test_files_that_are_no_classifier_are_refused(clip, classifier, shared_folder, tmp_path, fault):
    file = tmp_path / "labels.safetensors"
    classifier.save(file)
    if fault == "missing":
        file.unlink()
    elif fault == "text":
        file.write_text(json.dumps(LABELS))
    elif fault == "truncated":
        file.write_bytes(file.read_bytes()[:-10])
    else:
        file = shared_folder / "altclip" / "model.safetensors"
    with pytest.raises(ValueError, match=r"^weights: [^\n]*$"):
        ZeroShotClassifier.load(file, clip)


@pytest.mark.weights
@pytest.mark.parametrize(
    ("language", "labels"),
    [
        ("en", ["lobster", "cat face", "red apple", "cactus"]),
        ("zh", ["龙虾", "猫脸", "红苹果", "仙人掌"]),
        ("de", ["Hummer", "Katzengesicht", "roter Apfel", "Kaktus"]),
    ],
)
def test_the_bundled_model_knows_emoji_in_any_language(language, labels):
    emoji = pytest.importorskip("training.emoji")
    clip = AltCLIP.from_pretrained(device="cpu")
    pictures = [emoji.draw(emoji.centred(character), 64) for character in "🦞🐱🍎🌵"]
    found = ZeroShotClassifier(clip, labels, language=language)(pictures)
    assert [one.label for one in found] == labels
