"""Search: by text in any language, by a picture, or by both; and on from what was found."""

from dataclasses import dataclass
from typing import Any

import gradio as gr

from altdiffusion.images import open_image
from altdiffusion.requests import BadRequest, shorten

from .handling import HELPER, PICTURES, RAW, as_text, found_file, upload_path, uploaded
from .i18n import say, text, visitor_language


def build(service: Any, tabs: gr.Tabs, start: Any) -> None:
    if not service.info.has_search:
        gr.Markdown(text("no_search"))
    with gr.Row(equal_height=False):
        with gr.Column(scale=4, min_width=320):
            query = gr.Textbox(
                "", label=text("query"), placeholder=text("query_placeholder"), elem_id="ad-query"
            )
            picture = gr.Image(
                label=text("query_picture"), sources=["upload", "clipboard"], format="png", height=220,
                buttons=[], elem_id="ad-query-picture",
            )  # fmt: skip
            run = gr.Button(text("search"), variant="primary", elem_id="ad-search")
            with gr.Accordion(text("advanced"), open=False):
                weight = gr.Slider(0, 1, 0.5, step=0.05, label=text("weight"))
                more = gr.Textbox("", label=text("more_like"))
                less = gr.Textbox("", label=text("less_like"))
                count = gr.Number(12, label=text("results_count"))
        with gr.Column(scale=7, min_width=320):
            results = gr.Gallery(
                label=text("results"), columns=4, allow_preview=False, buttons=[], elem_id="ad-results",
                **PICTURES,
            )  # fmt: skip
            with gr.Row():
                similar = gr.Button(text("find_similar"), size="sm", min_width=120, interactive=False)
                use = gr.Button(text("use_to_start"), size="sm", min_width=120, interactive=False)
            scores = gr.JSON(visible=False)
    chosen = gr.State()
    inputs = [query, picture, weight, more, less, count]
    handler = _Handler(service)
    outputs = [results, scores]
    event = gr.on([run.click, query.submit], handler.search, inputs, outputs, api_name="search", **RAW)
    event.success(_none_chosen, None, [chosen, similar, use], **HELPER)
    results.select(_choose, None, [chosen, similar, use], **HELPER)
    found = similar.click(_chosen_picture, [results, chosen], picture, preprocess=False, **HELPER)
    found.success(lambda: "", None, query, **HELPER).success(
        handler.search, inputs, outputs, api_visibility="private", **RAW
    ).success(_none_chosen, None, [chosen, similar, use], **HELPER)
    used = use.click(_chosen_picture, [results, chosen], start, preprocess=False, **HELPER)
    used.success(lambda: gr.Tabs(selected="generate"), None, tabs, **HELPER)


@dataclass(frozen=True)
class _Handler:
    service: Any

    def search(
        self,
        text: str = "",
        image: dict | None = None,
        weight: float = 0.5,
        more: str = "",
        less: str = "",
        count: int = 12,
        request: gr.Request | None = None,
    ) -> tuple[list, list]:
        """Find pictures by text in any language, by a picture, or by both.

        Returns pictures with score and caption, the best first, and the same as name, caption, score.

        Args:
            text: What to look for.
            image: A picture to be like.
            weight: The picture's share beside a text, from 0 to 1.
            more: This, but more like that.
            less: This, but less like that.
            count: Results at most.
        """
        hits = self.service.search(
            as_text(text, "text"), image=uploaded(image, "image"), weight=weight, k=count,
            more=as_text(more, "more"), less=as_text(less, "less"),
        )  # fmt: skip
        tag = visitor_language(request)
        if not hits:
            gr.Info(say("nothing_found", tag))
        shown = [
            (found_file(hit.picture), f"{hit.score:.2f} {hit.names.get(tag, hit.caption)}") for hit in hits
        ]
        told = [{"name": hit.name, "caption": hit.caption, "score": round(hit.score, 4)} for hit in hits]
        return shown, told


def _choose(event: gr.SelectData) -> tuple:
    return event.index, gr.Button(interactive=True), gr.Button(interactive=True)


def _none_chosen() -> tuple:
    return None, gr.Button(interactive=False), gr.Button(interactive=False)


def _chosen_picture(results: Any, number: Any) -> Any:
    """The file comes with the gallery, of which gradio has checked that it is one of ours."""
    if not isinstance(number, int) or not isinstance(results, list) or not 0 <= number < len(results):
        raise BadRequest(f"picture: {shorten(number)}; allowed one of the results")
    return open_image(upload_path(results[number].get("image"), "picture") or "", "picture")
