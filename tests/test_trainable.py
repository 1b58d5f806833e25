"""Parameter groups on the published shapes, built without memory."""

import pytest
import torch
from diffusers import UNet2DConditionModel

from altdiffusion.trainable import select_parameters

SHAPES = {
    "sd15": {"cross_attention_dim": 768},
    "sd21": {
        "cross_attention_dim": 1024,
        "attention_head_dim": (5, 10, 20, 20),
        "use_linear_projection": True,
    },
}


@pytest.fixture(scope="module", params=SHAPES)
def unet(request):
    with torch.device("meta"):
        return request.param, UNet2DConditionModel(**SHAPES[request.param])


@pytest.mark.parametrize(
    "group, tensors, millions",
    [
        ("kv", 32, {"sd15": 19.17, "sd21": 25.56}),
        ("cross_attention", 80, {"sd15": 43.96, "sd21": 50.35}),
        ("unet", 686, {"sd15": 859.52, "sd21": 865.91}),
    ],
)
def test_groups_have_the_published_sizes(unet, group, tensors, millions):
    shape, model = unet
    chosen = select_parameters(model, group)
    assert len(chosen) == tensors
    assert sum(p.numel() for p in chosen) / 1e6 == pytest.approx(millions[shape], abs=0.01)
    assert [p for p in model.parameters() if p.requires_grad] == chosen


def test_an_unknown_group_is_refused_with_the_choices(unet):
    with pytest.raises(ValueError, match=r"^trainable: no group 'attn'; allowed: kv, cross_attention, unet"):
        select_parameters(unet[1], "attn")


def test_a_model_without_cross_attention_is_refused():
    with pytest.raises(ValueError, match=r"^trainable: Linear has no parameters of the group 'kv'"):
        select_parameters(torch.nn.Linear(2, 2), "kv")
