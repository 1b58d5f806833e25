"""Metrics against values worked out by hand, CLIP_benchmark's definition and closed forms."""

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from altdiffusion.evaluation import metrics


def test_hits_by_hand():
    """Two pictures along the axes; text 2 belongs to picture 1 but points to picture 0."""
    images = torch.eye(2)
    texts = F.normalize(torch.tensor([[1.0, 0.1], [0.2, 1.0], [1.0, 0.5]]), dim=-1)
    hits = metrics.retrieval_hits(images, texts, torch.tensor([0, 1, 1]), ks=(1, 2))
    assert hits["t2i@1"].tolist() == [True, True, False]
    assert hits["t2i@2"].tolist() == [True, True, True]
    assert hits["i2t@1"].tolist() == [True, True]


def definition(scores: torch.Tensor, relevant: torch.Tensor, k: int) -> float:
    """CLIP_benchmark: the true recall of each query among its k best, counted where it is above 0."""
    recalls = []
    for row, right in zip(scores, relevant, strict=True):
        best = row.topk(k).indices
        recalls.append(right[best].sum() / right.sum())
    return float((torch.stack(recalls) > 0).float().mean())


@pytest.mark.parametrize("block", [3, 1024])
def test_hits_are_clip_benchmarks_definition_with_uneven_numbers_of_captions(monkeypatch, block):
    monkeypatch.setattr(metrics, "_BLOCK", block)
    random = torch.Generator().manual_seed(0)
    owners = torch.arange(17).repeat_interleave(
        torch.tensor([5, 6, 1, 5, 2, 5, 5, 7, 1, 5, 5, 5, 5, 2, 5, 5, 5])
    )
    images = F.normalize(torch.randn(17, 8, generator=random), dim=-1)
    texts = F.normalize(images[owners] + torch.randn(len(owners), 8, generator=random), dim=-1)
    hits = metrics.retrieval_hits(images, texts, owners)
    relevant = owners[:, None] == torch.arange(17)
    for k in metrics.KS:
        t2i, i2t = (float(hits[f"{way}@{k}"].float().mean()) for way in ("t2i", "i2t"))
        assert t2i == pytest.approx(definition(texts @ images.T, relevant, k))
        assert i2t == pytest.approx(definition(images @ texts.T, relevant.T, k))


def test_the_mean_recall_is_the_mean_of_the_six_and_lies_in_its_interval():
    random = torch.Generator().manual_seed(1)
    owners = torch.arange(50).repeat_interleave(2)
    images = F.normalize(torch.randn(50, 6, generator=random), dim=-1)
    texts = F.normalize(images[owners] + 0.8 * torch.randn(100, 6, generator=random), dim=-1)
    scores = metrics.retrieval_scores(metrics.retrieval_hits(images, texts, owners), owners)
    assert scores["MR"].value == pytest.approx(sum(scores[name].value for name in metrics.SIX) / 6)
    for score in scores.values():
        assert 0 <= score.low < score.value < score.high <= 1
    again = metrics.retrieval_scores(metrics.retrieval_hits(images, texts, owners), owners)
    assert again == scores


def test_the_interval_of_the_mean_recall_is_that_of_a_binomial_where_it_is_one():
    """One caption to a picture, and the same hits in all six numbers."""
    right = torch.zeros(400, dtype=torch.bool)
    right[:100] = True
    scores = metrics.retrieval_scores(dict.fromkeys(metrics.SIX, right), torch.arange(400))
    half = 1.96 * (0.25 * 0.75 / 400) ** 0.5
    assert scores["MR"].low == pytest.approx(0.25 - half, abs=0.006)
    assert scores["MR"].high == pytest.approx(0.25 + half, abs=0.006)


@pytest.mark.parametrize(
    ("hits", "of", "low", "high"), [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (81, 263, 0.2553, 0.3662)]
)
def test_wilsons_interval_is_the_published_one(hits, of, low, high):
    """Newcombe 1998, table I, has the third."""
    score = metrics.proportion(hits, of)
    assert score.value == hits / of
    assert (score.low, score.high) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))


def test_accuracy_and_mean_per_class_recall_by_hand():
    logits = torch.eye(6)[[0, 0, 1, 2, 5]]
    scores = metrics.classification_scores(logits, torch.tensor([0, 0, 0, 2, 4]))
    assert scores["top1"].value == pytest.approx(3 / 5)
    assert scores["mean per class"].value == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert set(scores) == {"top1", "top5", "mean per class"}
    assert "top5" not in metrics.classification_scores(torch.eye(4), torch.arange(4))


def test_classes_without_pictures_are_left_out_of_the_mean():
    assert metrics.mean_per_class_recall(torch.tensor([5, 5]), torch.tensor([5, 5])).value == 1.0


def test_clip_similarity_is_the_cosine_of_each_pair():
    unit = F.normalize(torch.randn(4, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
    assert_close(metrics.clip_similarity(unit, unit), torch.ones(4))
    assert_close(metrics.clip_similarity(unit, -unit), -torch.ones(4))


def test_the_interval_of_a_mean_is_the_normal_one():
    score = metrics.mean_score(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    half = 1.959964 * (5 / 3 / 4) ** 0.5
    assert (score.value, score.low, score.high) == pytest.approx((2.5, 2.5 - half, 2.5 + half), rel=1e-5)


def test_consistency_is_the_mean_over_all_pairs_of_languages():
    random = torch.Generator().manual_seed(0)
    features = F.normalize(torch.randn(3, 4, 8, generator=random), dim=-1)
    for language in range(3):
        others = [other for other in range(3) if other != language]
        for item in range(4):
            cosines = [float(features[language, item] @ features[other, item]) for other in others]
            assert metrics.consistency(features)[language, item].item() == pytest.approx(
                sum(cosines) / 2, abs=1e-6
            )
        cosines = [
            float(features[language, item] @ features[other, another])
            for other in others
            for item in range(4)
            for another in range(4)
            if item != another
        ]
        assert metrics.consistency_by_chance(features)[language].item() == pytest.approx(
            sum(cosines) / len(cosines), abs=1e-6
        )


def test_the_frechet_distance_of_shifted_features_is_the_square_of_the_shift():
    pytest.importorskip("torchmetrics")
    real = torch.randn(500, 6, generator=torch.Generator().manual_seed(0))
    assert metrics.frechet_distance(real, real) == pytest.approx(0, abs=1e-6)
    assert metrics.frechet_distance(real, real + 2) == pytest.approx(6 * 4, rel=1e-4)


def test_the_kernel_distance_grows_with_the_difference_and_is_repeatable():
    pytest.importorskip("torchmetrics")
    random = torch.Generator().manual_seed(0)
    real, same = torch.randn(2, 300, 6, generator=random)
    near, far = (metrics.kernel_distance(real, drawn) for drawn in (same, same + 1))
    assert abs(near) < 0.05 < far
    assert metrics.kernel_distance(real, same + 1) == far
