"""The language that a real browser shows: of the browser's own languages, and of the menu."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from app.i18n import texts
from tests.reliability.served.attacking import running

pytest.importorskip("gradio", reason="needs the extra app: pip install 'altdiffusion[app]'")
playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: make test installs it")
CHROMIUM = Path("/usr/bin/chromium")
pytestmark = pytest.mark.skipif(
    not CHROMIUM.exists(), reason="needs Debian's chromium; make test installs it"
)
TABS = ["generate", "compare", "search", "classify", "read"]
PAGE = """if True:
    from altdiffusion.web import Options
    from app.launching import launch
    from tests.app.painter import Painter

    launch(Painter(), Options(port=PORT)).block_thread()"""


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    with (
        running(tmp_path_factory.mktemp("locale"), "-c", PAGE) as app,
        playwright.sync_playwright() as driver,
    ):
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = driver.chromium.launch(executable_path=str(CHROMIUM), args=flags)
        yield SimpleNamespace(url=f"http://127.0.0.1:{app.port}", browser=browser)
        browser.close()


def opened(shown: SimpleNamespace, locale: str) -> Any:
    page = shown.browser.new_context(locale=locale).new_page()
    page.goto(shown.url)
    page.wait_for_selector("#ad-generate")
    page.wait_for_function("!!window.altdiffusionLanguage")
    return page


def tabs_are(page: Any, tag: str) -> None:
    names = [texts(tag)[f"tab_{tab}"] for tab in TABS]
    page.wait_for_function(
        "(names) => names.join() === "
        "[...document.querySelectorAll('[role=tab]')].map((one) => one.innerText).join()",
        arg=names,
    )
    for name in ("generate", "tagline"):  # each is drawn anew when its turn comes
        page.wait_for_function(
            "([name, text]) => document.querySelector(`#ad-${name}`).innerText === text",
            arg=[name, texts(tag)[name]],
        )


@pytest.mark.parametrize(
    ("locale", "tag"),
    [("it-IT", "it"), ("vi-VN", "vi"), ("zh-TW", "zh"), ("pt-BR", "pt"), ("ar-EG", "ar"), ("sv-SE", "en")],
)
def test_a_browser_s_language_is_found_even_where_gradio_has_none(
    shown: SimpleNamespace, locale: str, tag: str
):
    page = opened(shown, locale)
    tabs_are(page, tag)
    assert page.get_attribute("html", "dir") == ("rtl" if tag == "ar" else "ltr")
    assert page.get_attribute("html", "lang").split("-")[0] == tag
    page.context.close()


def test_a_chosen_language_reaches_tabs_that_nobody_has_opened(shown: SimpleNamespace):
    page = opened(shown, "de-DE")
    tabs_are(page, "de")
    page.set_viewport_size({"width": 360, "height": 800})  # some of them are in a menu here
    for tag in ("hi", "ar", "en"):
        page.evaluate("(tag) => window.altdiffusionLanguage(tag)", tag)
        page.wait_for_function("(tag) => document.documentElement.lang === tag", arg=tag)
    page.set_viewport_size({"width": 1280, "height": 800})
    tabs_are(page, "en")
    page.reload()
    tabs_are(page, "en")
    page.context.close()
