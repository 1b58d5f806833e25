"""Previews: a linear map of latents, close to what the VAE makes of them."""

import time

import numpy as np
import pytest
import torch

from altdiffusion.requests import GenerateRequest
from altdiffusion.serving import Drawing, Service
from altdiffusion.serving.previews import Previewer, is_stable_diffusion
from tests.fakes import tiny_vae


@pytest.mark.parametrize("factor", [4])
def test_previews_of_an_unknown_vae_follow_what_it_decodes(factor: int):
    torch.manual_seed(0)
    vae = tiny_vae()
    vae.register_to_config(scaling_factor=0.7)
    assert not is_stable_diffusion(vae)
    latents = torch.randn(2, 4, 8, 8)
    pictures = Previewer(vae)(latents)
    assert [picture.size for picture in pictures] == [(8 * factor, 8 * factor)] * 2


@pytest.mark.weights
def test_the_last_preview_of_the_bundled_model_looks_like_its_picture():
    began = time.monotonic()
    with Service.load(device="cpu") as service:
        news = list(service.generate(GenerateRequest.build(prompt="a lobster", seed=1, steps=12)))
        preview = next(one for one in reversed(news) if isinstance(one, Drawing) and one.pictures).pictures[0]
        picture = news[-1].pictures[0].image
    assert preview.size == picture.size
    pair = np.stack([np.asarray(preview).ravel(), np.asarray(picture).ravel()]).astype(float)
    assert np.corrcoef(pair)[0, 1] > 0.9
    assert time.monotonic() - began < 60
