"""The small world of the bundled model: Noto's emoji as pictures, Unicode CLDR's names as captions in 18
languages.

Pictures: Debian's `fonts-noto-color-emoji` (SIL OFL 1.1). Names, keywords and list patterns:
`unicode-cldr-core` (Unicode licence). A scene is a pure function of (seed, index), so nothing is stored and
every run sees the same data.
"""

import hashlib
import xml.etree.ElementTree as ElementTree  # a Debian package's own files  # nosec B405
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from altdiffusion.languages import LANGUAGES

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
CLDR = Path("/usr/share/unicode/cldr/common")
#: The only size at which this bitmap font has pictures, and their size in pixels.
FONT_SIZE, GLYPH_SIZE = 109, (136, 128)
WHITE = (255, 255, 255)


@dataclass(frozen=True)
class Emoji:
    """The emoji and what is written about them: `names[tag][emoji]`, `keywords[tag][emoji]`."""

    characters: tuple[str, ...]
    """Those of one code point with a picture and a name in all languages: 1,364 with Debian 12's packages."""
    names: dict[str, dict[str, str]]
    keywords: dict[str, dict[str, tuple[str, ...]]]
    """Only those that one emoji of the language has: an ambiguous one teaches nothing about pictures."""
    list_patterns: dict[str, dict[str, str]]


@cache
def load_emoji() -> Emoji:
    for path, package in ((FONT, "fonts-noto-color-emoji"), (CLDR, "unicode-cldr-core")):
        if not path.exists():
            raise FileNotFoundError(f"{path} is missing: apt-get install {package}")
    names, keywords = {}, {}
    for tag in LANGUAGES:
        names[tag], keywords[tag] = annotations(tag)
    common = set.intersection(*(set(of_language) for of_language in names.values()))
    # Below U+0100 stand letters and signs (#, *, ©, ®) that the font only serves as parts of others.
    characters = tuple(sorted(c for c in common if len(c) == 1 and ord(c) > 0xFF and glyph(c).getbbox()))
    return Emoji(
        characters=characters,
        names={tag: {c: names[tag][c] for c in characters} for tag in LANGUAGES},
        keywords={tag: unambiguous(keywords[tag], names[tag], characters) for tag in LANGUAGES},
        list_patterns={tag: list_patterns(tag) for tag in LANGUAGES},
    )


def some_emoji(number: int) -> Emoji:
    """So many of the emoji, spread evenly, and what is written about them; 0: all."""
    emoji = load_emoji()
    if not number:
        return emoji
    if not 0 < number <= len(emoji.characters):
        raise ValueError(f"emoji: {number}; allowed: 0 (all) to {len(emoji.characters)}")
    last, spread = len(emoji.characters) - 1, max(1, number - 1)
    chosen = tuple(emoji.characters[round(i * last / spread)] for i in range(number))
    return replace(
        emoji,
        characters=chosen,
        names={tag: {c: of[c] for c in chosen} for tag, of in emoji.names.items()},
        keywords={tag: {c: of[c] for c in chosen} for tag, of in emoji.keywords.items()},
    )


def annotations(tag: str) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Short names (`type="tts"`) and keywords of one language."""
    names: dict[str, str] = {}
    keywords: dict[str, list[str]] = {}
    for folder in ("annotations", "annotationsDerived"):
        for node in ElementTree.parse(CLDR / folder / f"{tag}.xml").getroot().iter("annotation"):  # nosec B314
            if node.get("type") == "tts":
                names[node.attrib["cp"]] = (node.text or "").strip()
            else:
                keywords[node.attrib["cp"]] = [word.strip() for word in (node.text or "").split("|")]
    return names, keywords


def unambiguous(
    keywords: dict[str, list[str]], names: dict[str, str], characters: tuple[str, ...]
) -> dict[str, tuple[str, ...]]:
    owners: dict[str, set[str]] = {}
    for c in characters:
        for word in {*keywords.get(c, ()), names[c]}:
            owners.setdefault(word.casefold(), set()).add(c)
    return {
        c: tuple(
            word for word in keywords.get(c, ()) if len(owners[word.casefold()]) == 1 and word != names[c]
        )
        for c in characters
    }


def list_patterns(tag: str) -> dict[str, str]:
    """CLDR's standard list patterns: keys `2`, `start`, `middle`, `end`, each like "{0} and {1}".

    A part that a language leaves out is inherited from CLDR's root, where all of them read "{0}, {1}".
    """
    root = ElementTree.parse(CLDR / "main" / f"{tag}.xml").getroot()  # nosec B314
    standard = next(p for p in root.iter("listPattern") if p.get("type") is None)
    inherited = dict.fromkeys(("start", "middle", "end", "2"), "{0}, {1}")
    return inherited | {part.attrib["type"]: part.text or "" for part in standard}


@cache
def font() -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(FONT), FONT_SIZE)


@cache
def glyph(character: str) -> Image.Image:
    """The emoji as it is in the font: RGBA, 136x128, transparent ground."""
    picture = Image.new("RGBA", GLYPH_SIZE, (*WHITE, 0))
    ImageDraw.Draw(picture).text((0, 0), character, font=font(), embedded_color=True)
    return picture


@dataclass(frozen=True)
class Placed:
    """One emoji of a scene: its centre and the width of its glyph, as shares of the scene's side."""

    character: str
    x: float
    y: float
    width: float


@dataclass(frozen=True)
class Scene:
    """One to four emoji on a ground of one colour or shaded between two, from top to bottom."""

    placed: tuple[Placed, ...]
    top: tuple[int, int, int] = WHITE
    bottom: tuple[int, int, int] = WHITE
    ground: str = field(default="", repr=False)
    """The colour that captions call the ground (`training.grounds`); none: they are silent about it."""

    @property
    def characters(self) -> tuple[str, ...]:
        return tuple(p.character for p in self.placed)


#: (columns, rows) of the grid that holds so many emoji, and which of its cells they take.
CELLS = {1: (1, 1), 2: (2, 1), 3: (2, 2), 4: (2, 2)}


def random_scene(
    seed: int,
    index: int,
    choices: tuple[str, ...],
    counts: tuple[int, ...] = (1,),
    pastel: float = 0.0,
    spread: float = 1.0,
) -> Scene:
    """Scene number `index` of the stream `seed`: emoji from `choices`, as many as one of `counts`.

    `pastel` is the share of coloured grounds, `spread` scales how much places and sizes vary.
    """
    random = np.random.default_rng((seed, index))
    count = int(random.choice(counts))
    columns, rows = CELLS[count] if count != 2 or random.random() < 0.5 else (1, 2)
    cells = random.permutation(columns * rows)[:count]
    placed = []
    for character, cell in zip(random.choice(len(choices), count, replace=False), cells, strict=True):
        room = 1 / max(columns, rows)
        width = room * (0.85 + spread * random.uniform(-0.07, 0.07))
        slack = spread * (room - width) / 2
        x = (cell % columns + 0.5) / columns + random.uniform(-slack, slack)
        y = (cell // columns + 0.5) / rows + random.uniform(-slack, slack)
        placed.append(Placed(choices[character], float(x), float(y), float(width)))
    top = bottom = WHITE
    if random.random() < pastel:
        top = light_colour(random)
        bottom = top if random.random() < 0.5 else light_colour(random)
    return Scene(tuple(placed), top, bottom)


def light_colour(random: np.random.Generator) -> tuple[int, int, int]:
    red, green, blue = random.integers(190, 256, 3).tolist()
    return red, green, blue


def in_a_row(characters: tuple[str, ...]) -> Scene:
    """These emoji side by side from left to right, as their caption names them, on white."""
    share = 1 / len(characters)
    return Scene(tuple(Placed(c, (n + 0.5) * share, 0.5, 0.85 * share) for n, c in enumerate(characters)))


def in_rows_of_two(characters: tuple[str, ...]) -> Scene:
    """Two to four emoji of one size in reading order, on white; a third one stands in the middle below."""
    rows = [in_a_row(characters[first : first + 2]).placed for first in range(0, len(characters), 2)]
    heights = [(n + 0.5) / len(rows) for n in range(len(rows))]
    width = 0.85 / 2
    return Scene(
        tuple(Placed(p.character, p.x, y, width) for row, y in zip(rows, heights, strict=True) for p in row)
    )


def in_reading_order(scene: Scene, turned: bool = False) -> Scene:
    """The scene with its emoji listed from left to right and down, or if `turned` with the last in the first
    one's place and so on. Of `random_scene`, whose rows lie in three different thirds of the height."""
    placed = sorted(scene.placed, key=lambda one: (int(3 * one.y), one.x))
    characters = [one.character for one in placed]
    names = reversed(characters) if turned else characters
    return replace(
        scene, placed=tuple(replace(one, character=c) for one, c in zip(placed, names, strict=True))
    )


def centred(character: str) -> Scene:
    """The one picture of an emoji that stands for it in evaluation: in the middle, on white."""
    return in_a_row((character,))


def draw(scene: Scene, size: int) -> Image.Image:
    """The scene as an RGB picture of size x size."""
    picture = Image.new("RGB", (size, size), scene.top)
    if scene.bottom != scene.top:
        ramp = np.linspace(0, 1, size)[:, None, None]
        ground = np.array(scene.top) * (1 - ramp) + np.array(scene.bottom) * ramp
        picture = Image.fromarray(np.broadcast_to(ground, (size, size, 3)).round().astype(np.uint8))
    for placed in scene.placed:
        width = max(1, round(placed.width * size))
        height = max(1, round(width * GLYPH_SIZE[1] / GLYPH_SIZE[0]))
        small = resized_glyph(placed.character, width, height)
        corner = (round(placed.x * size - width / 2), round(placed.y * size - height / 2))
        picture.paste(small, corner, small)
    return picture


@lru_cache(maxsize=20_000)  # some 9 KB each
def resized_glyph(character: str, width: int, height: int) -> Image.Image:
    return glyph(character).resize((width, height), Image.Resampling.LANCZOS)


def pixels(scenes: list[Scene], size: int) -> np.ndarray:
    """(scenes, 3, size, size), float32 in [-1, 1]."""
    stacked = np.stack([np.asarray(draw(scene, size)) for scene in scenes])
    return stacked.transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1


def held_out(share: float, *keys: str) -> bool:
    """Whether these keys belong to the `share` that no training sees: a hash decides, in every run alike."""
    digest = hashlib.sha256("\x1f".join(keys).encode()).digest()
    return int.from_bytes(digest[:4], "big") < share * 2**32
