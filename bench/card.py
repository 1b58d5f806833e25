"""Draws the pictures of the bundled model's card: the same prompts in 18 languages, two emoji, and failures.

    python -m bench.card [--failures-of 200]

Writes `pictures/` in the model's folder and its place in the card, and the README's picture, which has six of
the languages. Every picture has the seed of its column, whatever its language. Failures are what the judge
does not find among its five best in the English pictures of the sample that bench.quality draws; the wanted
emoji stands beside each.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from altdiffusion import AltDiffusionPipeline, aside, bundled
from altdiffusion.grids import captioned_grid, labelled_grid
from altdiffusion.languages import LANGUAGES
from bench.judge import Judge, held_out_groups
from bench.quality import Prompts, drawing, pictures, sample
from bench.report import RESULTS, put
from training.emoji import centred, draw, in_a_row

MARK = "pictures"
#: The README's picture, and whose rows it has.
README_PICTURE = RESULTS.parent / "images" / "demo.png"
README_LANGUAGES = ("en", "zh", "th", "ko", "ar", "ru")
#: Emoji that are known by everybody, and pairs that no training saw.
KNOWN = "🦞🌈🚲🍎🐧"
_SHOWN = 12  # failures


def languages(pipeline: AltDiffusionPipeline, prompts: Prompts) -> dict[str, list[Image.Image]]:
    """A picture of each emoji in each language, every one of an emoji from the same seed."""
    names = {tag: [prompts.name(tag, centred(c)) for c in KNOWN] for tag in LANGUAGES}
    return {tag: pictures(pipeline, asked) for tag, asked in names.items()}


def pairs(pipeline: AltDiffusionPipeline, prompts: Prompts) -> Image.Image:
    """Held-out pairs, each in another language, whatever became of them."""
    scenes = [in_a_row(tuple(pair)) for pair in held_out_groups(len(LANGUAGES))]
    asked = [prompts.name(tag, scene) for tag, scene in zip(LANGUAGES, scenes, strict=True)]
    return captioned_grid(list(zip(asked, pictures(pipeline, asked), strict=True)))


def failures(pipeline: AltDiffusionPipeline, prompts: Prompts, tried: int) -> tuple[Image.Image | None, int]:
    """What was drawn wrong beside what was wanted, and how many there were; no picture where nothing was."""
    chosen = sample(bundled.covered(), tried)
    asked = [prompts.name("en", centred(c)) for c in chosen]
    drawn = pictures(pipeline, asked)
    wrong = np.flatnonzero(Judge().ranks(drawn, chosen) >= 5)
    shown = [(asked[n], beside(drawn[n], draw(centred(chosen[n]), drawn[n].width))) for n in wrong[:_SHOWN]]
    return captioned_grid(shown) if shown else None, len(wrong)


def beside(left: Image.Image, right: Image.Image) -> Image.Image:
    both = Image.new("RGB", (left.width + right.width, left.height), "white")
    both.paste(left, (0, 0))
    both.paste(right, (left.width, 0))
    return both


def grid(rows: dict[str, list[Image.Image]]) -> Image.Image:
    return labelled_grid([(LANGUAGES[tag], row) for tag, row in rows.items()])


def drawn(
    pipeline: AltDiffusionPipeline, prompts: Prompts, rows: dict[str, list[Image.Image]], tried: int
) -> dict[str, tuple[Image.Image | None, str]]:
    """Name → picture, if there is any, and the sentence below it."""
    wrong, number = failures(pipeline, prompts, tried)
    few = f"The first {_SHOWN}" if number > _SHOWN else "These"
    return {
        "languages": (
            grid(rows),
            "The same five names in 18 languages, a seed for each column.",
        ),
        "pairs": (pairs(pipeline, prompts), "Pairs that training never showed, one a language, not chosen."),
        "failures": (
            wrong,
            f"Of {tried} English names {number} are not among the five that the judge finds. {few}, each "
            "beside what was wanted.",
        ),
    }


def write(folder: Path, tried: int, readme: Path | None = None) -> None:
    """Into the card of the model in `folder`, and into the picture `readme`, if it is given."""
    pipeline, prompts = drawing(folder), Prompts()
    rows = languages(pipeline, prompts)
    place, lines = folder / "pictures", ["## Pictures", ""]
    place.mkdir(exist_ok=True)
    for name, (picture, text) in drawn(pipeline, prompts, rows, tried).items():
        file = place / f"{name}.webp"
        if picture is None:
            file.unlink(missing_ok=True)
            continue
        with aside.file(file) as made:
            picture.save(made, "WEBP", quality=80, method=6)
        lines += [f"![{text}](pictures/{file.name})", "", text, ""]
    put(folder / "README.md", MARK, "\n".join(lines))
    bundled.write_manifest(folder)
    if readme is not None:
        with aside.file(readme) as made:
            grid({tag: rows[tag] for tag in README_LANGUAGES}).save(made, "PNG")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--failures-of", type=int, default=200, help="English prompts to find failures among")
    write(bundled.FOLDER, parser.parse_args().failures_of, README_PICTURE)


if __name__ == "__main__":
    main()
