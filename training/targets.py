"""What is done to the teacher's words before a student learns them: other coordinates, names set apart."""

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from training.parallel_captions import CaptionFields, english_texts, places_of
from training.teacher import KeptTeacher, Teacher

#: Rounds of pushing after which names that still lie too near are left there.
ROUNDS = 2000


def whitening(states: Tensor, floor: float) -> Tensor:
    """Symmetric (dim, dim) change of coordinates after which `states` have the same power in all directions.

    `floor`, a share of the mean power, is added to each: what hardly varies is not blown up.
    """
    power, directions = torch.linalg.eigh(states.double().T @ states.double() / len(states))
    gain = (power.clamp(min=0) + floor * power.mean()).rsqrt()
    return (directions * gain @ directions.T).float()


def set_apart(states: Tensor, share: float) -> Tensor:
    """`states` (texts, dim), of which no two lie nearer to each other than `share` of the mean distance.

    Those that do are pushed from each other, in the direction in which they differ, and the others stay. A
    teacher that has seen hardly a difference between two o'clock and nine o'clock so leaves room for one.
    """
    jitter = torch.randn(states.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    start = states.double().cpu()
    least = share * torch.pdist(start).mean()
    moved = start + 1e-6 * least * jitter  # equal ones have no direction to part in
    for _ in range(ROUNDS):
        distance = torch.cdist(moved, moved, compute_mode="donot_use_mm_for_euclid_dist")
        lack = (least - distance).clamp(min=0).fill_diagonal_(0)
        if lack.max() < 1e-3 * least:
            break
        push = lack / distance.clamp(min=1e-9)
        near = (lack > 0).sum(1, keepdim=True)
        moved += 0.5 * (push.sum(1, keepdim=True) * moved - push @ moved) / (1 + near)
    touched = (moved - start).norm(dim=1, keepdim=True) > 1e-3 * least
    return torch.where(touched.to(states.device), moved.to(states), states)


class TargetFields(CaptionFields, Protocol):
    """What a stage's configuration says of its targets."""

    @property
    def whiten(self) -> float | None: ...
    @property
    def apart(self) -> float: ...


@dataclass(frozen=True)
class Targets:
    """What a student's states are drawn to, beside the teacher's own words."""

    change: Tensor
    """Coordinates (dim, dim) that the teacher's words are put in."""
    places: Tensor | None = None
    """(several, dim): what a name's place in a list adds."""
    apart: dict[str, Tensor] = field(default_factory=dict)
    """Targets (dim,) of the English names where these are set apart."""
    near: frozenset[str] = frozenset()
    """Those of the names that were moved for that."""


def asks_for_names(config: TargetFields) -> bool:
    """Whether the targets depend on what the teacher says of the English names."""
    return config.whiten is not None or config.own_words or bool(config.apart)


def targets_of(config: TargetFields, teacher: Teacher | KeptTeacher) -> Targets:
    """As `config` asks for them."""
    change = torch.eye(teacher.width)
    if not asks_for_names(config):
        return Targets(change)
    names = english_texts(config)
    said = teacher.pooled(names)
    if config.whiten is not None:
        change = whitening(said, config.whiten)
    said = said @ change
    places = places_of(said) if config.own_words else None
    if not config.apart:
        return Targets(change, places)
    moved = set_apart(said, config.apart)
    parted = (moved != said).any(1).tolist()
    near = frozenset(name for name, was in zip(names, parted, strict=True) if was)
    return Targets(change, places, dict(zip(names, moved, strict=True)), near)
