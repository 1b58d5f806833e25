"""What a swap of towers starts from: whitened targets, and keys and values mapped by least squares."""

import pytest
import torch
from torch.testing import assert_close

from tests import fakes
from training.student import assemble
from training.swap import map_cross_attention
from training.targets import set_apart, whitening


def test_whitened_states_have_the_same_power_in_every_direction():
    states = torch.randn(400, 16) @ torch.diag(torch.logspace(0, -2, 16)) @ torch.randn(16, 16)
    white = states @ whitening(states, floor=0.0)
    assert_close(white.T @ white / len(white), torch.eye(16), rtol=0, atol=1e-2)


def test_a_floor_keeps_silent_directions_silent():
    states = torch.randn(400, 4) * torch.tensor([1.0, 1.0, 1.0, 1e-4])
    white = states @ whitening(states, floor=0.01)
    assert white.square().mean(0)[3] < 1e-4
    assert (white.square().mean(0)[:3] > 0.9).all()


def test_the_text_projection_undoes_the_whitening():
    altclip = fakes.tiny_altclip()
    student, width = altclip.text_model, altclip.text_model.config.project_dim
    change = whitening(torch.randn(100, width), floor=0.1)
    whitened = assemble(student, altclip, change)
    states = torch.randn(5, width)
    assert_close(
        whitened.text_projection(states @ change), altclip.text_projection(states), rtol=0, atol=1e-4
    )


def test_names_that_lie_together_are_set_apart_and_the_others_stay():
    states = 3 * torch.randn(300, 32)
    states[:20] = states[0] + 0.01 * torch.randn(20, 32)
    states[21] = states[20]  # not to be told from each other at all
    moved = set_apart(states, 0.3)
    least = 0.3 * torch.pdist(states.double()).mean()
    assert torch.pdist(moved.double()).min() > 0.99 * least
    assert moved[22:].equal(states[22:]) and not (moved[:22] == states[:22]).all(1).any()
    assert (moved - states).norm(dim=1).max() < 1.2 * least
    assert set_apart(states, 0.3).equal(moved)
    assert set_apart(states[22:], 0.3).equal(states[22:])


def test_an_exact_linear_map_leaves_the_unets_output_as_it_was():
    unet = fakes.tiny_unet()
    old = torch.randn(200, 5, 32)
    change = torch.eye(32) + 0.1 * torch.randn(32, 32)
    new = old @ torch.linalg.inv(change)  # old = new @ change
    noisy = torch.randn(2, 4, 16, 16)
    with torch.no_grad():
        before = unet(noisy, 500, old[:2]).sample
        explained = map_cross_attention(unet, old, new, ridge=1e-9)
        after = unet(noisy, 500, new[:2]).sample
    assert explained > 0.9999
    assert_close(after, before, rtol=0, atol=1e-4)


def test_towers_of_other_widths_are_refused():
    with pytest.raises(ValueError, match=r"^swapped_from: a tower of width 32; allowed: .*, 16$"):
        map_cross_attention(fakes.tiny_unet(), torch.randn(9, 5, 32), torch.randn(9, 5, 16))
