"""Draws the pictures of the bundled model's card: the same prompts in 18 languages, two emoji, and failures.

    python -m bench.card [--failures-of 200]

Writes `pictures/` in the model's folder and its place in the card, and the README's picture, which has six of
the languages. Every picture has the seed of its column, whatever its language. Failures are what the judge
does not find among its five best in the English pictures of the sample that bench.quality draws; the wanted
emoji stands beside each.
"""

import argparse
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from altdiffusion import AltDiffusionPipeline, aside, bundled
from altdiffusion.grids import captioned_grid, labelled_grid
from altdiffusion.languages import LANGUAGES
from bench.judge import Judge, held_out_pairs
from bench.quality import Prompts, drawing, pictures, sample
from bench.report import put
from training.emoji import centred, draw

MARK = "pictures"
#: The README's picture, and whose rows it has.
README_PICTURE = Path(__file__).parent.parent / "docs" / "images" / "demo.png"
README_LANGUAGES = ("en", "zh", "th", "ko", "ar", "ru")
#: Emoji that are known by everybody, and pairs that no training saw.
KNOWN = "🦞🌈🚲🍎🐧"
_SHOWN = 12  # failures


def languages(
    pipeline: AltDiffusionPipeline, prompts: Prompts, tags: Iterable[str] = LANGUAGES
) -> Image.Image:
    """A row for each language, a column for each emoji; everywhere in a column the same seed."""
    rows = []
    for tag in tags:
        asked = [prompts.generation(tag, c) or "" for c in KNOWN]
        rows.append((LANGUAGES[tag], pictures(pipeline, asked)))
    return labelled_grid(rows)


def pairs(pipeline: AltDiffusionPipeline, prompts: Prompts) -> Image.Image:
    """Held-out pairs, each in another language, whatever became of them."""
    tags = list(LANGUAGES)
    asked = [
        prompts.pairs(tag, pair) or "" for tag, pair in zip(tags, held_out_pairs(len(tags)), strict=True)
    ]
    return captioned_grid(list(zip(asked, pictures(pipeline, asked), strict=True)))


def failures(pipeline: AltDiffusionPipeline, prompts: Prompts, tried: int) -> tuple[Image.Image | None, int]:
    """What was drawn wrong beside what was wanted, and how many there were; no picture where nothing was."""
    chosen = sample(bundled.covered(), tried)
    asked = [prompts.generation("en", c) or "" for c in chosen]
    drawn = pictures(pipeline, asked)
    wrong = np.flatnonzero(Judge().ranks(drawn, chosen) >= 5)
    shown = [(asked[n], beside(drawn[n], draw(centred(chosen[n]), drawn[n].width))) for n in wrong[:_SHOWN]]
    return captioned_grid(shown) if shown else None, len(wrong)


def beside(left: Image.Image, right: Image.Image) -> Image.Image:
    both = Image.new("RGB", (left.width + right.width, left.height), "white")
    both.paste(left, (0, 0))
    both.paste(right, (left.width, 0))
    return both


def drawn(folder: Path, tried: int) -> dict[str, tuple[Image.Image | None, str]]:
    """Name → picture, if there is any, and the sentence below it."""
    pipeline, prompts = drawing(folder), Prompts()
    wrong, number = failures(pipeline, prompts, tried)
    few = f"The first {_SHOWN}" if number > _SHOWN else "These"
    return {
        "languages": (
            languages(pipeline, prompts),
            "The same five names in 18 languages, a seed for each column.",
        ),
        "pairs": (pairs(pipeline, prompts), "Pairs that training never showed, one a language, not chosen."),
        "failures": (
            wrong,
            f"Of {tried} English names {number} are not among the five that the judge finds. {few}, each "
            "beside what was wanted.",
        ),
    }


def write(folder: Path, tried: int) -> None:
    place, lines = folder / "pictures", ["## Pictures", ""]
    place.mkdir(exist_ok=True)
    for name, (picture, text) in drawn(folder, tried).items():
        file = place / f"{name}.webp"
        if picture is None:
            file.unlink(missing_ok=True)
            continue
        with aside.file(file) as made:
            picture.save(made, "WEBP", quality=80, method=6)
        lines += [f"![{text}](pictures/{file.name})", "", text, ""]
    put(folder / "README.md", MARK, "\n".join(lines))
    bundled.write_manifest(folder)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--failures-of", type=int, default=200, help="English prompts to find failures among")
    write(bundled.FOLDER, parser.parse_args().failures_of)
    with aside.file(README_PICTURE) as made:
        languages(drawing(bundled.FOLDER), Prompts(), README_LANGUAGES).save(made, "PNG")


if __name__ == "__main__":
    main()
