"""``python -m benchmarks.study FOLDER``: keep a study's run, and quote it in the documentation.

FOLDER is what ``rightbatch study noise-estimators --output FOLDER`` wrote. The JSON and the
Markdown go into ``benchmarks/results``; the tables in ``docs/studies.md`` are written anew.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS, PAGE = ROOT / "benchmarks" / "results", ROOT / "docs" / "studies.md"
NAME = "noise-estimators"
QUOTED = ("verdicts", "Every way against the exact value", "The exact noise scale along training")


def quotations(markdown: str) -> dict[str, str]:
    """Cut the verdicts and the tables out of a study's Markdown."""
    lines = markdown.splitlines()
    found, title = {}, "verdicts"
    for line in lines:
        if line.startswith("## "):
            title = line.removeprefix("## ")
        if line.startswith("|"):
            found[title] = f"{found.get(title, '')}{line}\n"
    return found


def quote(page: str, markdown: str) -> str:
    """Put a study's tables between the page's marks."""
    found = quotations(markdown)
    for title in QUOTED:
        pattern = rf"(<!-- {title} -->\n).*?(<!-- end -->)"
        page, count = re.subn(pattern, rf"\1\n{found[title]}\n\2", page, flags=re.DOTALL)
        if count != 1:
            raise SystemExit(f"docs/studies.md must hold the mark {title!r} once, got {count}.")
    return page


def keep(folder: Path) -> None:
    """Copy a run's files and quote it."""
    for suffix in (".json", ".md"):
        text = (folder / f"{NAME}{suffix}").read_text(encoding="utf-8")
        (RESULTS / f"study-{NAME}{suffix}").write_text(text, encoding="utf-8")
    markdown = (RESULTS / f"study-{NAME}.md").read_text(encoding="utf-8")
    PAGE.write_text(quote(PAGE.read_text(encoding="utf-8"), markdown), encoding="utf-8")


if __name__ == "__main__":
    keep(Path(sys.argv[1]))
