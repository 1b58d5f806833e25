"""The page: tabs over a service, in the visitor's language.

Every failure passes through `Page.process_api`, so every refusal has a text, also for raw HTTP requests.
"""

import html
import inspect
import logging
from typing import Any

import gradio as gr

from altdiffusion.requests import BadRequest, shorten
from altdiffusion.serving import Busy, Closed
from altdiffusion.serving.audience import Audience

from . import classify_tab, compare_tab, generate_tab, read_tab, search_tab
from .handling import ENDONYMS, HELPER
from .i18n import CHOOSE_JS, say, text, translate, visitor_language

_LOG = logging.getLogger(__name__)


class Page(gr.Blocks):
    """Blocks that explain themselves: gradio answers all errors but its own with `{"error": null}`.

    They also end what nobody listens to.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.audience = Audience()

    async def process_api(self, block_fn: Any, inputs: list[Any], *args: Any, **more: Any) -> dict[str, Any]:
        tag = visitor_language(more.get("request"))
        event, session = more.get("event_id"), more.get("session_hash")
        if event is not None and not await self.audience.still_waits_for(event, session):
            raise gr.Error(say("cancelled", tag), print_exception=False)  # whoever comes later reads this
        try:
            _check(block_fn, inputs, more.get("iterator"))
            return await super().process_api(block_fn, inputs, *args, **more)
        except (StopAsyncIteration, StopIteration):
            raise
        except Exception as error:
            raise gr.Error(
                html.escape(explain(error, tag, helper=not block_fn.queue), quote=False),
                title=say("bad_request", tag),
                print_exception=False,
            ) from error

    def get_api_info(self, *args: Any, **more: Any) -> Any:
        """What a program leaves out is the handler's own default. gradio takes what the page's boxes begin
        with, which follow the preset that the page begins with."""
        found = super().get_api_info(*args, **more)
        own = {f"/{fn.api_name}": inspect.signature(fn.fn).parameters for fn in self.fns.values() if fn.fn}
        for name, endpoint in (found or {"named_endpoints": {}})["named_endpoints"].items():
            for parameter in endpoint["parameters"]:
                argument = own.get(name, {}).get(parameter["parameter_name"])
                if argument is not None and argument.default is not inspect.Parameter.empty:
                    parameter |= {"parameter_has_default": True, "parameter_default": argument.default}
        return found


def explain(error: Exception, tag: str, helper: bool = False) -> str:
    """One line for the visitor; what nobody foresaw goes to the log, and says only that it happened.

    A `helper` gets what the page itself sends, so what it cannot work with is somebody's nonsense.
    """
    if isinstance(error, gr.Error):
        return str(error.message)
    if isinstance(error, Busy):
        return say("busy", tag, waiting=error.waiting, allowed=error.allowed)
    if isinstance(error, Closed):
        return say("closed", tag)
    if isinstance(error, ValueError) and _addressed(str(error)):
        return translate(error, tag)
    if helper or type(error).__module__.startswith(("gradio", "pydantic")):
        _LOG.info("a request that does not fit: %r", error)
        return translate(
            BadRequest("data: a value that does not fit; allowed what the endpoint describes"), tag
        )
    _LOG.error("a request failed", exc_info=error)
    return say("failed", tag)


def _addressed(line: str) -> bool:
    name, colon, _ = line.partition(": ")
    return bool(colon) and name.isidentifier() and "\n" not in line


def _check(block_fn: Any, inputs: Any, iterator: Any) -> None:
    """What gradio itself would answer in many lines, or with a fetch."""
    wanted = len(block_fn.inputs)
    if iterator is None and (not isinstance(inputs, list) or len(inputs) < wanted):
        raise BadRequest(f"data: too few values; allowed {wanted}, as the endpoint describes")
    _refuse_addresses(inputs)


def _refuse_addresses(value: Any, depth: int = 0) -> None:
    """No widget takes an address: gradio would fetch it."""
    if depth > 8:
        raise BadRequest("data: nested too deeply; allowed what the endpoint describes")
    if isinstance(value, dict):
        path = value.get("path")
        if isinstance(path, str) and path.strip().lower().startswith(("http:", "https:")):
            raise BadRequest(f"picture: {shorten(path)} is an address; allowed an uploaded picture")
        value = list(value.values())
    if isinstance(value, list):
        for one in value:
            _refuse_addresses(one, depth + 1)


def build_demo(service: Any) -> Page:
    """All of the page; nothing is loaded here, and nothing is drawn before somebody asks."""
    with Page(title="AltDiffusion", analytics_enabled=False, delete_cache=(600, 3600)) as demo:
        with gr.Row(elem_id="ad-head"):
            gr.Markdown(text("tagline"), elem_id="ad-tagline")
            menu = gr.Dropdown(
                ENDONYMS, value="en", label=text("language"), container=False, elem_id="ad-language",
                min_width=120, scale=0,
            )  # fmt: skip
        with gr.Tabs() as tabs:
            with gr.Tab(text("tab_generate"), id="generate"):
                drawing = generate_tab.build(service, demo)
            with gr.Tab(text("tab_compare"), id="compare"):
                compare_tab.build(service)
            with gr.Tab(text("tab_search"), id="search"):
                search_tab.build(service, tabs, drawing.start)
            with gr.Tab(text("tab_classify"), id="classify"):
                classify_tab.build(service)
            with gr.Tab(text("tab_read"), id="read"):
                read_tab.build(service, tabs, drawing.settings, drawing.random)
        gr.Markdown(text("model") + ": " + service.info.name, elem_id="ad-model")
        menu.input(None, menu, None, js=CHOOSE_JS)
        demo.load(_language, None, menu, **HELPER)
    demo.queue(api_open=False, max_size=64, default_concurrency_limit=40)
    return demo


def _language(request: gr.Request) -> str:
    return visitor_language(request)
