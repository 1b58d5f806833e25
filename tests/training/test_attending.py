"""Plain attention where it is short: what the fused kernel says, and chosen in bf16 on a CPU alone."""

import copy

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from torch.testing import assert_close

from tests import fakes
from training import attending
from training.attending import PlainWhereShort, attend_in_clip, attend_in_text, set_attention


def gradients(unet, latents, states):
    unet.zero_grad()
    drawn = unet(latents, torch.tensor([3, 700]), states).sample
    drawn.square().mean().backward()
    return drawn.detach(), {name: p.grad.clone() for name, p in unet.named_parameters()}


@pytest.mark.parametrize("few", [0, 64 * 5, 10**6])
def test_it_says_what_the_fused_kernel_says(few, monkeypatch):
    """Nothing, all but the longest, and everything plain: forth and back to float32's rounding."""
    torch.manual_seed(0)
    fused = fakes.tiny_unet().train()
    plain = copy.deepcopy(fused)
    monkeypatch.setattr(PlainWhereShort, "FEW", few)
    plain.set_attn_processor(PlainWhereShort())
    given = torch.randn(2, 4, 8, 8), torch.randn(2, 5, fused.config.cross_attention_dim)
    (drawn, back), (expected, expected_back) = gradients(plain, *given), gradients(fused, *given)
    assert_close(drawn, expected, rtol=1e-5, atol=1e-6)
    assert_close(back, expected_back, rtol=1e-4, atol=1e-6)


def test_where_it_is_not_short_the_fused_kernel_works(monkeypatch):
    called = []
    real = AttnProcessor2_0.__call__
    monkeypatch.setattr(
        AttnProcessor2_0,
        "__call__",
        lambda self, *args, **more: called.append(1) or real(self, *args, **more),
    )
    unet = fakes.tiny_unet()
    unet.set_attn_processor(PlainWhereShort())
    given = torch.randn(1, 4, 8, 8), torch.tensor([1]), torch.randn(1, 5, unet.config.cross_attention_dim)
    unet(*given)
    assert not called
    monkeypatch.setattr(PlainWhereShort, "FEW", 0)
    unet(*given)
    assert called


@pytest.mark.parametrize(
    ("name", "mixed_precision", "cpu", "kind"),
    [
        ("auto", "bf16", True, PlainWhereShort),
        ("auto", "no", True, AttnProcessor2_0),
        ("auto", "bf16", False, AttnProcessor2_0),
        ("sdpa", "bf16", True, AttnProcessor2_0),
    ],
)
def test_it_is_chosen_in_bf16_on_a_cpu_alone(name, mixed_precision, cpu, kind, monkeypatch):
    device = torch.device("cpu" if cpu else "meta")
    monkeypatch.setattr(attending, "choose_device", lambda: device)
    unet = fakes.tiny_unet()
    set_attention(unet, name, mixed_precision)
    assert {type(processor) for processor in unet.attn_processors.values()} == {kind}


def test_a_text_tower_too_and_it_is_saved_as_it_was(monkeypatch, tmp_path):
    monkeypatch.setattr(attending, "choose_device", lambda: torch.device("cpu"))
    tower = fakes.tiny_tower().eval()
    tokens = torch.randint(3, 20, (2, 6))
    mask = torch.ones_like(tokens)
    mask[1, 4:] = 0
    before = tower(tokens, mask).last_hidden_state
    attend_in_text(tower, "no")
    assert tower.config._attn_implementation == "sdpa"
    attend_in_text(tower, "bf16")
    assert tower.config._attn_implementation == "eager"
    assert_close(
        tower(tokens, mask).last_hidden_state[mask.bool()], before[mask.bool()], rtol=1e-5, atol=1e-6
    )
    tower.save_pretrained(tmp_path)
    assert "eager" not in (tmp_path / "config.json").read_text()


@pytest.mark.parametrize(("few", "image"), [(10**6, "eager"), (4, "sdpa")])
def test_an_image_tower_too_where_it_has_few_patches(few, image, monkeypatch):
    monkeypatch.setattr(attending, "choose_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(PlainWhereShort, "FEW", few)
    clip = fakes.tiny_altclip().eval()
    pixels = torch.randn(1, 3, *[clip.config.vision_config.image_size] * 2)
    before = clip.get_image_features(pixels).pooler_output
    attend_in_clip(clip, "no")
    assert clip.text_model.config._attn_implementation == "sdpa"
    attend_in_clip(clip, "bf16")
    towers = (clip.text_model, clip.vision_model)
    assert [tower.config._attn_implementation for tower in towers] == ["eager", image]
    assert_close(clip.get_image_features(pixels).pooler_output, before, rtol=1e-5, atol=1e-6)
