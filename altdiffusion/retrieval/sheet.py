"""A contact sheet of what was found: people look rather than read."""

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from altdiffusion.grids import font_for
from altdiffusion.images import ImageError, open_image
from altdiffusion.retrieval.index import Hit
from altdiffusion.retrieval.pictures import printed

_SIDE = 192
_GAP = 8
_TEXT = 14
_LINES = 2 * (_TEXT + 4)


def contact_sheet(hits: Sequence[Hit]) -> Image.Image:
    """The pictures on white in reading order, each over its rank, its score and its name."""
    columns = min(5, math.ceil(math.sqrt(len(hits)))) or 1
    rows = math.ceil(len(hits) / columns)
    width, height = _SIDE + _GAP, _SIDE + _LINES + _GAP
    sheet = Image.new("RGB", (columns * width + _GAP, max(rows, 1) * height + _GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for number, hit in enumerate(hits):
        row, column = divmod(number, columns)
        left, top = _GAP + column * width, _GAP + row * height
        picture = _thumbnail(hit)
        sheet.paste(picture, (left + (_SIDE - picture.width) // 2, top + _SIDE - picture.height))
        more = f"  +{len(hit.alike)} alike" if hit.alike else ""
        first = f"{number + 1}.  {hit.score:.3f}{more}"
        draw.text((left, top + _SIDE + 2), first, "black", ImageFont.load_default(_TEXT))
        name = printed(hit.path.name)
        font = font_for(name, _TEXT) or ImageFont.load_default(_TEXT)
        draw.text((left, top + _SIDE + _TEXT + 6), _fitting(name, font), "gray", font)
    return sheet


def _thumbnail(hit: Hit) -> Image.Image:
    """The picture as it is now; a crossed box where there is none any more."""
    if hit.state != "missing":
        try:
            picture = open_image(hit.path)
            picture.thumbnail((_SIDE, _SIDE))
            return picture
        except ImageError:
            pass
    box = Image.new("RGB", (_SIDE, _SIDE), "lightgray")
    ImageDraw.Draw(box).line((0, 0, _SIDE, _SIDE), "gray", 2)
    ImageDraw.Draw(box).line((0, _SIDE, _SIDE, 0), "gray", 2)
    return box


def _fitting(name: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """As much of a name's end as there is room for: ends tell more of `IMG_20240531_0001.jpg` than starts."""
    if font.getlength(name) <= _SIDE:
        return name
    while name and font.getlength("..." + name) > _SIDE:
        name = name[1:]
    return "..." + name
