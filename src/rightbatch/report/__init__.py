"""Faces of the results: one screen of text, one page of HTML, and the figures on it.

All are pure functions of `Results`. `words.py` says it, `tables.py` and the figures show it.
"""

from rightbatch.report.figures import figures
from rightbatch.report.html import render_html
from rightbatch.report.text import render_text

__all__ = ["figures", "render_html", "render_text"]
