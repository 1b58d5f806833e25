"""Crops and flips: what is seen of a picture, on the fly and in the store."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from altdiffusion.images import open_image
from tests.fakes import tiny_vae
from tests.training import data_files
from training import data
from training.buckets import View, Views, fitted
from training.captioned import CaptionedPictures
from training.config import RunConfig
from training.pictures import PicturesConfig, as_pixels, encoded

RUN = RunConfig(batch_size=4)


@pytest.fixture(scope="module")
def vae():
    return tiny_vae()


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """Pictures of twice their height."""
    return data_files.image_folder(tmp_path_factory.mktemp("data") / "wide", 4, (64, 32))


def samples(source, vae, cache, run=RUN, **fields):
    reading = PicturesConfig(**{"resolution": 32, **fields})
    return data.image_captions(data.open_pictures(str(source), reading), run, vae, None, cache)


def latents_of(vae, path, view: View) -> torch.Tensor:
    return encoded(vae, as_pixels(open_image(path), (32, 32), view)[None])[0].half().float()


def test_a_view_is_cut_where_it_says_and_mirrored():
    picture = Image.new("RGB", (40, 20), "red")
    picture.paste("blue", (20, 0, 40, 20))
    assert fitted(picture, (20, 20), View(left=0.0)).getcolors() == [(400, (255, 0, 0))]
    assert fitted(picture, (20, 20), View(left=1.0)).getcolors() == [(400, (0, 0, 255))]
    whole, mirrored = (np.asarray(fitted(picture, (20, 40), View(mirrored=m))) for m in (False, True))
    assert (mirrored == whole[:, ::-1]).all() and (mirrored != whole).any()


def test_views_are_as_many_as_differ():
    assert [Views().count, Views(flip=True).count, Views(random=True, kept=5).count] == [1, 2, 5]
    assert [Views(flip=True).stored(3, n).mirrored for n in range(2)] == [False, True]
    crops = Views(random=True, flip=True, kept=50)
    views = [crops.stored(1, number) for number in range(50)]
    assert len(set(views)) == 50 and 10 < sum(view.mirrored for view in views) < 40
    assert views[7] == crops.stored(1, 7) != crops.stored(2, 7)
    assert PicturesConfig(crops=9).views == Views()


def test_every_kept_view_is_drawn_and_is_that_of_its_picture(tmp_path, vae, wide):
    reading = PicturesConfig(resolution=32, crop="random", flip=True, crops=3)
    dataset = samples(wide, vae, tmp_path, crop="random", flip=True, crops=3)
    expected = {
        (record, n): latents_of(vae, wide / f"p{record:03d}.png", reading.views.stored(record, n))
        for record in range(4)
        for n in range(3)
    }
    seen = set()
    for index in range(100):
        latents, text = dataset[index]
        record = int(text.split()[-1])
        distances = [(latents - expected[record, n]).abs().max().item() for n in range(3)]
        assert min(distances) < 4e-3
        seen.add((record, int(np.argmin(distances))))
    assert seen == expected.keys()


def test_a_view_is_a_function_of_seed_and_index_and_its_store_serves_every_seed(
    tmp_path, vae, wide, monkeypatch
):
    fields = {"crop": "random", "crops": 3}
    first, again = (samples(wide, vae, tmp_path, **fields) for _ in range(2))
    for index in (40, 2, 17):
        assert first[index][0].equal(again[index][0])
    with monkeypatch.context() as patch:
        patch.setattr(vae, "encode", None)
        other = samples(wide, vae, tmp_path, RunConfig(batch_size=4, seed=1), **fields)
        assert any(not other[n][0].equal(first[n][0]) for n in range(8))
        with pytest.raises(TypeError):  # another transform is another store
            samples(wide, vae, tmp_path, crop="random", crops=4)


def test_without_chance_captions_and_latents_are_as_before(tmp_path, vae, wide):
    plain, mirrored = samples(wide, vae, tmp_path), samples(wide, vae, tmp_path, flip=True)
    for index in range(20):
        latents, text = plain[index]
        assert text == mirrored[index][1]
        record = int(text.split()[-1])
        assert_close(latents, latents_of(vae, wide / f"p{record:03d}.png", View()), rtol=2e-3, atol=2e-3)


def test_a_stream_and_the_contrastive_stage_cut_anew_each_time(tmp_path, vae, wide):
    tars = data_files.tar_shards(tmp_path / "tars", 1, 2)
    fields = {"resolution": 16, "flip": True}
    opened = data.open_pictures(str(tars), PicturesConfig(streaming=True, **fields))
    stream = data.image_captions(opened, RUN, vae, None, tmp_path)
    seen = {stream[index][0].numpy().tobytes() for index in range(24)}
    assert len(seen) == 4  # of two pictures, and their mirror images
    reading = PicturesConfig(crop="random", **fields)
    pictures = CaptionedPictures(data.open_pictures(str(wide), reading), RUN, 32)
    shown = [pictures[index][0] for index in range(24)]
    assert len({pixels.numpy().tobytes() for pixels in shown}) > 15
    assert pictures[5][0].equal(shown[5])


def test_no_crops_are_refused():
    with pytest.raises(ValueError, match=r"^crops: 0; allowed: 1 and up$"):
        PicturesConfig(crops=0)
