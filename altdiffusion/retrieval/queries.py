"""From texts and pictures to the vector that is searched for. Pure functions of vectors.

The two kinds lie in regions of their own, so before they are added up each has its kind's mean taken off:
otherwise the picture's part would decide nearly alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True)
class Part:
    """One of the things to be like: a unit vector, its kind's mean, and how much it counts; below 0, to be
    unlike."""

    vector: Float[np.ndarray, " dim"]
    mean: Float[np.ndarray, " dim"]
    weight: float = 1.0


class Frame:
    """How vectors lie in the engine: pictures less their mean, so that the few bits of a quantized one go to
    what tells it from others. It is the same difference for every score.
    """

    def __init__(self, image_mean: Float[np.ndarray, " dim"]) -> None:
        self._image_mean = np.asarray(image_mean, np.float64)

    def picture(self, vectors: Float[np.ndarray, "*rows dim"]) -> Float[np.ndarray, "*rows dim"]:
        return (vectors - self._image_mean).astype(np.float32)

    def whole(self, stored: Float[np.ndarray, "*rows dim"]) -> Float[np.ndarray, "*rows dim"]:
        """With their mean again, for what one has to do with another."""
        return stored + self._image_mean

    def query(self, parts: Sequence[Part]) -> "Query":
        if len(parts) == 1 and parts[0].weight > 0:
            vector, offset = parts[0].vector, float(parts[0].vector @ self._image_mean)
        else:
            vector, offset = (
                unit(np.sum([part.weight * unit(part.vector - part.mean) for part in parts], axis=0)),
                0.0,
            )
        return Query(vector.astype(np.float32), offset)


@dataclass(frozen=True)
class Query:
    """What stored vectors are multiplied with. `product + offset` is the score: for one text or one picture
    its cosine with the picture found."""

    vector: Float[np.ndarray, " dim"]
    offset: float


def unit(vector: Float[np.ndarray, "*rows dim"]) -> Float[np.ndarray, "*rows dim"]:
    """Of length 1; nothing stays nothing."""
    length = np.linalg.norm(vector, axis=-1, keepdims=True)
    return vector / np.where(length > 1e-12, length, 1)


def alike(
    vectors: Float[np.ndarray, "items dim"], digests: Sequence[str], threshold: float | None
) -> list[list[int]]:
    """Numbers of unit vectors in groups, in the order of their first: each is joined to the first before it
    with the same content, or with a cosine of at least `threshold`."""
    groups: list[list[int]] = []
    firsts: list[int] = []
    for number, digest in enumerate(digests):
        near = (
            vectors[firsts] @ vectors[number] >= threshold
            if threshold is not None and firsts
            else np.zeros(len(firsts), bool)
        )
        same = np.array([digests[first] == digest for first in firsts], bool)
        joined = np.flatnonzero(near | same)
        if len(joined):
            groups[joined[0]].append(number)
        else:
            groups.append([number])
            firsts.append(number)
    return groups
