"""Photographs the app on the bundled model for docs/app.md: docs/images/app-*.png.

    python -m bench.screens

Needs playwright and Debian's chromium, and fonts for the languages that are shown.
"""

import argparse
from collections.abc import Callable
from typing import Any, NamedTuple

from altdiffusion import aside
from bench.app import GALLERY, browser, opened, server
from bench.report import RESULTS

FOLDER = RESULTS.parent / "images"
#: Milliseconds in which the page comes to rest after its last picture.
SETTLED = 700


class Screen(NamedTuple):
    """A visitor, what they do, and whether the whole page is wanted or its window."""

    visit: Callable[[Any], None]
    locale: str
    width: int = 1280
    height: int = 940
    scheme: str = "light"
    whole: bool = False


def generate(page: Any) -> None:
    """While it is drawn: so many steps that the photograph is taken before the last."""
    page.click("#ad-advanced button")
    page.locator("#ad-advanced input[type=number]").first.fill("100")
    page.click("#ad-advanced button")
    page.fill("#ad-prompt textarea", "a lobster")
    page.keyboard.press("Control+Enter")
    page.wait_for_function("/Step [3-9][0-9] of/.test(document.querySelector('#ad-status').innerText)")


def compare(page: Any) -> None:
    page.get_by_role("tab").nth(1).click()
    page.click("#ad-compare")
    page.wait_for_selector("#ad-tables table")


def search(page: Any) -> None:
    page.get_by_role("tab").nth(2).click()
    page.fill("#ad-query :is(input, textarea)", "كركند")
    page.keyboard.press("Enter")
    page.wait_for_selector("#ad-results img")


def telephone(page: Any) -> None:
    page.click("#ad-advanced button")
    page.fill("#ad-prompt textarea", "龙虾")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector(GALLERY)
    page.wait_for_selector("#ad-kept img")


SCREENS = {
    "app-generate": Screen(generate, "en-US"),
    "app-compare": Screen(compare, "en-US", height=1130),
    "app-search-arabic": Screen(search, "ar-EG", height=900),
    "app-telephone": Screen(telephone, "zh-CN", 390, 900, "dark", whole=True),
}


def photograph(chromium: Any, address: str, name: str) -> None:
    wanted = SCREENS[name]
    visitor = {"locale": wanted.locale, "color_scheme": wanted.scheme}
    page = opened(chromium, address, wanted.width, wanted.height, **visitor)
    page.wait_for_function("document.documentElement.dir !== ''")
    wanted.visit(page)
    page.wait_for_function("[...document.images].every((image) => image.complete)")
    page.wait_for_timeout(SETTLED)
    with aside.file(FOLDER / f"{name}.png") as made:
        made.write_bytes(page.screenshot(full_page=wanted.whole))
    page.context.close()


def main() -> None:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    with server() as (_, address, _), browser() as chromium:
        for name in SCREENS:
            photograph(chromium, address, name)
            print(FOLDER / f"{name}.png")


if __name__ == "__main__":
    main()
