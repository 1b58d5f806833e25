"""Pictures side by side, labelled in their languages' own scripts with the fonts that this machine has."""

import contextlib
import math
import unicodedata
import warnings
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont, features

from altdiffusion.languages import Language

_GAP = 8  # pixels of white between pictures


def labelled_grid(rows: Sequence[tuple[Language, Sequence[Image.Image]]]) -> Image.Image:
    """Pictures on white under their language's label: a row each, or all wrapped where each has but one.

    A label is the language's own name and its tag; where this machine cannot draw that name, the English one,
    and one warning says so.
    """
    widest = max(len(pictures) for _, pictures in rows)
    columns = widest if widest > 1 else math.ceil(math.sqrt(len(rows)))
    lines = len(rows) if widest > 1 else math.ceil(len(rows) / columns)
    every = [picture for _, pictures in rows for picture in pictures]
    text_size = max(10, min(every[0].width // 7, 32))
    width = _GAP + max(text_size * 7, *(picture.width for picture in every))
    height = _GAP + 2 * text_size + max(picture.height for picture in every)
    grid = Image.new("RGB", (columns * width + _GAP, lines * height + _GAP), "white")
    undrawn = []
    for row, (spoken, pictures) in enumerate(rows):
        for column, picture in enumerate(pictures):
            line, place = divmod(row * widest + column, columns)
            corner = _GAP + place * width, _GAP + line * height
            grid.paste(picture, (corner[0], corner[1] + 2 * text_size))
            if column == 0 and not _label(grid, spoken, corner, text_size):
                undrawn.append(spoken.tag)
    if undrawn:
        warnings.warn(f"labels: no font here for the names of {', '.join(undrawn)}; in English", stacklevel=2)
    return grid


def captioned_grid(items: Sequence[tuple[str, Image.Image]]) -> Image.Image:
    """Pictures on white, each under its own text in whatever script it is written; long texts are cut.

    Where this machine cannot draw a text there is its number, and one warning says so.
    """
    columns = math.ceil(math.sqrt(len(items)))
    first = items[0][1]
    size = max(10, min(first.width // 12, 24))
    width, height = _GAP + max(first.width, 12 * size), _GAP + 2 * size + first.height
    lines = math.ceil(len(items) / columns)
    grid = Image.new("RGB", (columns * width + _GAP, lines * height + _GAP), "white")
    draw, undrawn = ImageDraw.Draw(grid), []
    for number, (text, picture) in enumerate(items):
        line, place = divmod(number, columns)
        left, top = _GAP + place * width, _GAP + line * height
        grid.paste(picture, (left, top + 2 * size))
        font = font_for(text, size)
        if font is None:
            undrawn.append(number + 1)
            text, font = str(number + 1), ImageFont.load_default(size)
        direction = "rtl" if _right_to_left(text) and features.check("raqm") else None
        while draw.textlength(text, font, direction=direction) > width - _GAP:
            text = f"{text.rstrip('…')[:-1]}…"
        draw.text((left, top + size + size // 3), text, "black", font, anchor="ls", direction=direction)
    if undrawn:
        warnings.warn(f"labels: no font here for texts {', '.join(map(str, undrawn))}", stacklevel=2)
    return grid


def _right_to_left(text: str) -> bool:
    return any(unicodedata.bidirectional(letter) in ("R", "AL") for letter in text)


def font_for(text: str, size: int) -> ImageFont.FreeTypeFont | None:
    """A font of this machine that has every letter of the text; those that join need raqm as well."""
    joined = _right_to_left(text) or any("\u0900" <= letter <= "\u097f" for letter in text)
    if joined and not features.check("raqm"):
        return None
    names = (*_ANY_FONTS, *(name for fonts in _FONTS.values() for name in fonts))
    return next((font for name in names if (font := _covering(name, text, size))), None)


def _covering(name: str, text: str, size: int) -> ImageFont.FreeTypeFont | None:
    """The font of this name, if this machine has it and it has every letter."""
    with contextlib.suppress(OSError):
        font = ImageFont.truetype(name, size)
        blank = _glyph(font, "\U0010ffff")
        if all(_glyph(font, letter) != blank for letter in set(text) if not letter.isspace()):
            return font
    return None


def _label(grid: Image.Image, spoken: Language, corner: tuple[int, int], size: int) -> bool:
    """Whether the language's own name could be drawn."""
    own = _font(spoken, size)
    plain = ImageFont.load_default(size)
    font, name = (own, spoken.endonym) if own else (plain, spoken.name)
    draw = ImageDraw.Draw(grid)
    baseline = corner[1] + size + size // 3
    direction = "rtl" if own and spoken.direction == "rtl" else None
    draw.text((corner[0], baseline), name, "black", font, anchor="ls", direction=direction)
    right = corner[0] + draw.textlength(name, font, direction=direction) + size // 2
    draw.text((right, baseline), spoken.tag, "gray", plain, anchor="ls")
    return own is not None


#: Fonts that come with Linux distributions, macOS and Windows, by the script they are looked up for.
_CJK = ("NotoSansCJK-Regular.ttc", "wqy-microhei.ttc")
_FONTS = {
    "zh": (*_CJK, "NotoSansSC-Regular.otf", "PingFang.ttc", "msyh.ttc"),
    "ja": (*_CJK, "NotoSansJP-Regular.otf", "ipag.ttf", "Hiragino Sans GB.ttc", "meiryo.ttc"),
    "ko": (*_CJK, "NotoSansKR-Regular.otf", "NanumGothic.ttf", "AppleGothic.ttf", "malgun.ttf"),
    "th": ("NotoSansThai-Regular.ttf", "Waree.ttf", "Garuda.ttf", "Thonburi.ttc", "tahoma.ttf"),
    "hi": ("NotoSansDevanagari-Regular.ttf", "Lohit-Devanagari.ttf", "Kohinoor.ttc", "mangal.ttf"),
    "ar": ("NotoNaskhArabic-Regular.ttf", "NotoSansArabic-Regular.ttf"),
}
_ANY_FONTS = (
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "LiberationSans-Regular.ttf",
    "Arial Unicode.ttf",
    "arial.ttf",
)


def _font(spoken: Language, size: int) -> ImageFont.FreeTypeFont | None:
    """A font of this machine for the language's own name; scripts that join need Pillow's raqm as well."""
    if spoken.tag in ("ar", "hi") and not features.check("raqm"):
        return None
    for name in (*_FONTS.get(spoken.tag, ()), *_ANY_FONTS):
        if font := _covering(name, spoken.endonym, size):
            return font
    return None


def _glyph(font: ImageFont.FreeTypeFont, letter: str) -> bytes:
    """How the font draws a letter; those that it lacks all look alike."""
    image = Image.new("L", (3 * int(font.size), 3 * int(font.size)))
    ImageDraw.Draw(image).text((font.size, font.size), letter, 255, font)
    return image.tobytes()
