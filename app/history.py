"""What was drawn before: settings and small pictures, kept in the visitor's browser and nowhere else."""

import html
from typing import Any

import gradio as gr

from altdiffusion.requests import SCHEDULERS, BadRequest, shorten
from altdiffusion.serving.shown import data_uri

from .handling import HELPER
from .i18n import say, text, visitor_language

_MOST = 24  # pictures, some 3 kB each; browsers keep 5 MB for a page
#: What of a picture's making is kept, and set again by "reuse"; for what is missing, None is the model's own.
REUSED: dict[str, Any] = {
    "prompt": "", "negative_prompt": "", "steps": None, "guidance_scale": None, "width": None, "height": None,
    "seed": -1, "scheduler": "", "preset": "exact", "clip_skip": 0, "weighting": False,
}  # fmt: skip
_CLICK_JS = """element.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-number]");
  if (button) trigger("click", { number: Number(button.dataset.number) });
});"""


def kept(picture: Any) -> dict[str, Any]:
    """A drawn picture as the history keeps it."""
    made = picture.provenance.to_dict()
    return {name: made[name] for name in REUSED if name in made} | {"small": data_uri(picture.image, 64)}


class History:
    """The widgets; to be built where they are to be seen."""

    def __init__(self, own: Any) -> None:
        self._own = own
        with gr.Accordion(text("history"), open=True, elem_id="ad-history"):
            self.kept = gr.BrowserState([], storage_key="altdiffusion-history", secret="history")
            self.view = gr.HTML(js_on_load=_CLICK_JS, elem_id="ad-kept")
            self._clear = gr.Button(text("history_clear"), size="sm", min_width=120)

    def wire(self, page: gr.Blocks, settings: dict[str, Any], random: gr.Checkbox) -> None:
        targets = [*(settings[name] for name in REUSED), random]
        self.view.click(self._reuse, self.kept, targets, **HELPER)
        self._clear.click(self._cleared, None, [self.kept, self.view], **HELPER)
        page.load(self._shown, self.kept, self.view, **HELPER)

    def remember(self, entries: Any, made: Any, request: gr.Request) -> tuple[list[dict], str]:
        entries = ([made] if made else []) + _entries(entries)
        return entries[:_MOST], self._shown(entries[:_MOST], request)

    def _shown(self, entries: Any, request: gr.Request) -> str:
        tag = visitor_language(request)
        entries = _entries(entries)
        if not entries:
            return f"<p>{html.escape(say('history_empty', tag))}</p>"
        reuse = say("reuse", tag)
        buttons = [
            f'<button type="button" data-number="{number}" title="{html.escape(entry["prompt"])}"'
            f' aria-label="{html.escape(reuse)}: {html.escape(entry["prompt"])}">'
            f'<img alt="{html.escape(entry["prompt"])}" src="{html.escape(entry["small"])}"></button>'
            for number, entry in enumerate(entries)
        ]
        return f'<p>{html.escape(say("history_help", tag))}</p><div class="ad-kept">{"".join(buttons)}</div>'

    def _cleared(self, request: gr.Request) -> tuple[list, str]:
        return [], self._shown([], request)

    def _reuse(self, entries: Any, event: gr.EventData, request: gr.Request) -> list[Any]:
        entries, number = _entries(entries), event._data.get("number")
        if not isinstance(number, int) or not 0 <= number < len(entries):
            raise BadRequest(f"number: {shorten(number)}; allowed one of the history")
        gr.Info(say("settings_reused", visitor_language(request)))
        return reused(entries[number], self._own)


def reused(made: dict[str, Any], own: Any) -> list[Any]:
    """Values for the settings' widgets, in the order of `REUSED`, and for the tick at the random seed."""
    found = {name: made.get(name, default) for name, default in REUSED.items()}
    found["scheduler"] = found["scheduler"] if found["scheduler"] in SCHEDULERS else ""  # a class: its own
    values = [getattr(own, name, None) if value is None else value for name, value in found.items()]
    return [*values, found["seed"] == -1]


def _entries(value: Any) -> list[dict[str, Any]]:
    """What came back from the browser, as far as it is what we put there."""
    found = value if isinstance(value, list) else []
    return [
        entry
        for entry in found[:_MOST]
        if isinstance(entry, dict)
        and isinstance(entry.get("prompt"), str)
        and str(entry.get("small", "")).startswith("data:image/webp;base64,")
    ]
