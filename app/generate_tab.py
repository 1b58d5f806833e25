"""Generate: a prompt becomes pictures, previewed as they grow, from nothing, a picture or part of one."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.components.image_editor import ImageEditor
from PIL import Image, ImageChops

from altdiffusion.images import open_image
from altdiffusion.languages import LANGUAGES
from altdiffusion.requests import BadRequest, GenerateRequest, shorten

from .handling import (
    HELPER,
    PICTURES,
    PRESET,
    RAW,
    Teller,
    followed,
    given,
    picture_file,
    preset_menu,
    stops,
    upload_path,
    uploaded,
)
from .history import History, kept
from .i18n import EXAMPLES, say, text, visitor_language

_MOST_LAYERS = 8
#: The seed -1 is a random one. In the browser, the tick sets the box, and a number takes the tick away.
_TICKED_JS = "(random, used) => random ? -1 : Number(used || 0)"
_TYPED_JS = "(seed) => seed === null || seed < 0"


@dataclass(frozen=True)
class Parts:
    """What other tabs need of this one: the settings' widgets, and where a start picture goes."""

    settings: dict[str, Any]
    random: gr.Checkbox
    start: ImageEditor


def build(service: Any, page: gr.Blocks) -> Parts:
    with gr.Row(equal_height=False):
        with gr.Column(scale=5, min_width=320):
            prompt = gr.Textbox(
                label=text("prompt"), placeholder=text("prompt_placeholder"), lines=2, max_lines=6,
                autofocus=True, elem_id="ad-prompt", elem_classes="ad-submits",
            )  # fmt: skip
            with gr.Row():
                run = gr.Button(text("generate"), variant="primary", elem_id="ad-generate", min_width=120)
                stop = gr.Button(text("stop"), variant="stop", elem_id="ad-stop", min_width=120)
            gr.Examples(
                [[EXAMPLES[tag][0]] for tag in LANGUAGES],
                prompt,
                label=text("examples"),
                examples_per_page=18,
                api_visibility="private",
            )
            settings, random = _advanced(service)
            start, strength = _start()
        with gr.Column(scale=6, min_width=320):
            status = gr.HTML(elem_id="ad-status")
            gallery = gr.Gallery(
                label=text("gallery"), columns=2, buttons=["download", "fullscreen"], elem_id="ad-gallery",
                **PICTURES,
            )  # fmt: skip
            used = gr.Textbox(label=text("seed_used"), interactive=False, elem_id="ad-used")
            history = History(service.info.generation_defaults)
    settings = {"prompt": prompt} | settings
    made = gr.State()
    event = gr.on(
        [run.click, prompt.submit], _Handler(service).generate, [*settings.values(), start, strength],
        [gallery, status, used, made], api_name="generate", **RAW,
    )  # fmt: skip
    event.success(history.remember, [history.kept, made], [history.kept, history.view], **HELPER)
    history.wire(page, settings, random)
    stops(stop, (event, status))
    random.input(None, [random, used], settings["seed"], js=_TICKED_JS, api_visibility="private")
    settings["seed"].input(None, settings["seed"], random, js=_TYPED_JS, api_visibility="private")
    return Parts(settings, random, start)


def _advanced(service: Any) -> tuple[dict[str, Any], gr.Checkbox]:
    """The boxes begin with the model's own values: gradio shows an empty one as 0."""
    own = service.info.generation_defaults
    made = {}
    with gr.Accordion(text("advanced"), open=False, elem_id="ad-advanced"):
        made["negative_prompt"] = gr.Textbox(
            "", label=text("negative_prompt"), info=text("negative_prompt_help")
        )
        with gr.Row():
            made["steps"] = _number("steps", own.steps)
            made["guidance_scale"] = _number("guidance", own.guidance_scale, 0.5, text("guidance_help"))
        with gr.Row():
            made["width"] = _number("width", own.width, step=8)
            made["height"] = _number("height", own.height, step=8)
        with gr.Row():
            made["seed"] = _number("seed", -1)
            random = gr.Checkbox(True, label=text("seed_random"), min_width=100)
        choices = [(text("scheduler_own"), ""), *((name, name) for name in service.info.schedulers)]
        with gr.Row():
            made["scheduler"] = gr.Dropdown(choices, label=text("scheduler"), min_width=140)
            made["preset"] = preset_menu(own, made["steps"], made["scheduler"])
        with gr.Row():
            made["clip_skip"] = _number("clip_skip", 0, info=text("clip_skip_help"))
            made["count"] = _number("count", 1)
        made["weighting"] = gr.Checkbox(False, label=text("weighting"), info=text("weighting_help"))
    return made, random


def _number(key: str, value: float, step: float = 1, info: Any = None) -> gr.Number:
    return gr.Number(value, label=text(key), step=step, info=info, min_width=100)


def _start() -> tuple[ImageEditor, gr.Slider]:
    with gr.Accordion(text("image_to_image"), open=False, elem_id="ad-start"):
        start = gr.ImageEditor(
            label=text("start_picture"), placeholder=text("start_picture_help"), transforms=(), layers=False,
            sources=("upload", "clipboard"), brush=gr.Brush(colors=["#e11d48"], color_mode="fixed"),
            format="png", canvas_size=(512, 512), height=420, buttons=[], elem_id="ad-editor",
        )  # fmt: skip
        gr.Markdown(text("mask_help"))
        strength = gr.Slider(0, 1, 0.8, step=0.05, label=text("strength"), info=text("strength_help"))
    start.accept_blobs = None  # type: ignore[method-assign]  # unbounded, and the page uploads files instead
    return start, strength


@dataclass(frozen=True)
class _Handler:
    service: Any

    def generate(
        self,
        prompt: str,
        negative_prompt: str = "",
        steps: int | None = None,
        guidance_scale: float | None = None,
        width: int | None = None,
        height: int | None = None,
        seed: int = -1,
        scheduler: str = "",
        preset: str = PRESET,
        clip_skip: int = 0,
        count: int = 1,
        weighting: bool = False,
        start: dict | None = None,
        strength: float = 0.8,
        request: gr.Request | None = None,
    ) -> Iterator[tuple]:
        """Draw pictures from a prompt in any of 18 languages.

        Returns the pictures as PNG files that say how they were made, a line, and the seed of the first.

        Args:
            prompt: What the pictures should show.
            negative_prompt: What they should not show.
            steps: Steps from noise to picture; null is the preset's number.
            guidance_scale: How closely to follow the prompt; null is the model's own.
            width: Pixels, a multiple of 8; null is the model's own.
            height: As width.
            seed: Of the first picture; number i has seed + i. -1 draws one.
            scheduler: The name of one; empty is the preset's.
            preset: A way to draw: exact is the model's own, default takes fewer steps, fast leaves more out.
            clip_skip: Last layers of the text encoder to leave out.
            count: How many pictures.
            weighting: Whether (word:1.3) and [word] weigh words.
            start: A picture to start from, {"background": file, "layers": [file], "composite": null}; where a
                layer is painted, and only there, it is drawn anew.
            strength: How far to go from the start picture, up to 1.
        """
        tag = visitor_language(request)
        background, mask = _opened(start)
        fields = given(
            negative_prompt=negative_prompt, steps=steps, guidance_scale=guidance_scale, width=width,
            height=height, seed=seed, scheduler=scheduler, preset=preset, clip_skip=clip_skip, count=count,
            weighting=weighting, strength=strength if background else None,
        )  # fmt: skip
        asked = GenerateRequest.build(prompt=prompt, **fields)
        if not asked.prompt:
            raise gr.Error(say("empty_prompt", tag), print_exception=False)
        ticket = self.service.generate(asked, start=background, mask=mask)
        for shown, result in followed(ticket, Teller(tag)):
            if result is None:
                yield gr.skip(), shown, gr.skip(), gr.skip()
            else:
                files = [picture_file(picture) for picture in result.pictures]
                yield files, shown, str(result.pictures[0].provenance.seed), kept(result.pictures[0])


def _opened(value: Any) -> tuple[Image.Image | None, Image.Image | None]:
    """The editor's picture, and white where it is painted; None where there is none of either."""
    if value is None:
        return None, None
    if not isinstance(value, dict):
        raise BadRequest(f"image: {shorten(value)} is not a picture; allowed an uploaded one")
    layers = value.get("layers") or []
    if not isinstance(layers, list) or len(layers) > _MOST_LAYERS:
        raise BadRequest(f"mask: {shorten(layers)}; allowed at most {_MOST_LAYERS} pictures")
    background = uploaded(value.get("background"), "image")
    painted = [_painted(path) for layer in layers if (path := upload_path(layer, "mask"))]
    if background is None or not painted:
        return background, None
    mask = functools.reduce(ImageChops.lighter, [one.resize(painted[0].size) for one in painted])
    return background, mask if mask.getbbox() else None


def _painted(path: str) -> Image.Image:
    """White where a layer has any colour."""
    open_image(path, "mask")  # refuses what is no picture, or meant to do harm
    with Image.open(path) as layer:
        return layer.convert("RGBA").getchannel("A").point(lambda value: 255 if value else 0)
