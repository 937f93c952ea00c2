"""A study as text, Markdown and page: nothing invented, nothing lost, nothing from the network."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from rightbatch.errors import ResultsError
from rightbatch.studies.showing import render_markdown, render_page, render_text
from rightbatch.studies.study import Study
from tests.studies.test_noise_estimators import made


class Page(HTMLParser):
    """The visible text, what is loaded from elsewhere, and the embedded data of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text: list[str] = []
        self.links: list[str] = []
        self.data: dict[str, str] = {}
        self._in: str | None = None
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag in ("script", "style"):
            self._in = given.get("id") or tag

    def handle_endtag(self, tag: str) -> None:
        if tag in ("script", "style"):
            self._in = None

    def handle_data(self, data: str) -> None:
        if self._in is None:
            self.text.append(data)
        else:
            self.data[self._in] = self.data.get(self._in, "") + data


@pytest.fixture(scope="module")
def study() -> Study:
    return made()


@pytest.fixture(scope="module")
def page(study: Study) -> Page:
    return Page(render_page(study))


def test_the_text_says_claims_verdicts_and_numbers(study: Study) -> None:
    text = render_text(study)
    for claim in study.claims:
        assert f"{claim.key}  {str(claim.verdict).upper()}" in text
        assert claim.evidence in " ".join(text.split())
    for row in study.tables[0].rows:
        assert re.search(r"\s+".join(map(re.escape, row)), text), row
    assert max(map(len, text.splitlines())) <= 100
    assert not any(line != line.rstrip() for line in text.splitlines())


def test_the_markdown_holds_every_table_and_rule(study: Study) -> None:
    text = render_markdown(study)
    assert all(claim.rule in text for claim in study.claims)
    assert all("| " + " | ".join(row) + " |" in text for t in study.tables for row in t.rows)


def test_the_page_holds_what_was_measured(study: Study, page: Page) -> None:
    assert json.loads(page.data["results"]) == study.to_json()
    words = "\n".join(page.text)
    for claim in study.claims:
        assert all(t in words for t in (claim.text, claim.rule, claim.evidence, claim.verdict))
    for table in study.tables:
        assert all(cell in page.text for row in table.rows for cell in row)
    figures = json.loads(page.data["figures"])
    assert list(figures) == [drawing.name for drawing in study.drawings]
    assert study.environment["python"] in page.text


def test_the_page_asks_the_network_for_nothing(study: Study, page: Page) -> None:
    assert page.links == []
    assert "default-src 'none'" in render_page(study)
    assert "prefers-color-scheme: dark" in page.data["style"]


def test_what_is_said_cannot_break_out_of_the_page(study: Study) -> None:
    hostile = "</script><img src=x onerror=alert(1)>"
    shown = Page(render_page(replace(study, title=hostile, environment={"platform": hostile})))
    assert hostile in shown.text
    assert shown.links == []
    assert json.loads(shown.data["results"])["title"] == hostile


def test_a_trial_says_that_it_is_one(study: Study) -> None:
    assert "A quick trial" in render_page(replace(study, quick=True))
    assert "A quick trial" not in render_page(study)


def test_a_number_that_is_not_finite_is_refused(study: Study, tmp_path: Path) -> None:
    broken = replace(study, measurements={"x": float("nan")})
    with pytest.raises(ResultsError, match="finite numbers only"):
        broken.save(tmp_path / "study.json")


def test_a_folder_that_cannot_be_written_is_one_message(study: Study, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultsError, match="cannot write to"):
        study.save(tmp_path / "file" / "study.json")
