"""Compare languages: the same prompt in several, drawn from one seed; and a slider from one to another."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr

from altdiffusion.languages import LANGUAGES
from altdiffusion.requests import BadRequest, GenerateRequest, prompts_by_language, shorten

from .handling import (
    ENDONYMS,
    HELPER,
    PICTURES,
    PRESET,
    RAW,
    Teller,
    as_text,
    followed,
    found_file,
    given,
    known_tags,
    picture_file,
    preset_menu,
    stops,
    table,
)
from .i18n import EXAMPLES, say, text, visitor_language

_FIRST = ("en", "zh", "ar", "th", "hi", "ru")


def build(service: Any) -> None:
    gr.Markdown(text("compare_help"))
    with gr.Row(equal_height=False):
        with gr.Column(scale=5, min_width=320):
            prompt = gr.Textbox(EXAMPLES["en"][0], label=text("prompt"), lines=1, elem_id="ad-one")
            tags = gr.CheckboxGroup(ENDONYMS, value=list(_FIRST), label=text("languages"))
            fill = gr.Button(text("fill_versions"), size="sm", visible=bool(service.info.covered))
            versions = gr.Textbox(
                _lines({tag: EXAMPLES[tag][0] for tag in _FIRST}), label=text("versions"),
                info=text("versions_help"), lines=6, max_lines=20, elem_id="ad-versions",
                elem_classes="ad-submits",
            )  # fmt: skip
            with gr.Row():
                seed = gr.Number(7, label=text("seed"), min_width=100)
                steps = gr.Number(label=text("steps"), min_width=100)
            preset = preset_menu(service.info.generation_defaults, steps)
            with gr.Row():
                run = gr.Button(text("compare"), variant="primary", min_width=120, elem_id="ad-compare")
                stop = gr.Button(text("stop"), variant="stop", min_width=120)
        with gr.Column(scale=6, min_width=320):
            status = gr.HTML(elem_id="ad-compare-status")
            grid = gr.Image(
                label=text("grid"), format="png", interactive=False, buttons=["download", "fullscreen"],
                elem_id="ad-grid",
            )  # fmt: skip
            scores = gr.JSON(visible=False)
            tables = gr.HTML(elem_id="ad-tables")
    fill.click(_Handler(service).fill, [prompt, tags], versions, preprocess=False, **HELPER)
    event = gr.on(
        [run.click, versions.submit], _Handler(service).compare, [versions, seed, steps, preset],
        [grid, status, scores], api_name="compare", **RAW,
    )  # fmt: skip
    event.success(_tables, scores, tables, **HELPER)
    mixing, mix_status = _mixing(service, [seed, steps, preset])
    stops(stop, (event, status), (mixing, mix_status))


def _mixing(service: Any, settings: list[Any]) -> tuple[Any, gr.HTML]:
    with gr.Accordion(text("mix"), open=True, elem_id="ad-mix"), gr.Row(equal_height=False):
        with gr.Column(scale=5, min_width=320):
            first = gr.Textbox(EXAMPLES["en"][0], label=text("mix_first"))
            second = gr.Textbox(EXAMPLES["th"][-1], label=text("mix_second"))
            share = gr.Slider(0, 1, 0.5, step=0.05, label=text("mix_share"), elem_id="ad-share")
            run = gr.Button(text("generate"), variant="primary", elem_id="ad-mix-run")
        with gr.Column(scale=6, min_width=320):
            status = gr.HTML()
            mixed = gr.Gallery(
                label=text("gallery"), columns=2, buttons=["download"], elem_id="ad-mixed", **PICTURES
            )
    event = gr.on(
        [share.release, run.click], _Handler(service).mix, [first, second, share, *settings],
        [mixed, status], api_name="mix", trigger_mode="always_last", **RAW,
    )  # fmt: skip
    return event, status


@dataclass(frozen=True)
class _Handler:
    service: Any

    def compare(
        self,
        versions: str,
        seed: int = 7,
        steps: int | None = None,
        preset: str = PRESET,
        request: gr.Request | None = None,
    ) -> Iterator[tuple]:
        """Draw the same prompt in several languages from one seed, and compare texts and pictures.

        Returns the labelled grid, a line of text, and the cosines of AltCLIP's features by language.

        Args:
            versions: Lines of `tag: prompt`, as `en: lobster`, one for each language.
            seed: All pictures'; -1 draws one.
            steps: Steps from noise to picture; null is the preset's number.
            preset: A way to draw: exact, default or fast.
        """
        prompts = {}
        for tag, found in prompts_by_language(as_text(versions, "versions"), "versions").items():
            if len(found) > 1:
                raise BadRequest(f"versions: {shorten(tag)} twice; allowed one line for each language")
            prompts[tag] = found[0]
        asked = GenerateRequest.build(
            prompt=next(iter(prompts.values())), **given(seed=seed, steps=steps, preset=preset)
        )
        ticket = self.service.compare(prompts, asked)
        for shown, result in followed(ticket, Teller(visitor_language(request))):
            if result is None:
                yield gr.skip(), shown, gr.skip()
            else:
                scores = {
                    "languages": list(result.pictures), "texts": result.texts, "pictures": result.images
                }  # fmt: skip
                yield found_file(result.grid), shown, scores

    def mix(
        self,
        first: str,
        second: str,
        share: float = 0.5,
        seed: int = 7,
        steps: int | None = None,
        preset: str = PRESET,
        request: gr.Request | None = None,
    ) -> Iterator[tuple]:
        """Draw a picture on the way from one prompt to another, perhaps in another language.

        Returns the picture and a line of text.

        Args:
            first: Where the way begins.
            second: Where it ends.
            share: How far to go, from 0 to 1.
            seed: The picture's; -1 draws one.
            steps: Steps from noise to picture; null is the preset's number.
            preset: A way to draw: exact, default or fast.
        """
        asked = GenerateRequest.build(
            prompt=first, mix=second, mix_share=share, **given(seed=seed, steps=steps, preset=preset)
        )
        for shown, result in followed(self.service.generate(asked), Teller(visitor_language(request))):
            files = gr.skip() if result is None else [picture_file(picture) for picture in result.pictures]
            yield files, shown

    def fill(self, prompt: Any, tags: Any, request: gr.Request) -> str:
        """The prompt in other languages, where the model's own names are known."""
        found = self.service.versions_of(as_text(prompt, "prompt"), known_tags(tags))
        if not found:
            raise gr.Error(say("versions_missing", visitor_language(request)), print_exception=False)
        return _lines(found)


def _lines(versions: dict[str, str]) -> str:
    return "\n".join(f"{tag}: {prompt}" for tag, prompt in versions.items())


def _tables(scores: dict[str, Any], request: gr.Request) -> str:
    """Cosines as tables that are coloured as well as written."""
    tag, tags = visitor_language(request), scores["languages"]
    across, down = (
        [f'<th scope="{scope}" title="{LANGUAGES[one].endonym}">{one}</th>' for one in tags]
        for scope in ("col", "row")
    )
    tables = []
    for key, part in (("text_similarity", "texts"), ("picture_similarity", "pictures")):
        rows = [
            "".join(f'<td style="--share:{max(0.0, value):.2f}">{value:.2f}</td>' for value in row)
            for row in scores[part]
        ]
        if rows:
            tables.append(table(say(key, tag), zip(down, rows, strict=True), ["<td></td>", *across]))
    return f'<div class="ad-tables">{"".join(tables)}</div>'
