"""The page in a real browser. Oracle: what Chromium draws, asks for and complains about."""

import json
from contextlib import contextmanager

import pytest

from rightbatch import _codec
from rightbatch.report import figures, render_html
from rightbatch.results import Results
from tests.conftest import chromium
from tests.report import samples

pytestmark = [pytest.mark.browser]
NAMES = pytest.mark.parametrize("name", ["full", "hostile", "four_devices", "unresolved", "empty"])
# To wait for a condition, playwright evaluates text, which the page's own policy rules out.
WAITING = {"bypass_csp": True}
WIDTHS = pytest.mark.parametrize("width", [400, 1280])

# Elements that are drawn beyond the box of their figure: labels that are cut off.
_CUT_OFF = """() => [...document.querySelectorAll(".plot")].flatMap((plot) => {
  const box = plot.getBoundingClientRect();
  return [...plot.querySelectorAll("text")].filter((text) => {
    const own = text.getBoundingClientRect();
    return own.width > 0 && (own.left < box.left - 1 || own.right > box.right + 1
      || own.top < box.top - 1 || own.bottom > box.bottom + 1);
  }).map((text) => plot.id + ": " + text.textContent);
})"""


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def opened(browser, tmp_path):
    """Open a sample's page; what it complains about and asks for must come to nothing."""

    @contextmanager
    def open_page(name, *, width=1280, **options):
        path = tmp_path / f"{name}.html"
        path.write_text(render_html(samples.ALL[name]), encoding="utf-8")
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        page = context.new_page()
        trouble, asked = [], []
        page.on("console", lambda message: trouble.append(message.text))
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.on("dialog", lambda dialog: (trouble.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(path.as_uri())
        if options.get("java_script_enabled", True) and page.query_selector("[data-figure]"):
            page.wait_for_selector("html[data-drawn]", timeout=60_000)
        yield page
        assert trouble == []
        assert [url for url in asked if not url.startswith("blob:")] == [path.as_uri()]
        context.close()

    return open_page


@NAMES
@WIDTHS
def test_all_figures_are_drawn_within_the_width(opened, name, width):
    with opened(name, width=width) as page:
        count = (
            "plots => plots.map(p => [p.dataset.figure, p.querySelectorAll('.main-svg').length])"
        )
        drawn = page.eval_on_selector_all(".plot", count)
        assert [figure for figure, _ in drawn] == list(figures(samples.ALL[name]))
        assert all(count > 0 for _, count in drawn)
        widest = page.evaluate("document.documentElement.scrollWidth")
        assert widest <= width
        assert page.evaluate(_CUT_OFF) == []


def test_figures_follow_the_window(opened):
    with opened("full", **WAITING) as page:
        page.set_viewport_size({"width": 400, "height": 900})
        page.wait_for_function("document.querySelector('.plot .main-svg').clientWidth < 400")
        assert page.evaluate("document.documentElement.scrollWidth") <= 400


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_ink_stands_out_from_the_ground_in_the_page_and_in_the_figures(opened, scheme):
    with opened("full", color_scheme=scheme) as page:
        page.wait_for_selector(".xtick text")
        for selector, attribute in (("h1", "color"), (".xtick text", "fill")):
            ink, ground = page.evaluate(
                """([selector, attribute]) => {
                  const card = document.querySelector("section");
                  return [getComputedStyle(document.querySelector(selector))[attribute],
                          getComputedStyle(card).backgroundColor];
                }""",
                [selector, attribute],
            )
            assert abs(_brightness(ink) - _brightness(ground)) > 150
            assert (_brightness(ground) > 128) == (scheme == "light")


def _brightness(color):
    """Mean of red, green and blue in a computed ``rgb(...)``."""
    return sum(float(part) for part in color[color.index("(") + 1 : -1].split(",")[:3]) / 3


def test_changing_the_scheme_recolours_the_figures(opened):
    with opened("full", color_scheme="light", **WAITING) as page:
        fill = "getComputedStyle(document.querySelector('.xtick text')).fill"
        before = page.evaluate(fill)
        page.emulate_media(color_scheme="dark")
        page.wait_for_function(f"{fill} !== '{before}'")
        assert _brightness(page.evaluate(fill)) > 200


def test_words_and_tables_need_no_javascript(opened):
    with opened("full", java_script_enabled=False) as page:
        assert page.inner_text("#answer") == "Train with batch size 256 and learning rate 0.06."
        assert "recommended" in page.inner_text("main")
        page.click("text=Numbers >> nth=0")
        assert page.locator("text=319 MiB").is_visible()
        assert page.locator("noscript").count() == len(figures(samples.FULL))


def test_the_results_file_can_be_saved_from_the_page(opened, tmp_path):
    with opened("hostile") as page:
        with page.expect_download() as download:
            page.click("text=Save results.json")
        saved = tmp_path / "results.json"
        download.value.save_as(saved)
        assert download.value.suggested_filename == "results.json"
    assert _codec.from_json(json.loads(saved.read_text()), Results) == samples.HOSTILE


def test_print_opens_the_numbers_and_fits_the_paper(opened):
    with opened("full", **WAITING) as page:
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        assert page.locator("details:not([open])").count() == 0
        page.wait_for_function("document.querySelector('.plot .main-svg').clientWidth <= 680")
        page.evaluate("dispatchEvent(new Event('afterprint'))")
        page.wait_for_function("document.querySelector('.plot .main-svg').clientWidth > 680")
