"""What all tabs share: pictures out of uploads, news of a drawing as HTML, files with their metadata.

Handlers get raw values (`preprocess=False`): gradio's own checks differ from widget to widget, let `NaN`
through and refuse without a word what they refuse. So all that is asked goes to the service as it came.
"""

import contextlib
import html
import json
import math
import secrets
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder
from PIL import Image

from altdiffusion.images import file_stem, open_image, save_png
from altdiffusion.languages import LANGUAGES
from altdiffusion.presets import PRESETS
from altdiffusion.requests import BadRequest, shorten
from altdiffusion.serving import Compared, Drawing, Drawn, Waiting
from altdiffusion.serving.shown import data_uri, kept

from .i18n import say, text, translate, visitor_language

#: For every event: streams, and hands raw values to our own checks.
RAW: dict[str, Any] = {
    "preprocess": False,
    "show_progress": "hidden",
    "concurrency_id": "model",
}
#: For events that only help the page.
HELPER: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "queue": False}
#: For every gallery.
PICTURES: dict[str, Any] = {
    "format": "png", "height": "auto", "object_fit": "contain", "fit_columns": False, "interactive": False,
}  # fmt: skip
#: The way to draw that the page and its endpoints begin with.
PRESET = "default"
_PRESETS = ("preset_exact", "preset_default", "preset_fast")
ENDONYMS = [(row.endonym, row.tag) for row in LANGUAGES.values()]


def upload_path(value: Any, argument: str) -> str | None:
    """The file of a widget's raw value; None is none.

    gradio checks that it was uploaded only where the value says itself that it is a file (`meta`).
    """
    if value is None:
        return None
    path = value.get("path") if isinstance(value, dict) else None
    if not isinstance(path, str) or "\0" in path:
        raise BadRequest(f"{argument}: {shorten(value)} is not a picture; allowed an uploaded one")
    real = Path(path).resolve()
    if not real.is_relative_to(Path(get_upload_folder()).resolve()) or not real.is_file():
        raise BadRequest(f"{argument}: {shorten(path)} was not uploaded; allowed an uploaded picture")
    return str(real)


def uploaded(value: Any, argument: str = "picture") -> Image.Image | None:
    """A picture as `open_image` opens it: refused by header, upright, without its name in messages."""
    path = upload_path(value, argument)
    return None if path is None else open_image(Path(path).read_bytes(), argument)


def as_text(value: Any, argument: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise BadRequest(f"{argument}: {shorten(value)} is not text; allowed text")
    return value


def known_tags(value: Any) -> list[str]:
    """The languages of a list of ticks, each once."""
    found = [tag for tag in value if isinstance(tag, str)] if isinstance(value, list) else []
    return [tag for tag in dict.fromkeys(found) if tag in LANGUAGES]


def given(**fields: Any) -> dict[str, Any]:
    """Fields of a request less those left empty, which are the model's own."""
    return {name: value for name, value in fields.items() if value is not None and value != ""}


def picture_file(picture: Any) -> tuple[str, str]:
    """(path, caption) of a drawn picture as a PNG that says how it was made, in gradio's own folder.

    Files there are served to whoever knows the name, which nobody can guess, for an hour or so.
    """
    made = picture.provenance
    folder = Path(get_upload_folder()) / secrets.token_hex(20)
    folder.mkdir(parents=True)
    path = folder / f"{file_stem(made.prompt, 60)}-{made.seed}.png"
    save_png(picture.image, path, made)
    return str(path), made.prompt


def found_file(picture: Image.Image) -> str:
    return kept(picture, Path(get_upload_folder()))


def table(caption: str, rows: Iterable[tuple[str, str]], head: Iterable[str] = ()) -> str:
    """`rows` are a head and the cells after it, in HTML."""
    body = "".join(f"<tr>{first}{cells}</tr>" for first, cells in rows)
    head = f"<thead><tr>{''.join(head)}</tr></thead>" if head else ""
    return f"<table><caption>{html.escape(caption)}</caption>{head}<tbody>{body}</tbody></table>"


class Teller:
    """Turns a service's news into the HTML of the place for progress and preview."""

    def __init__(self, tag: str) -> None:
        self.tag, self.began, self.previews = tag, time.monotonic(), ""

    def show(self, news: Waiting | Drawing) -> str:
        if isinstance(news, Waiting):
            return self._bar(say("waiting", self.tag, position=news.position))
        if news.pictures:
            alt = html.escape(say("preview", self.tag))
            self.previews = "".join(
                f'<img alt="{alt}" src="{data_uri(image)}">' for image in news.pictures[-4:]
            )
        line = say("drawing_step", self.tag, step=news.step, steps=news.steps)
        if news.seconds_left is not None:
            line += " · " + say("seconds_left", self.tag, seconds=math.ceil(news.seconds_left))
        return self._bar(line, news.step / max(1, news.steps))

    def done(self, result: Drawn | Compared) -> str:
        """That it is done, and what the visitor should know of the pictures."""
        pictures = result.pictures.values() if isinstance(result, Compared) else result.pictures
        lines = [say("done_in", self.tag, seconds=f"{time.monotonic() - self.began:.1f}")]
        lines += [say("flagged", self.tag)] if any(picture.flagged for picture in pictures) else []
        cut = dict.fromkeys(line for picture in pictures for line in picture.left_out)
        return "<br>".join(map(html.escape, [*lines, *(translate(line, self.tag) for line in cut)]))

    @staticmethod
    def line(text: str) -> str:
        return f'<p class="ad-line" role="status">{html.escape(text)}</p>'

    def _bar(self, line: str, share: float = 0.0) -> str:
        percent = round(100 * share)
        bar = (
            f'<div class="ad-bar" role="progressbar" aria-valuemin="0" aria-valuemax="100" '
            f'aria-valuenow="{percent}" aria-label="{html.escape(line)}">'
            f'<span style="width:{percent}%"></span></div>'
        )
        return f'{self.line(line)}{bar}<div class="ad-previews">{self.previews}</div>'


def preset_menu(own: Any, *boxes: Any) -> gr.Dropdown:
    """Fills in its `boxes`, of the steps and, where there is one, of the scheduler; `own` is the model's."""
    values = {name: [one.steps or own.steps, one.scheduler or ""] for name, one in PRESETS.items()}
    for box, value in zip(boxes, values[PRESET], strict=False):
        box.value = value
    menu = gr.Dropdown(
        [(text(key), key.removeprefix("preset_")) for key in _PRESETS], value=PRESET, label=text("preset"),
        info=text("preset_help"), min_width=140,
    )  # fmt: skip
    wanted = "[name]" if len(boxes) > 1 else "[name][0]"
    menu.input(
        None, menu, list(boxes), js=f"(name) => ({json.dumps(values)}){wanted}", api_visibility="private"
    )
    return menu


def stops(stop: gr.Button, *drawings: tuple[Any, gr.HTML]) -> None:
    """Stop ends drawings; and where one ends without a picture, by Stop or an error, its bar goes.

    This follows the drawing's end, not the click: news on their way would come after it.
    """
    stop.click(None, None, None, cancels=[event for event, _ in drawings], api_visibility="private")
    for event, status in drawings:
        event.then(_ended, status, status, **HELPER)
        event.failure(_ended, status, status, **HELPER)


def _ended(shown: Any, request: gr.Request) -> Any:
    return Teller.line(say("cancelled", visitor_language(request))) if "ad-bar" in str(shown) else gr.skip()


def followed(ticket: Any, teller: Teller) -> Iterator[tuple[str, Any]]:
    """(HTML, None) for all news of a ticket, and at last (HTML, result).

    However the handler ends, by Stop, a closed tab or an error, it leaves the service's queue.
    """
    with contextlib.closing(ticket):
        for news in ticket:
            if isinstance(news, Waiting | Drawing):
                yield teller.show(news), None
            else:
                yield teller.done(news), news
