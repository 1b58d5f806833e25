"""A judge of drawn emoji that shares nothing with the model: nearest neighbour in pixel space among all 1,364
emoji.

A picture is brought to a form that place, size and ground do not change (`descriptor`), then compared with
every emoji of the font by mean squared difference. A picture of several emoji is cut between them. `python -m
bench.judge` prints how often it is right on real pictures of every emoji, and on pictures of two to four.
"""

import argparse
import json
from dataclasses import replace
from itertools import permutations

import numpy as np
from jaxtyping import Float
from PIL import Image

from training.captions import held_out_pair
from training.emoji import Scene, draw, glyph, in_rows_of_two, load_emoji, random_scene
from training.grounds import GROUNDS

SIDE = 24
#: A pixel belongs to the emoji when a channel differs by more than this from the ground (0-255).
FOREGROUND = 20
#: Emoji that differ in size alone, which a judge that is blind to size cannot tell apart; each group counts
#: as one.
LOOK_ALIKES = ("◻◽⬜▫", "◼◾⬛▪", "🔶🔸", "🔷🔹")


def border_of(picture: Image.Image) -> np.ndarray:
    """(3,), 0 to 255: the median colour of the border."""
    pixels = np.asarray(picture.convert("RGB"))
    return np.median(np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]), axis=0)


def foreground_of(picture: Image.Image) -> np.ndarray:
    """(height, width), bool: what differs from the border."""
    pixels = np.asarray(picture.convert("RGB")).astype(np.int16)
    return np.abs(pixels - border_of(picture)).max(axis=2) > FOREGROUND


def ground_of(picture: Image.Image) -> str:
    """The ground of `training.grounds` whose colour is nearest to the border's."""
    border = border_of(picture)
    return min(GROUNDS, key=lambda ground: float(((border - GROUNDS[ground]) ** 2).sum()))


def descriptor(picture: Image.Image) -> np.ndarray:
    """(24 * 24 * 3), float32 in [0, 1]: the foreground's 1-99 percentile box, squared, on white, small."""
    pixels, foreground = np.asarray(picture.convert("RGB")), foreground_of(picture)
    rows, columns = np.nonzero(foreground)
    if len(rows) < 8:
        return np.ones(SIDE * SIDE * 3, np.float32)
    top, bottom = np.percentile(rows, (1, 99)).round().astype(int)
    left, right = np.percentile(columns, (1, 99)).round().astype(int)
    box = np.where(foreground[..., None], pixels, np.uint8(255))[top : bottom + 1, left : right + 1]
    side = max(box.shape[:2])
    square = Image.new("RGB", (side, side), (255, 255, 255))
    square.paste(Image.fromarray(box), ((side - box.shape[1]) // 2, (side - box.shape[0]) // 2))
    small = square.resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    return np.asarray(small, np.float32).reshape(-1) / 255


class Judge:
    """Names the emoji in a picture of one emoji."""

    def __init__(self) -> None:
        self.characters = load_emoji().characters
        self.references = np.stack([descriptor(reference(c)) for c in self.characters])
        same = {c: group[0] for group in LOOK_ALIKES for c in group}
        self.classes = [same.get(c, c) for c in self.characters]
        self.same = same

    def ranks(self, pictures: list[Image.Image], wanted: list[str]) -> np.ndarray:
        """For each picture the number of other emoji that it is nearer to than to the wanted one."""
        nearest = self.nearest(pictures)
        return np.array([self.rank(best, one) for best, one in zip(nearest, wanted, strict=True)])

    def group_ranks(self, pictures: list[Image.Image], wanted: list[str]) -> np.ndarray:
        """Of pictures of two to four emoji each the largest of their ranks: below 5 all are found, wherever
        they stand. Each part is named by itself, so of 1,364 emoji that are not in it five at most (0.4 %)
        are taken for found."""
        return np.array([self.group_rank(*one) for one in zip(pictures, wanted, strict=True)])

    def group_rank(self, picture: Image.Image, wanted: str) -> int:
        ways = [self.nearest(parts) for parts in cuts(picture, len(wanted))]
        return min(
            max(self.rank(best, one) for best, one in zip(order, wanted, strict=True))
            for parts in ways
            for order in permutations(parts)
        )

    def nearest(self, pictures: list[Image.Image]) -> list[dict[str, float]]:
        """For each picture the distance of each emoji, of look-alikes the nearest one's."""
        found = np.stack([descriptor(picture) for picture in pictures])
        distances = (
            (found**2).sum(1)[:, None] + (self.references**2).sum(1)[None] - 2 * found @ self.references.T
        )
        nearest = []
        for row in distances:
            best: dict[str, float] = {}
            for name, distance in zip(self.classes, row, strict=True):
                best[name] = min(best.get(name, np.inf), float(distance))
            nearest.append(best)
        return nearest

    def rank(self, best: dict[str, float], wanted: str) -> int:
        own = best[self.same.get(wanted, wanted)]
        return sum(distance < own for distance in best.values())


def cuts(picture: Image.Image, number: int) -> list[list[Image.Image]]:
    """The ways in which two to four emoji can share a picture of at most two rows and two columns."""
    columns, rows = halves(picture, 0), halves(picture, 1)
    if number == 2:
        return [columns, rows]
    above, below = (halves(row, 0) for row in rows)
    if number == 3:
        return [[*above, rows[1]], [rows[0], *below]]
    return [[*above, *below]]


def halves(picture: Image.Image, axis: int) -> list[Image.Image]:
    """Left and right (axis 0) or top and bottom (1), cut near the middle where least of the foreground is."""
    (width, height), at = picture.size, emptiest(foreground_of(picture).sum(axis=axis))
    if axis == 0:
        return [picture.crop((0, 0, at, height)), picture.crop((at, 0, width, height))]
    return [picture.crop((0, 0, width, at)), picture.crop((0, at, width, height))]


def emptiest(counts: np.ndarray) -> int:
    """Where the least is, of the middle quarter; the nearest to the middle of several."""
    first, last = len(counts) * 3 // 8, len(counts) * 5 // 8
    return min(range(first, last + 1), key=lambda n: (counts[n], abs(2 * n - len(counts))))


def plain(scene: Scene) -> Scene:
    """The scene on a ground of one colour: the judge takes any other for a part of the emoji."""
    return replace(scene, bottom=scene.top)


def reference(character: str) -> Image.Image:
    """The font's own picture on white, framed so that its border is ground."""
    picture = Image.new("RGB", (152, 152), (255, 255, 255))
    large = glyph(character)
    picture.paste(large, ((152 - large.width) // 2, (152 - large.height) // 2), large)
    return picture


def held_out_groups(number: int, size: int = 2) -> list[str]:
    """So many groups of emoji of which two are never shown together in training, always the same."""
    characters, random, groups = load_emoji().characters, np.random.default_rng(2027), dict[str, None]()
    while len(groups) < number:
        group = tuple(characters[n] for n in random.choice(len(characters), size, replace=False))
        if held_out_pair(group):
            groups["".join(group)] = None
    return list(groups)


def figures(ranks: np.ndarray) -> dict[str, float]:
    return {"top1": float((ranks == 0).mean()), "top5": float((ranks < 5).mean()), "pictures": len(ranks)}


def interval(values: Float[np.ndarray, "languages emoji"]) -> dict[str, float]:
    """Mean of the languages' means, and between which bounds 95 % of 10,000 resamplings of the emoji have it.

    Emoji are resampled, not pictures: those of one emoji in several languages go right or wrong together. A
    NaN is a picture that does not count.
    """
    emoji, known = values.shape[1], ~np.isnan(values)
    drawn = np.random.default_rng(0).multinomial(emoji, np.full(emoji, 1 / emoji), 10_000)
    counted = drawn @ known.T  # (resamplings, languages)
    sums = drawn @ np.nan_to_num(values).T
    means = np.divide(sums, counted, where=counted > 0, out=np.full(counted.shape, np.nan))
    low, high = np.percentile(np.nanmean(means, axis=1), (2.5, 97.5))
    return {"mean": float(np.nanmean(np.nanmean(values, axis=1))), "low": float(low), "high": float(high)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=64)
    arguments = parser.parse_args()
    judge = Judge()
    scenes = [plain(random_scene(7, n, (c,), pastel=0.5)) for n, c in enumerate(judge.characters)]
    ranks = judge.ranks([draw(scene, arguments.size) for scene in scenes], list(judge.characters))
    report = {"one": figures(ranks)}
    for size, word in ((2, "two"), (3, "three"), (4, "four")):
        groups = held_out_groups(500, size)
        drawn = [draw(in_rows_of_two(tuple(group)), arguments.size) for group in groups]
        report[word] = figures(judge.group_ranks(drawn, groups))
    print(json.dumps(report))


if __name__ == "__main__":
    main()
