"""Retrieval, classification and generation scores. Pure functions of tensors: no models, no files.

Recall is a hit rate, as in the CLIP papers and CLIP_benchmark: with five captions to a picture, finding one
of the five is a full hit. MR is the mean of the six R@1, R@5 and R@10 in both directions, as in AltCLIP.
"""

import contextlib
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from altdiffusion.requests import BadRequest

KS = (1, 5, 10)
#: The six numbers of a retrieval table: text to image, then image to text.
SIX = tuple(f"{way}@{k}" for way in ("t2i", "i2t") for k in KS)
_BLOCK = (
    1024  # queries scored at a time: 25,000 captions against 5,000 pictures never stand in memory at once
)
_RESAMPLES = 1000
_NORMAL_95 = 1.959963984540054


@dataclass(frozen=True)
class Score:
    """A value and the 95 % confidence interval round it."""

    value: float
    low: float
    high: float


def retrieval_hits(
    images: Float[Tensor, "images dim"],
    texts: Float[Tensor, "texts dim"],
    owners: Int[Tensor, " texts"],
    ks: Sequence[int] = KS,
) -> dict[str, Bool[Tensor, " queries"]]:
    """For each text whether its picture is among the k best (`t2i@k`), for each picture whether one of its
    texts is (`i2t@k`). Text n belongs to picture `owners[n]`."""
    hits: dict[str, Tensor] = {}
    numbers = torch.arange(len(images), device=owners.device)
    for way, queries, items in (("t2i", texts, images), ("i2t", images, texts)):
        wanted = owners if way == "t2i" else numbers
        found = []
        for at in range(0, len(queries), _BLOCK):
            scores = queries[at : at + _BLOCK] @ items.T
            best = scores.topk(min(max(ks), len(items)), dim=1).indices
            ranked = best if way == "t2i" else owners[best]
            found.append(ranked == wanted[at : at + _BLOCK, None])
        right = torch.cat(found)
        hits |= {f"{way}@{k}": right[:, :k].any(dim=1) for k in ks}
    return hits


def mean_recall(six: Mapping[str, float]) -> float:
    """MR of a row with the six recalls, in the row's own unit."""
    return math.fsum(six[name] for name in SIX) / len(SIX)


def retrieval_scores(
    hits: Mapping[str, Bool[Tensor, " queries"]], owners: Int[Tensor, " texts"]
) -> dict[str, Score]:
    """The six recalls with Wilson's interval, and MR with one from drawing pictures, each with its texts."""
    scores = {name: proportion(int(right.sum()), len(right)) for name, right in hits.items()}
    mean = mean_recall({name: score.value for name, score in scores.items()})
    pictures = int(owners.max()) + 1
    captions = torch.bincount(owners, minlength=pictures).double()
    shares = []  # hits per picture and what they are divided by
    for name in SIX:
        right = hits[name].double()
        if name.startswith("t2i"):
            right = torch.zeros(pictures, dtype=torch.double).index_add(0, owners, right)
        shares.append((right, captions if name.startswith("t2i") else torch.ones_like(captions)))
    random = torch.Generator().manual_seed(0)
    draws = []
    for _ in range(_RESAMPLES):
        drawn = torch.randint(pictures, (pictures,), generator=random)
        draws.append(sum(float(right[drawn].sum() / of[drawn].sum()) for right, of in shares) / len(SIX))
    low, high = torch.tensor(draws).quantile(torch.tensor([0.025, 0.975])).tolist()
    return {**scores, "MR": Score(mean, low, high)}


def proportion(hits: int | float, of: int) -> Score:
    """A share with Wilson's score interval, which holds for few trials and near 0 and 1 as well."""
    share, z2 = hits / of, _NORMAL_95**2
    middle = (share + z2 / (2 * of)) / (1 + z2 / of)
    half = _NORMAL_95 * math.sqrt(share * (1 - share) / of + z2 / (4 * of * of)) / (1 + z2 / of)
    return Score(share, max(0.0, middle - half), min(1.0, middle + half))


def classification_scores(
    logits: Float[Tensor, "pictures classes"], labels: Int[Tensor, " pictures"]
) -> dict[str, Score]:
    """Top-1, top-5 (with five classes or more) and the mean per-class recall."""
    best = logits.topk(min(5, logits.shape[1]), dim=1).indices
    right = best == labels[:, None]
    scores = {"top1": proportion(int(right[:, 0].sum()), len(labels))}
    if logits.shape[1] >= 5:
        scores["top5"] = proportion(int(right.any(dim=1).sum()), len(labels))
    scores["mean per class"] = mean_per_class_recall(best[:, 0], labels)
    return scores


def mean_per_class_recall(predictions: Int[Tensor, " pictures"], labels: Int[Tensor, " pictures"]) -> Score:
    """The mean over the classes that have pictures of the share of theirs that is right.

    The interval is the normal one for a mean of independent shares, cut to [0, 1].
    """
    right = (predictions == labels).double()
    count = torch.bincount(labels).double()
    share = torch.zeros_like(count).index_add(0, labels, right)[count > 0] / count[count > 0]
    spread = share * (1 - share) / count[count > 0]
    mean = share.mean().item()
    half = _NORMAL_95 * spread.sum().sqrt().item() / len(share)
    return Score(mean, max(0.0, mean - half), min(1.0, mean + half))


def clip_similarity(
    images: Float[Tensor, "pairs dim"], texts: Float[Tensor, "pairs dim"]
) -> Float[Tensor, " pairs"]:
    """Cosine of each picture with its text, from unit features."""
    return (images * texts).sum(dim=1)


def mean_score(values: Float[Tensor, " items"]) -> Score:
    """The mean with the normal interval, for two items and more."""
    half = _NORMAL_95 * (values.double().var() / len(values)).sqrt().item()
    mean = values.double().mean().item()
    return Score(mean, mean - half, mean + half)


def consistency(features: Float[Tensor, "languages items dim"]) -> Float[Tensor, "languages items"]:
    """The mean cosine of each unit feature with those of the same item in the other languages."""
    others = features.sum(dim=0) - features
    return (features * others).sum(dim=-1) / (len(features) - 1)


def consistency_by_chance(features: Float[Tensor, "languages items dim"]) -> Float[Tensor, " languages"]:
    """The mean cosine of a language's features with those of other items in the other languages."""
    languages, items, _ = features.shape
    sums = features.sum(dim=1)
    all_pairs = (sums * (sums.sum(dim=0) - sums)).sum(dim=-1) / (languages - 1)
    return (all_pairs - consistency(features).sum(dim=1)) / (items * (items - 1))


def frechet_distance(real: Float[Tensor, "real dim"], drawn: Float[Tensor, "drawn dim"]) -> float:
    """Fréchet distance of two sets of features; over AltCLIP's it is FD-AltCLIP, not the Inception FID."""
    with _installed():
        from torchmetrics.image.fid import FrechetInceptionDistance
    distance = FrechetInceptionDistance(feature=_Given(real.shape[1]))
    distance.update(real, real=True)
    distance.update(drawn, real=False)
    return float(distance.compute())


def kernel_distance(
    real: Float[Tensor, "real dim"], drawn: Float[Tensor, "drawn dim"], subset: int = 100
) -> float:
    """Kernel distance (KID's polynomial kernel), the mean over subsets drawn with a fixed seed."""
    with _installed():
        from torchmetrics.image.kid import KernelInceptionDistance
    size = min(subset, len(real), len(drawn))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Metric `Kernel Inception Distance` will save")
        distance = KernelInceptionDistance(feature=_Given(real.shape[1]), subset_size=size)
    distance.update(real, real=True)
    distance.update(drawn, real=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return float(distance.compute()[0])


@contextlib.contextmanager
def _installed() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError:
        raise BadRequest("generation: its distances need torchmetrics (pip install torchmetrics)") from None


class _Given(nn.Module):
    """torchmetrics takes a network that makes features; ours are there already."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.num_features = dim

    def forward(self, features: Tensor) -> Tensor:
        return features
