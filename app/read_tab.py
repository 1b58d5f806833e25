"""Read back: drop a picture, see how it was made, and take its settings over."""

import html
from dataclasses import dataclass
from typing import Any

import gradio as gr

from altdiffusion.requests import BadRequest

from .handling import HELPER, RAW, upload_path
from .history import REUSED, reused
from .i18n import say, text, visitor_language

#: Fields of a note, which the labels of the settings also name, and one by another key.
_SHOWN = (
    "prompt", "negative_prompt", "seed", "preset", "steps", "scheduler", "guidance_scale", "width", "height",
    "strength", "clip_skip", "language", "model",
)  # fmt: skip
_KEYS = {"guidance_scale": "guidance"}


def build(service: Any, tabs: gr.Tabs, settings: dict[str, Any], random: gr.Checkbox) -> None:
    with gr.Row(equal_height=False):
        with gr.Column(scale=5, min_width=320):
            gr.Markdown(text("read_drop"))
            picture = gr.Image(
                label=text("picture"), sources=["upload", "clipboard"], height=320, buttons=[],
                elem_id="ad-read",
            )  # fmt: skip
        with gr.Column(scale=6, min_width=320):
            told = gr.HTML(
                label=text("how_made"), show_label=True, container=True, padding=True, elem_id="ad-told"
            )
            reuse = gr.Button(text("reuse"), variant="primary", interactive=False, elem_id="ad-reuse")
            made = gr.JSON(visible=False)
    read = picture.upload(_Handler(service).read, picture, made, api_name="read", **RAW)
    read.success(_told, made, [told, reuse], **HELPER)
    picture.clear(lambda: ("", gr.Button(interactive=False)), None, [told, reuse], **HELPER)
    targets = [*(settings[name] for name in REUSED), random]
    taken = reuse.click(_Handler(service).reuse, made, targets, preprocess=False, **HELPER)
    taken.success(lambda: gr.Tabs(selected="generate"), None, tabs, **HELPER)


@dataclass(frozen=True)
class _Handler:
    service: Any

    def read(self, picture: dict) -> dict:
        """Tell how a picture was made, from the note in its file: ours, or AUTOMATIC1111's.

        Args:
            picture: A PNG file.
        """
        if (path := upload_path(picture, "picture")) is None:
            raise BadRequest("picture: missing; allowed an uploaded picture")
        with open(path, "rb") as file:  # noqa: PTH123
            return self.service.read(file.read()).to_dict()

    def reuse(self, made: Any, request: gr.Request) -> list[Any]:
        if not isinstance(made, dict):
            raise BadRequest("picture: missing; allowed an uploaded picture")
        gr.Info(say("settings_reused", visitor_language(request)))
        return reused(made, self.service.info.generation_defaults)


def _told(made: dict[str, Any], request: gr.Request) -> tuple[str, Any]:
    tag = visitor_language(request)
    rows = "".join(
        f'<dt>{html.escape(say(_KEYS.get(name, name), tag))}</dt><dd dir="auto">{html.escape(str(one))}</dd>'
        for name in _SHOWN
        if (one := made.get(name)) not in (None, "")
    )
    return f'<dl class="ad-told">{rows}</dl>', gr.Button(interactive=True)
