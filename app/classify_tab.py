"""Classify: which of some labels a picture shows. Labels in any language, or the same ones in several."""

import html
import re
from dataclasses import dataclass
from typing import Any

import gradio as gr

from altdiffusion.languages import LANGUAGES
from altdiffusion.languages import language as known_language
from altdiffusion.requests import BadRequest, prompts_by_language, shorten

from .handling import ENDONYMS, HELPER, RAW, as_text, known_tags, table, uploaded
from .i18n import say, text, visitor_language

_TAGGED = re.compile(r"\s*[A-Za-z]{2,3}(?:[-_]\w+)?\s*:\s*\S")


def build(service: Any) -> None:
    with gr.Row(equal_height=False):
        with gr.Column(scale=5, min_width=320):
            picture = gr.Image(
                label=text("picture"), sources=["upload", "clipboard"], height=260, buttons=[],
                elem_id="ad-classified",
            )  # fmt: skip
            labels = gr.Textbox(
                "lobster\nelephant\nrainbow\nbutterfly", label=text("labels"), info=text("labels_help"),
                lines=5, max_lines=20, elem_id="ad-labels", elem_classes="ad-submits",
            )  # fmt: skip
            with gr.Row():
                language = gr.Dropdown(ENDONYMS, value="en", label=text("labels_language"), min_width=140)
                template = gr.Dropdown(
                    [(text("template_own"), ""), "{}", "a photo of {}"], value="", label=text("template"),
                    info=text("template_help"), allow_custom_value=True, min_width=140,
                )  # fmt: skip
            several = gr.Checkbox(False, label=text("several_labels"))
            run = gr.Button(text("classify"), variant="primary", elem_id="ad-classify")
            with gr.Accordion(text("agreement"), open=False, visible=bool(service.info.covered)):
                tags = gr.CheckboxGroup(ENDONYMS, value=["zh", "ar", "th"], label=text("languages"))
                fill = gr.Button(text("fill_versions"), size="sm", elem_id="ad-fill-labels")
        with gr.Column(scale=6, min_width=320):
            ranked = gr.Label(label=text("probabilities"), num_top_classes=10, elem_id="ad-ranked")
            best = gr.JSON(visible=False)
            agreement = gr.HTML(elem_id="ad-agreement")
    handler = _Handler(service)
    event = gr.on(
        [run.click, labels.submit], handler.classify, [picture, labels, language, template, several],
        [ranked, best], api_name="classify", **RAW,
    )  # fmt: skip
    event.success(_table, best, agreement, **HELPER)
    fill.click(handler.fill, [labels, tags, language], labels, preprocess=False, **HELPER)


@dataclass(frozen=True)
class _Handler:
    service: Any

    def classify(
        self, image: dict, labels: str, language: str = "en", template: str = "", several: bool = False
    ) -> tuple[dict, dict]:
        """Tell which of some labels a picture shows.

        Returns a score for each label, and for each language that labels are given in its best one.

        Args:
            image: The picture.
            labels: One a line, in any language. Lines of `tag: label` are labels in several languages.
            language: The labels' own, where they have no tags.
            template: A text with {} for the label; empty is the language's own.
            several: Whether each label is scored by itself, as several may be right.
        """
        if (opened := uploaded(image, "image")) is None:
            raise BadRequest("image: missing; allowed an uploaded picture")
        spoken = known_language(as_text(language, "language")).tag
        templates = [template] if template else None
        lines = [line.strip() for line in as_text(labels, "labels").splitlines() if line.strip()]
        tagged = lines and all(_TAGGED.match(line) for line in lines)
        wanted = prompts_by_language("\n".join(lines), "labels") if tagged else lines
        ranked = self.service.classify(
            opened, wanted, language=spoken, templates=templates, multi_label=several
        )
        scores = dict(zip(ranked.labels, ranked.scores, strict=True))
        return scores, {
            tag: {"label": best, "score": score} for tag, (best, score) in ranked.agreement.items()
        }

    def fill(self, labels: Any, tags: Any, language: Any) -> str:
        """Each label in the chosen languages, where the model's own names are known."""
        lines = [line for line in as_text(labels, "labels").splitlines() if line.strip()][:100]
        plain = dict.fromkeys(line.split(":", 1)[-1].strip() for line in lines)
        wanted = known_tags([language, *(tags if isinstance(tags, list) else [])])
        found = [self.service.versions_of(label, wanted) for label in plain]
        everywhere = [tag for tag in wanted if found and all(tag in one for one in found)]
        if not everywhere:
            raise BadRequest(f"labels: {shorten(labels)} are no names of the model's; allowed its own names")
        return "\n".join(f"{tag}: {one[tag]}" for tag in everywhere for one in found)


def _table(best: dict[str, Any], request: gr.Request) -> str:
    """Where labels were given in several languages: the best of each."""
    if len(best) < 2:
        return ""
    rows = (
        (
            f'<th scope="row">{LANGUAGES[tag].endonym}</th>',
            f'<td dir="auto">{html.escape(one["label"])}</td><td>{one["score"]:.0%}</td>',
        )
        for tag, one in best.items()
    )
    return f'<div class="ad-tables">{table(say("agreement", visitor_language(request)), rows)}</div>'
