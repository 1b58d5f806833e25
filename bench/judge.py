"""A judge of drawn emoji that shares nothing with the model: nearest neighbour in pixel space among all 1,364
emoji.

A picture is brought to a form that place, size and ground do not change (`descriptor`), then compared with
every emoji of the font by mean squared difference. `python -m bench.judge` prints how often it is right on
real pictures of every emoji.
"""

import argparse
import json
from dataclasses import replace

import numpy as np
from PIL import Image

from training.emoji import Scene, draw, glyph, load_emoji, random_scene

SIDE = 24
#: A pixel belongs to the emoji when a channel differs by more than this from the ground (0-255).
FOREGROUND = 20
#: Emoji that differ in size alone, which a judge that is blind to size cannot tell apart; each group counts
#: as one.
LOOK_ALIKES = ("◻◽⬜▫", "◼◾⬛▪", "🔶🔸", "🔷🔹")


def descriptor(picture: Image.Image) -> np.ndarray:
    """(24 * 24 * 3), float32 in [0, 1]: the foreground's 1-99 percentile box, squared, on white, small."""
    pixels = np.asarray(picture.convert("RGB")).astype(np.int16)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    foreground = np.abs(pixels - np.median(border, axis=0)).max(axis=2) > FOREGROUND
    rows, columns = np.nonzero(foreground)
    if len(rows) < 8:
        return np.ones(SIDE * SIDE * 3, np.float32)
    top, bottom = np.percentile(rows, (1, 99)).round().astype(int)
    left, right = np.percentile(columns, (1, 99)).round().astype(int)
    box = np.where(foreground[..., None], pixels, 255)[top : bottom + 1, left : right + 1].astype(np.uint8)
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
        found = np.stack([descriptor(picture) for picture in pictures])
        distances = (
            (found**2).sum(1)[:, None] + (self.references**2).sum(1)[None] - 2 * found @ self.references.T
        )
        ranks = []
        for row, character in zip(distances, wanted, strict=True):
            best: dict[str, float] = {}
            for name, distance in zip(self.classes, row, strict=True):
                best[name] = min(best.get(name, np.inf), float(distance))
            own = best[self.same.get(character, character)]
            ranks.append(sum(distance < own for distance in best.values()))
        return np.array(ranks)


def plain(scene: Scene) -> Scene:
    """The scene on a ground of one colour: the judge takes any other for a part of the emoji."""
    return replace(scene, bottom=scene.top)


def reference(character: str) -> Image.Image:
    """The font's own picture on white, framed so that its border is ground."""
    picture = Image.new("RGB", (152, 152), (255, 255, 255))
    large = glyph(character)
    picture.paste(large, ((152 - large.width) // 2, (152 - large.height) // 2), large)
    return picture


def figures(ranks: np.ndarray) -> dict[str, float]:
    return {"top1": float((ranks == 0).mean()), "top5": float((ranks < 5).mean()), "pictures": len(ranks)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=64)
    arguments = parser.parse_args()
    judge = Judge()
    scenes = [plain(random_scene(7, n, (c,), pastel=0.5)) for n, c in enumerate(judge.characters)]
    ranks = judge.ranks([draw(scene, arguments.size) for scene in scenes], list(judge.characters))
    print(json.dumps(figures(ranks)))


if __name__ == "__main__":
    main()
