"""B2: a picture has one embedding, however a camera turned it and whichever way it comes in."""

import pytest
import torch
from PIL import ImageOps

from altdiffusion.model import AltCLIP
from tests.test_same_picture import SAVED, WAYS, picture

#: Training's whole numbers pass through [-1, 1].
NEAR = {"by_training": 2e-5}


def test_eight_orientations_and_every_mode_by_every_way(shared_folder, tally, tmp_path):
    counted = tally("B2 same picture, same embedding")
    clip = AltCLIP.from_pretrained(shared_folder, device="cpu")
    expected = clip.encode_image(picture().convert("RGB"))[0]
    other = clip.encode_image(ImageOps.mirror(picture()))[0]
    assert (other - expected).abs().max() > 1e-2  # a turn would be seen
    for what, saved in SAVED.items():
        shown, options = saved()
        shown.save(tmp_path / "a.png", **options)
        for way in WAYS:
            try:
                apart = float((way(clip, tmp_path / "a.png") - expected).abs().max())
            except pytest.skip.Exception:
                continue
            well = apart <= NEAR.get(way.__name__, 1e-6) and torch.isfinite(expected).all()
            counted.add("right" if well else "wrong", f"{what} {way.__name__}: {apart:.1e} apart")
    counted.check(8 * (len(WAYS) - 1))
