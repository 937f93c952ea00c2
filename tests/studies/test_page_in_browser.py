"""The study's page in a real browser. Oracle: what Chromium draws, asks for and complains about."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rightbatch.studies.showing import render_page
from tests.conftest import chromium
from tests.studies.test_noise_estimators import made

pytestmark = [pytest.mark.browser]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.mark.parametrize("width", [400, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_figure_is_drawn_and_nothing_is_asked_for(
    browser: Any, tmp_path: Path, width: int, scheme: str
) -> None:
    path = tmp_path / "study.html"
    path.write_text(render_page(made()), encoding="utf-8")
    # To wait for a condition, playwright evaluates text, which the page's own policy rules out.
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, bypass_csp=True
    )
    page = context.new_page()
    trouble: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: trouble.append(message.text))
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(path.as_uri())
    page.wait_for_selector("html[data-drawn='3']", timeout=60_000)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator(".plot svg.main-svg").count() >= 3
    page.get_by_role("button", name="Save results.json").wait_for()
    assert trouble == []
    assert asked == [path.as_uri()]
    context.close()
