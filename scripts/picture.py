"""Take the README's picture: the head of a report's page, in a browser.

python scripts/picture.py results.json docs/images/plan.png
"""

import os
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

import rightbatch as rb


def main(results: str, picture: str) -> None:
    """Render the page of a results file and photograph its first screen."""
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        page_file = Path(folder) / "report.html"
        rb.load(results).to_html(page_file)
        browser = driver.chromium.launch(
            executable_path=os.environ.get("CHROMIUM", "/usr/bin/chromium"), args=["--no-sandbox"]
        )
        page = browser.new_page(viewport={"width": 1000, "height": 900})
        page.goto(page_file.as_uri())
        page.wait_for_selector("[data-figure] .main-svg")
        page.screenshot(path=picture)
        browser.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
