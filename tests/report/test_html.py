"""The page. Oracle: golden files, and a parser that reads back what a browser would."""

import json
import re
from html.parser import HTMLParser
from itertools import pairwise

import pytest
from plotly.offline import get_plotlyjs

from rightbatch import _codec
from rightbatch.report import figures, render_html
from rightbatch.report.words import details, findings, headline
from rightbatch.results import Results
from tests.report import samples
from tests.report.golden import assert_golden

ALL = pytest.mark.parametrize("name", samples.ALL)
VOID = {"meta", "img", "br", "hr", "input", "link"}
_PAGES: dict[str, str] = {}


def page(name):
    if name not in _PAGES:
        _PAGES[name] = render_html(samples.ALL[name])
    return _PAGES[name]


class Outline(HTMLParser):
    """Elements, nesting and text, as the HTML standard reads them."""

    def __init__(self, source):
        super().__init__()
        self.stack, self.tags, self.text, self.scripts = [], [], [], {}
        self.feed(source)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        if self.stack and self.stack[-1] == "script":
            self.scripts[self.tags[-1][1].get("id", len(self.scripts))] = data
        elif self.stack and self.stack[-1] != "style":
            self.text.append(data)


def _without_bulk(source):
    """Plotly is not ours, and the figures have tests of their own."""
    source = source.replace(get_plotlyjs(), "PLOTLY")
    return re.sub(r'(id="figures">).*?(</script>)', r"\1FIGURES\2", source)


@pytest.mark.parametrize("name", ["full", "four_devices", "only_memory", "unresolved", "hostile"])
def test_page_is_the_one_that_was_approved(name):
    assert_golden(f"{name}.html", _without_bulk(page(name)))


@ALL
def test_every_element_is_closed_and_every_name_unique(name):
    outline = Outline(page(name))
    assert outline.stack == []
    names = [attributes["id"] for _, attributes in outline.tags if "id" in attributes]
    assert len(names) == len(set(names))
    named = {a["aria-labelledby"] for _, a in outline.tags if "aria-labelledby" in a}
    assert named <= set(names)


@ALL
def test_headings_go_down_one_level_at_a_time(name):
    levels = [int(tag[1]) for tag, _ in Outline(page(name)).tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b <= a + 1 for a, b in pairwise(levels))


@ALL
def test_page_has_a_language_a_title_and_a_description_of_each_figure(name):
    outline = Outline(page(name))
    assert ("html", {"lang": "en"}) in outline.tags
    assert [tag for tag, _ in outline.tags].count("title") == 1
    drawn = [a for _, a in outline.tags if "data-figure" in a]
    assert [a["data-figure"] for a in drawn] == list(figures(samples.ALL[name]))
    assert all(a["role"] == "img" and len(a["aria-label"]) > 20 for a in drawn)


@ALL
def test_saved_results_read_back_from_the_page(name):
    embedded = json.loads(Outline(page(name)).scripts["results"])
    assert _codec.from_json(embedded, Results) == samples.ALL[name]


@ALL
def test_figures_read_back_from_the_page(name):
    embedded = json.loads(Outline(page(name)).scripts["figures"])
    drawn = {key: f.to_plotly_json() for key, f in figures(samples.ALL[name]).items()}
    assert embedded == json.loads(json.dumps(drawn))


def test_hostile_names_stay_text():
    outline = Outline(page("hostile"))
    assert outline.stack == []
    tags = {tag for tag, _ in outline.tags}
    assert not tags & {"b", "i", "img"}
    assert not any(key.startswith("on") for _, attributes in outline.tags for key in attributes)
    text = "".join(outline.text)
    assert "</script><b>" in text
    assert "<img src=x onerror=alert(1)>" in text
    assert "</script><script>alert(2)</script>" in text
    assert "{{ 7*7 }}" in text
    plain = [tag for tag, _ in Outline(page("full")).tags if tag == "script"]
    assert [tag for tag, _ in outline.tags].count("script") == len(plain)


@ALL
def test_page_asks_the_network_for_nothing(name):
    source = _without_bulk(page(name))
    assert "http:" not in source
    assert "https:" not in source
    assert "default-src 'none'" in source
    addresses = [
        value for _, a in Outline(source).tags for key, value in a.items() if key in ("src", "href")
    ]
    assert addresses == []


@ALL
def test_plotly_is_there_once_or_not_at_all(name):
    expected = 1 if figures(samples.ALL[name]) else 0
    assert page(name).count(get_plotlyjs()) == expected
    assert len(page(name).encode()) < 8_000_000
    assert expected or len(page(name)) < 40_000


@ALL
def test_page_says_what_the_text_says(name):
    results = samples.ALL[name]
    text = "".join(Outline(page(name)).text).replace("\u00a0", " ")
    sentences = [f.text for f in findings(results)] + [*results.task.warnings]
    if headline(results):
        sentences.append(headline(results))
    if results.plan:
        sentences += [*details(results.plan), *results.plan.reasons]
    assert all(sentence in text for sentence in sentences)


def test_every_measured_number_is_in_a_table_without_javascript():
    text = "".join(Outline(page("full")).text)
    for number in ("319 MiB", "37 ms", "1,200 (640 to unbounded)", "0.214 (0.201 to 0.228)"):
        assert number in text
