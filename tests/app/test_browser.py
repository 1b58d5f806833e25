"""Visitors' journeys through the page, in a real browser over the bundled model.

One browser and one app serve the whole file, and one page all visitors of a language, who find it as new, but
for the history: to load it into an empty browser is what costs. Every journey also checks what no visitor
should meet: an error in the console, a request to another host, a page wider than its window.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from altdiffusion import GenerateRequest, bundled, read_provenance, save_png

pytest.importorskip("gradio", reason="needs the extra app: pip install 'altdiffusion[app]'")
playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: make test installs it")
CHROMIUM = Path("/usr/bin/chromium")
pytestmark = [
    pytest.mark.weights,
    pytest.mark.skipif(not CHROMIUM.exists(), reason="needs Debian's chromium; make test installs it"),
    pytest.mark.skipif(not bundled.exists(), reason="needs the bundled model"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of gradio's event loops
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
]
PATIENCE = 60_000  # milliseconds; CI's cores are shared


@pytest.fixture(scope="module")
def app() -> Iterator[SimpleNamespace]:
    from altdiffusion.serving import Service
    from altdiffusion.web import Options
    from app.launching import launch

    with Service.load() as service, playwright.sync_playwright() as driver:
        service.search("a", k=1)  # the first one encodes the collection
        demo = launch(service, Options())
        browser = driver.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        yield SimpleNamespace(url=demo.local_url, service=service, browser=browser)
        browser.close()
        demo.close()


@dataclass
class Visitors:
    """Opens the page as a visitor of a language, and knows what went wrong unseen."""

    app: SimpleNamespace
    pages: dict[str, Any] = field(default_factory=dict)
    trouble: list[str] = field(default_factory=list)

    def __call__(self, locale: str = "en-US", width: int = 1280, scheme: str = "light") -> Any:
        page = self.pages.get(locale)
        if page is None or page.is_closed():
            page = self.pages[locale] = self._opened(locale)
        page.context.clear_cookies()
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme=scheme)
        page.goto(self.app.url)
        page.wait_for_selector("#ad-generate")
        page.wait_for_function("document.documentElement.dir !== ''")
        return page

    def _opened(self, locale: str) -> Any:
        known = self.pages.get(locale)
        page = (known.context if known else self.app.browser.new_context(locale=locale)).new_page()
        page.set_default_timeout(PATIENCE)
        page.on("pageerror", lambda error: self.trouble.append(f"error: {error}"))
        page.on("console", lambda line: self.trouble.append(line.text) if line.type == "error" else None)
        page.on("request", lambda asked: self.trouble.extend(foreign(asked.url, self.app.url)))
        return page


@pytest.fixture(scope="module")
def visitors(app: SimpleNamespace) -> Visitors:
    return Visitors(app)


@pytest.fixture
def visit(visitors: Visitors) -> Iterator[Visitors]:
    yield visitors
    trouble, visitors.trouble = visitors.trouble, []
    assert not trouble


@pytest.fixture(scope="module")
def lobster(app: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    *_, result = app.service.generate(GenerateRequest(prompt="a lobster", seed=7))
    (picture,) = result.pictures
    path = tmp_path_factory.mktemp("drawn") / "lobster.png"
    save_png(picture.image, path, picture.provenance)
    return path


def foreign(address: str, home: str) -> list[str]:
    return [] if address.startswith((home, "data:", "blob:")) else [address]


def steps(page: Any, number: str) -> None:
    """20 say no more than these where the picture does not matter."""
    box = page.locator("#ad-advanced input[type=number]").first
    if not box.is_visible():
        page.click("#ad-advanced button")
    box.fill(number)


def draw(page: Any, prompt: str) -> None:
    page.fill("#ad-prompt textarea", prompt)
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#ad-gallery img")


def drawn(page: Any, folder: Path) -> Path:
    """The picture as a visitor downloads it."""
    address = page.get_attribute("#ad-gallery img", "src")
    (folder / "drawn.png").write_bytes(page.request.get(address).body())
    return folder / "drawn.png"


def tab(page: Any, number: int) -> None:
    page.get_by_role("tab").nth(number).click()


def fits(page: Any) -> bool:
    return page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


@pytest.mark.parametrize(
    ("locale", "prompt", "button", "done", "direction"),
    [
        ("en-US", "a lobster", "Generate", "Done", "ltr"),
        ("zh-CN", "一只龙虾", "生成", "完成", "ltr"),
        ("th-TH", "กุ้งมังกร", "สร้าง", "เสร็จ", "ltr"),
        ("ar-EG", "كركند", "إنشاء", "اكتمل", "rtl"),
    ],
)
def test_a_visitor_draws_in_the_own_language(
    visit: Visitors, locale: str, prompt: str, button: str, done: str, direction: str, tmp_path: Path
):
    page = visit(locale)
    assert button in page.inner_text("#ad-generate")
    assert page.evaluate("document.documentElement.dir") == direction
    steps(page, "5")
    draw(page, prompt)
    assert done in page.inner_text("#ad-status") and fits(page)
    made = read_provenance(drawn(page, tmp_path))
    assert made.prompt == prompt and str(made.seed) == page.input_value("#ad-used :is(input, textarea)")
    page.wait_for_selector(f"#ad-kept img[alt='{prompt}']")


def test_previews_come_while_it_is_drawn(visit: Visitors):
    page = visit()
    page.evaluate("""() => {
      window.seen = new Set();
      const images = () => document.querySelectorAll("#ad-status img");
      const look = () => images().forEach((image) => window.seen.add(image.src));
      new MutationObserver(look).observe(document.body, { subtree: true, childList: true, attributes: true });
    }""")
    steps(page, "20")
    draw(page, "a red apple")
    assert page.evaluate("window.seen.size") >= 5  # of 10 that 20 steps give; a slow browser may skip some


@pytest.mark.parametrize("way", ["stop", "closed tab"])
def test_the_model_is_idle_when_its_visitor_is_gone(visit: Visitors, app: SimpleNamespace, way: str):
    page = visit()
    steps(page, "100")  # a browser on a busy machine takes seconds to press a button
    page.get_by_label("Number of pictures").fill("16")
    page.fill("#ad-prompt textarea", "a cat")
    page.click("#ad-generate")
    page.wait_for_selector("#ad-status .ad-previews img")
    if way == "stop":
        page.click("#ad-stop")
        page.wait_for_function("document.querySelector('#ad-status').innerText.includes('Stopped.')")
        assert page.locator("#ad-gallery img").count() == 0
    else:
        page.close()
    deadline = time.monotonic() + 10
    while app.service.health()["drawing"] and time.monotonic() < deadline:
        time.sleep(0.05)
    assert app.service.health()["drawing"] == 0


def test_settings_are_reused_from_history_and_from_a_picture(visit: Visitors, tmp_path: Path):
    page = visit()
    steps(page, "15")
    page.locator("#ad-advanced").get_by_label("Preset").click()
    page.get_by_role("option", name="Exact").click()
    page.wait_for_function("document.querySelector('#ad-advanced input[type=number]').value === '20'")
    steps(page, "9")
    draw(page, "a green apple")
    seed = page.input_value("#ad-used :is(input, textarea)")
    picture = drawn(page, tmp_path)
    page.wait_for_selector("#ad-kept img[alt='a green apple']")
    page.reload()
    page.wait_for_selector("#ad-kept img[alt='a green apple']")
    page.click("#ad-kept button")
    page.wait_for_function("document.querySelector('#ad-prompt textarea').value === 'a green apple'")
    page.fill("#ad-prompt textarea", "")
    tab(page, 4)
    page.set_input_files("#ad-read input[type=file]", picture)
    page.wait_for_selector("#ad-told dl")
    assert seed in page.inner_text("#ad-told")
    page.click("#ad-reuse")
    page.wait_for_function("document.querySelector('#ad-prompt textarea').value === 'a green apple'")
    page.click("#ad-advanced button")
    assert page.get_by_label("Steps", exact=True).input_value() == "9"
    assert page.get_by_label("Seed", exact=True).input_value() == seed
    assert page.locator("#ad-advanced").get_by_label("Preset").input_value() == "Exact"
    assert not page.get_by_label("Random seed").is_checked()


def test_languages_are_compared_and_mixed(visit: Visitors):
    page = visit("de-DE")
    tab(page, 1)
    page.fill("#ad-versions textarea", "en: lobster\nzh: 龙虾\nar: كركند")
    page.get_by_label("Schritte", exact=True).nth(0).fill("5")
    page.click("#ad-compare")
    page.wait_for_selector("#ad-tables table")
    assert page.locator("#ad-tables td").count() == 2 * 10
    assert page.locator("#ad-grid img").evaluate("image => image.naturalWidth") > 150
    assert "Ähnlichkeit" in page.inner_text("#ad-tables")
    page.click("#ad-mix-run")
    page.wait_for_selector("#ad-mixed img")
    assert fits(page)


def test_names_of_the_bundled_model_are_filled_in(visit: Visitors):
    page = visit()
    tab(page, 1)
    page.fill("#ad-one :is(input, textarea)", "rainbow")
    page.get_by_role("button", name="Fill in the other languages").first.click()
    page.wait_for_function("document.querySelector('#ad-versions textarea').value.includes('彩虹')")


def test_pictures_are_found_and_started_from(visit: Visitors, tmp_path: Path):
    page = visit()
    tab(page, 2)
    page.fill("#ad-query :is(input, textarea)", "fraise")
    page.keyboard.press("Enter")
    page.wait_for_selector("#ad-results img")
    assert "strawberry" in page.inner_text("#ad-results")
    page.locator("#ad-results .thumbnail-item").first.click()
    page.get_by_role("button", name="Find similar").click()
    page.wait_for_selector("#ad-query-picture img")
    page.wait_for_function("document.querySelector('#ad-query :is(input, textarea)').value === ''")
    playwright.expect(page.get_by_role("button", name="Find similar")).to_be_disabled(timeout=PATIENCE)
    page.locator("#ad-results .thumbnail-item").first.click()
    page.get_by_role("button", name="Use as start picture").click()
    page.wait_for_selector("#ad-prompt textarea", state="visible")
    steps(page, "5")
    draw(page, "a strawberry")
    assert read_provenance(drawn(page, tmp_path)).strength == 0.8


def test_only_the_painted_part_is_drawn_anew(visit: Visitors, tmp_path: Path):
    Image.new("RGB", (64, 64), "teal").save(tmp_path / "teal.png")
    page = visit()
    steps(page, "5")
    page.click("#ad-start button")
    page.wait_for_selector("#ad-editor canvas")
    page.set_input_files("#ad-editor input[type=file]", tmp_path / "teal.png")
    page.get_by_role("button", name="Brush").first.click()
    box = page.locator("#ad-editor canvas").first.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2 + 5, box["y"] + box["height"] / 2 + 5, steps=3)
    page.mouse.up()
    draw(page, "a lobster")
    picture = Image.open(drawn(page, tmp_path)).convert("RGB")
    assert picture.getpixel((0, 0)) == (0, 128, 128)
    assert sum(picture.getpixel((x, y)) != (0, 128, 128) for x in range(64) for y in range(64)) > 20


def test_a_picture_is_classified(visit: Visitors, lobster: Path):
    page = visit()
    tab(page, 3)
    page.set_input_files("#ad-classified input[type=file]", lobster)
    page.fill("#ad-labels textarea", "en: lobster\nen: rainbow\nzh: 龙虾\nzh: 彩虹")
    page.wait_for_selector("#ad-classified img")
    page.click("#ad-classify")
    page.wait_for_selector("#ad-agreement table")
    assert "lobster" in page.inner_text("#ad-ranked") and "龙虾" in page.inner_text("#ad-agreement")


def test_the_language_is_chosen_and_kept(visit: Visitors):
    page = visit("de-DE")
    assert page.evaluate("document.documentElement.lang") == "de"
    page.click("#ad-language input")
    page.get_by_role("option", name="العربية").click()
    page.wait_for_function("document.documentElement.dir === 'rtl'")
    page.wait_for_function("document.querySelector('#ad-generate').innerText.includes('إنشاء')")
    page.reload()
    page.wait_for_function("document.documentElement.dir === 'rtl'")
    page.fill("#ad-prompt textarea", "")
    page.click("#ad-generate")
    # By the server, in the chosen language.
    words = page.wait_for_selector(".toast-message-text").inner_text()
    assert any("\u0600" <= letter <= "\u06ff" for letter in words)


def test_a_refusal_is_shown_in_words(visit: Visitors):
    page = visit("th-TH")
    steps(page, "7.5")
    page.fill("#ad-prompt textarea", "x")
    page.click("#ad-generate")
    assert "7.5" in page.wait_for_selector(".toast-message-text").inner_text()


def test_a_telephone_shows_one_column(visit: Visitors):
    page = visit("de-DE", 390, "dark")
    steps(page, "5")
    draw(page, "ein Hummer")
    left = {selector: page.locator(selector).bounding_box() for selector in ("#ad-prompt", "#ad-gallery")}
    assert fits(page) and left["#ad-gallery"]["y"] > left["#ad-prompt"]["y"] + left["#ad-prompt"]["height"]
    assert page.evaluate("document.body.classList.contains('dark')")


def test_every_control_has_a_name_for_those_who_cannot_see_it(visit: Visitors):
    page = visit()
    page.click("#ad-advanced button")
    unnamed = page.evaluate("""() => [...document.querySelectorAll("button, input, textarea, img")]
      .filter((one) => one.offsetParent !== null && one.type !== "file")
      .filter((one) => !(one.ariaLabel || one.alt || one.title || one.innerText?.trim()))
      .filter((one) => !one.labels?.length)
      .map((one) => one.outerHTML.slice(0, 200))""")
    assert unnamed == []
