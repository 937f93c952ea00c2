"""What a table is: words in cells, before any format draws it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Cells as words, and why the row stands out: "choice", "current", "impossible" or ""."""

    cells: tuple[str, ...]
    mark: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """One table: numbers right-aligned, the last column left-aligned where it is a remark."""

    title: str
    header: tuple[str, ...]
    rows: tuple[Row, ...]
    note: str = ""  # how to read it
