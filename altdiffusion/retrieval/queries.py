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
    """How vectors lie in the engine, so that their signs tell most and their products stay what they are.

    Two reflections turn the texts' mean and the pictures' mean onto the first two axes: whichever kind a
    query is, its mean then sways two signs instead of all. Stored pictures have their mean taken off besides,
    which is the same difference for every score.
    """

    def __init__(self, image_mean: Float[np.ndarray, " dim"], text_mean: Float[np.ndarray, " dim"]) -> None:
        self._image_mean = np.asarray(image_mean, np.float64)
        self._mirrors: list[np.ndarray] = []
        for axis, mean in enumerate((text_mean, image_mean)):
            turned = self._turned(np.asarray(mean, np.float64))
            turned[:axis] = 0
            target = np.zeros_like(turned)
            target[axis] = np.linalg.norm(turned)
            self._mirrors.append(unit(turned - target))

    def picture(self, vectors: Float[np.ndarray, "*rows dim"]) -> Float[np.ndarray, "*rows dim"]:
        return self._turned(vectors - self._image_mean).astype(np.float32)

    def whole(self, stored: Float[np.ndarray, "*rows dim"]) -> Float[np.ndarray, "*rows dim"]:
        """With their mean again, for what one has to do with another; not turned back."""
        return stored + self._turned(self._image_mean)

    def query(self, parts: Sequence[Part]) -> "Query":
        if len(parts) == 1 and parts[0].weight > 0:
            vector, offset = parts[0].vector, float(parts[0].vector @ self._image_mean)
        else:
            vector, offset = (
                unit(np.sum([part.weight * unit(part.vector - part.mean) for part in parts], axis=0)),
                0.0,
            )
        return Query(self._turned(vector).astype(np.float32), offset)

    def _turned(self, vectors: np.ndarray) -> np.ndarray:
        for mirror in self._mirrors:
            vectors = vectors - 2 * np.expand_dims(vectors @ mirror, -1) * mirror
        return vectors


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
    vectors: Float[np.ndarray, "items dim"], digests: Sequence[str], threshold: float | int | None
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
