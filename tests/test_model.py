import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import AltCLIPModel

from altdiffusion.model import AltCLIP
from tests.fakes import SENTENCES
from tests.published import write

TEXTS = list(SENTENCES.values())


@pytest.fixture(scope="module")
def clip(shared_folder) -> AltCLIP:
    return AltCLIP.from_pretrained(shared_folder, device="cpu")


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    random = np.random.default_rng(seed)
    return Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_the_altclip_of_a_pipeline_folder_and_its_own_folder_are_one(clip, shared_folder):
    alone = AltCLIP.from_pretrained(str(shared_folder / "altclip"), device="cpu")
    assert alone.fingerprint == clip.fingerprint
    assert_close(alone.encode_text("a cat"), clip.encode_text("a cat"))


def test_a_text_and_a_list_of_one_are_one_row(clip):
    assert clip.encode_text("a cat").shape == clip.encode_text(["a cat"]).shape == (1, clip.dim)
    assert (
        clip.encode_image(picture(40, 40)).shape
        == clip.encode_image([picture(40, 40)]).shape
        == (1, clip.dim)
    )


def test_features_have_length_one_unless_asked_otherwise(clip):
    for features in (clip.encode_text(TEXTS), clip.encode_image([picture(40, 40), picture(50, 30)])):
        assert_close(features.norm(dim=-1), torch.ones(len(features)))
    raw = clip.encode_text(TEXTS, normalize=False)
    assert_close(raw / raw.norm(dim=-1, keepdim=True), clip.encode_text(TEXTS))
    assert (raw.norm(dim=-1) - 1).abs().min() > 1e-3


def test_many_texts_come_back_in_their_order(clip):
    many = [f"{text} {number}" for number in range(8) for text in TEXTS]
    together = clip.encode_text(many)
    assert len(together) == 144
    for at in (0, 17, 63, 64, 99, 143):
        assert_close(together[at], clip.encode_text(many[at])[0], rtol=0, atol=1e-5)


def test_many_pictures_come_back_in_their_order(clip):
    many = [picture(32, 32, seed) for seed in range(70)]
    together = clip.encode_image(many)
    for at in (0, 63, 64, 69):
        assert_close(together[at], clip.encode_image(many[at])[0], rtol=0, atol=1e-5)


def test_a_text_longer_than_the_tower_is_cut_not_crashed(clip):
    assert_close(clip.encode_text("a " * 500), clip.encode_text("a " * 75), rtol=0, atol=1e-5)


def test_text_features_do_not_depend_on_the_neighbours(clip):
    assert_close(clip.encode_text(["a", "a " * 70])[0], clip.encode_text("a")[0], rtol=0, atol=1e-5)


def test_logits_are_texts_by_pictures(clip):
    assert clip.logits(TEXTS, [picture(40, 40), picture(50, 30)]).shape == (18, 2)


def test_save_and_load_keep_every_value_and_the_fingerprint(clip, tmp_path):
    clip.save_pretrained(tmp_path / "saved")
    again = AltCLIP.from_pretrained(tmp_path / "saved", device="cpu")
    assert torch.equal(again.encode_text(TEXTS), clip.encode_text(TEXTS))
    assert torch.equal(again.encode_image(picture(40, 40)), clip.encode_image(picture(40, 40)))
    assert again.fingerprint == clip.fingerprint


def test_the_fingerprint_does_not_depend_on_what_was_encoded_before(shared_folder):
    fresh = AltCLIP.from_pretrained(shared_folder, device="cpu")
    used = AltCLIP.from_pretrained(shared_folder, device="cpu")
    used.encode_text(["a", "a red lobster"])
    assert used.fingerprint == fresh.fingerprint


def test_the_fingerprint_changes_with_weights_and_preprocessing(shared_folder):
    clip = AltCLIP.from_pretrained(shared_folder, device="cpu")
    before = clip.fingerprint
    with torch.no_grad():
        clip.model.text_projection.weight[0, 0] += 0.01
    changed = clip.fingerprint
    assert changed != before
    clip = AltCLIP.from_pretrained(shared_folder, device="cpu")
    clip.image_processor.image_mean = [0.5, 0.5, 0.5]
    assert clip.fingerprint != before


@pytest.mark.parametrize("size", [(30000, 1), (1, 30000), (5000, 3)])
def test_long_thin_pictures_cost_neither_time_nor_memory(clip, size):
    process = psutil.Process()
    before, start = process.memory_info().rss, time.perf_counter()
    assert clip.encode_image(Image.new("RGB", size, "red")).isfinite().all()
    assert time.perf_counter() - start < 1
    assert process.memory_info().rss - before < 100 * 2**20


def test_the_way_for_thin_pictures_sees_what_the_ordinary_way_sees(clip):
    thin = Image.effect_mandelbrot((900, 100), (-2, -0.2, 1, 0.2), 50).convert("RGB")
    ordinary = clip.image_processor([thin], return_tensors="pt").pixel_values
    assert (clip.preprocess(thin) - ordinary).abs().max() < 0.05  # some pixels off by a few of 255


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_photo_is_encoded_upright(clip, tmp_path, orientation):
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    picture(60, 40).save(tmp_path / "photo.png", exif=exif)
    photo = Image.open(tmp_path / "photo.png")
    assert torch.equal(clip.encode_image(photo), clip.encode_image(ImageOps.exif_transpose(photo)))


def test_transparent_is_white(clip):
    glass = Image.new("RGBA", (40, 40), (0, 0, 0, 0))
    assert torch.equal(clip.encode_image(glass), clip.encode_image(Image.new("RGB", (40, 40), "white")))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "CMYK", "I;16"])
def test_pictures_of_every_mode_are_encoded(clip, mode):
    assert clip.encode_image(Image.new(mode, (40, 40))).isfinite().all()


@pytest.mark.parametrize("images", ["http://127.0.0.1/latest", "cat.png", b"cat.png", Path("cat.png")])
def test_addresses_and_paths_are_no_pictures(clip, images):
    for given in (images, [images]):
        with pytest.raises((ValueError, TypeError), match=r"^images: .* is .*; allowed:? PIL pictures"):
            clip.encode_image(given)


def test_pictures_that_are_none_are_refused(clip):
    with pytest.raises(ValueError, match=r"^images: an empty list"):
        clip.encode_image([])
    with pytest.raises(TypeError, match=r"^images: item 1, None, is NoneType"):
        clip.encode_image([picture(40, 40), None])
    with pytest.raises(ValueError, match=r"^images: item 0 has no pixels"):
        clip.encode_image(Image.new("RGB", (0, 5)))


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 3, 31, 32), (1, 1, 32, 32), (0, 3, 32, 32)])
def test_tensors_of_another_shape_are_refused(clip, shape):
    with pytest.raises(ValueError, match=r"^images: a tensor of shape .*; allowed: \(1 or more, 3, 32, 32\)"):
        clip.encode_image(torch.zeros(shape))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_tensors_that_would_give_nan_are_refused(clip, value):
    with pytest.raises(ValueError, match=r"^images: a tensor of whole, infinite or NaN values"):
        clip.encode_image(torch.full((1, 3, 32, 32), value))
    with pytest.raises(ValueError, match=r"^images: a tensor of whole"):
        clip.encode_image(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))


def test_texts_that_are_none_are_refused(clip):
    with pytest.raises(ValueError, match=r"^text: .* is empty"):
        clip.encode_text([])
    with pytest.raises(ValueError, match=r"^text: .* holds half a surrogate pair"):
        clip.encode_text("\udc00")


def test_a_model_without_altclip_says_so(model_folder):
    import shutil

    shutil.rmtree(model_folder / "altclip")
    with pytest.raises(ValueError, match=r"^model: .* has no altclip folder"):
        AltCLIP.from_pretrained(model_folder, device="cpu")


def test_bfloat16_is_close_to_float32(clip, shared_folder):
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a CPU without bfloat16 units says so
        half = AltCLIP.from_pretrained(shared_folder, device="cpu", dtype="bfloat16")
    assert half.dtype == torch.bfloat16
    assert (half.encode_text(TEXTS).float() * clip.encode_text(TEXTS)).sum(dim=-1).min() > 0.99


def published(folder, form: str) -> AltCLIP:
    return AltCLIP.from_pretrained(write("A", folder, form), device="cpu")


@pytest.mark.parametrize("form", ["m9", "m18"])
def test_the_form_and_the_generation_head_outlive_saving(tmp_path, form):
    clip = published(tmp_path / "source", form)
    assert clip.form == form
    assert (clip.generation_head is None) is (form == "m9")
    clip.save_pretrained(tmp_path / "saved")
    again = AltCLIP.from_pretrained(tmp_path / "saved", device="cpu")
    assert again.form == form
    assert_close(again.generation_head, clip.generation_head, rtol=0, atol=0)
    names = load_file(tmp_path / "saved/model.safetensors").keys()
    assert ("text_model.transformation_pre.weight" in names) is (form == "m18")


def test_an_altclip_that_is_saved_over_another_is_the_one_that_loads(clip, tmp_path):
    other = published(tmp_path / "source", "m9")
    other.model.save_pretrained(tmp_path / "saved", max_shard_size="100KB")
    assert len(list((tmp_path / "saved").glob("*.safetensors"))) > 1
    clip.save_pretrained(tmp_path / "saved")
    assert AltCLIP.from_pretrained(tmp_path / "saved", device="cpu").fingerprint == clip.fingerprint


def test_our_own_model_has_the_stock_form_and_its_config_says_nothing_new(clip, tmp_path):
    assert clip.form == "own"
    clip.save_pretrained(tmp_path)
    assert "conditioning_form" not in (tmp_path / "config.json").read_text(encoding="utf-8")


def test_the_vision_activation_can_be_replaced_and_is_then_the_models_own(tmp_path):
    folder = write("A", tmp_path / "source", "m18")
    as_published = AltCLIP.from_pretrained(folder, device="cpu")
    replaced = AltCLIP.from_pretrained(folder, device="cpu", vision_act="gelu")
    assert not torch.allclose(
        as_published.encode_image(picture(32, 32)), replaced.encode_image(picture(32, 32)), atol=1e-4
    )
    assert_close(as_published.encode_text("cat"), replaced.encode_text("cat"), rtol=0, atol=0)
    assert as_published.fingerprint != replaced.fingerprint
    replaced.save_pretrained(tmp_path / "saved")
    again = AltCLIP.from_pretrained(tmp_path / "saved", device="cpu")
    assert_close(again.encode_image(picture(32, 32)), replaced.encode_image(picture(32, 32)))
    assert again.fingerprint == replaced.fingerprint
    config = AltCLIPModel.from_pretrained(str(tmp_path / "saved")).config
    assert config.vision_config.hidden_act == "gelu"


def test_an_unknown_activation_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"^vision_act: 'relu' is none; allowed: quick_gelu, gelu$"):
        AltCLIP.from_pretrained(vision_act="relu")


def test_whole_numbers_normalised_later_are_the_same_pixel_values(clip):
    pictures = [picture(50, 40), picture(33, 64, seed=1)]
    whole = clip.preprocess(pictures, normalize=False)
    assert whole.dtype == torch.uint8
    assert_close(clip.normalize_pixels(whole), clip.preprocess(pictures), rtol=0, atol=1e-6)
