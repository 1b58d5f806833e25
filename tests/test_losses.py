"""Losses against values worked out by hand."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from altdiffusion.losses import contrastive_loss, diffusion_loss, distillation_loss, sigmoid_loss


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


def test_padding_beyond_the_first_pad_weighs_nothing():
    states = torch.zeros(2, 4, 4)
    states[0, 2:] = 100.0  # one token, a pad, and what the longer text made necessary
    target = torch.ones(2, 4)
    lengths = torch.tensor([1, 3])
    assert distillation_loss(states, target, 0.5, lengths=lengths).item() == pytest.approx(1.5)
    assert distillation_loss(states, target, 0.5).item() > 1000


@pytest.mark.parametrize("kind, scale", [("epsilon", 2.0), ("v_prediction", 3.0)])
def test_min_snr_caps_the_weight_of_the_error_of_x0(kind, scale):
    prediction, target = torch.zeros(1, 1, 2, 2), torch.full((1, 1, 2, 2), 2.0)
    snr = torch.tensor([2.0])
    assert diffusion_loss(prediction, target, snr, kind).item() == pytest.approx(4.0)
    assert diffusion_loss(prediction, target, snr, kind, snr_gamma=5.0).item() == pytest.approx(4 * 2 / scale)
    assert diffusion_loss(prediction, target, snr, kind, snr_gamma=1.0).item() == pytest.approx(4 * 1 / scale)


def test_sigmoid_loss_asks_of_each_pair_by_itself():
    pairs = torch.eye(2)
    scale, bias = torch.tensor(3.0).log(), torch.tensor(-1.0)
    # per row: its own pair has logit 3 - 1, the other one 0 - 1
    expected = math.log(1 + math.exp(-2)) + math.log(1 + math.exp(-1))
    assert sigmoid_loss(pairs, pairs, scale, bias).item() == pytest.approx(expected)
    alone = sigmoid_loss(pairs, pairs, scale, bias, torch.tensor([5, 5]))
    assert alone.item() == pytest.approx(math.log(1 + math.exp(-2)))


def test_cosine_distillation_leaves_the_length_free():
    target = torch.tensor([[3.0, 4.0]])
    states = torch.stack([2 * target, torch.tensor([[4.0, -3.0]])], dim=1)
    assert distillation_loss(states, target, kind="cosine").item() == pytest.approx(0.0, abs=1e-6)
    # over both states the mean of 0 and 1
    assert distillation_loss(states, target, 1.0, "cosine").item() == pytest.approx(0.5)


def test_contrastive_distillation_tells_a_target_from_the_others_of_the_batch():
    target = torch.eye(2)
    states = target[:, None] * 7
    other = math.exp(-math.exp(1.5))
    found = distillation_loss(states, target, kind="contrastive").item()
    assert found == pytest.approx(math.log(1 + other), rel=1e-4)
    same = distillation_loss(states, target, kind="contrastive", groups=torch.tensor([1, 1])).item()
    assert same == pytest.approx(0.0, abs=1e-6)


def test_each_token_may_have_a_target_of_its_own():
    states, target = torch.zeros(1, 3, 2), torch.ones(1, 2)
    goals = torch.tensor([[[1.0, 1.0], [2.0, 2.0], [0.0, 0.0]]])
    found = distillation_loss(states, target, 0.3, lengths=torch.tensor([2]), token_targets=goals)
    assert found.item() == pytest.approx(1 + 0.3 * (1 + 4 + 0) / 3)
