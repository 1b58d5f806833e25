"""Losses against values worked out by hand."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from altdiffusion.losses import contrastive_loss, diffusion_loss, distillation_loss


def test_contrast_is_log_batch_when_all_embeddings_agree():
    same = F.normalize(torch.ones(4, 8), dim=-1)
    assert_close(contrastive_loss(same, same, torch.tensor(0.0)), torch.tensor(4.0).log())


def test_contrast_vanishes_when_pairs_are_orthogonal_and_the_scale_is_large():
    pairs = torch.eye(4)
    assert contrastive_loss(pairs, pairs, torch.tensor(100.0).log()).item() < 1e-6


def test_a_repeated_caption_is_no_negative_of_its_twin():
    pairs = F.normalize(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), dim=-1)
    groups = torch.tensor([7, 7, 8])
    scale = torch.tensor(100.0).log()
    assert contrastive_loss(pairs, pairs, scale, groups).item() < 1e-6
    assert contrastive_loss(pairs, pairs, scale).item() == pytest.approx(2 / 3 * math.log(2), rel=1e-4)


def test_distillation_compares_the_first_state_alone_unless_told_otherwise():
    states = torch.zeros(2, 3, 4)
    states[:, 1:] = 5.0
    target = torch.ones(2, 4)
    assert distillation_loss(states, target).item() == pytest.approx(1.0)
    # over all states: (1 + 16 + 16) / 3 = 11
    assert distillation_loss(states, target, sequence_weight=0.5).item() == pytest.approx(1 + 0.5 * 11)


@pytest.mark.parametrize("kind, scale", [("epsilon", 2.0), ("v_prediction", 3.0)])
def test_min_snr_caps_the_weight_of_the_error_of_x0(kind, scale):
    prediction, target = torch.zeros(1, 1, 2, 2), torch.full((1, 1, 2, 2), 2.0)
    snr = torch.tensor([2.0])
    assert diffusion_loss(prediction, target, snr, kind).item() == pytest.approx(4.0)
    assert diffusion_loss(prediction, target, snr, kind, snr_gamma=5.0).item() == pytest.approx(4 * 2 / scale)
    assert diffusion_loss(prediction, target, snr, kind, snr_gamma=1.0).item() == pytest.approx(4 * 1 / scale)
