"""The bike sharing table: reading it in either of its date styles, and knowing it again.

The public file writes dates as 2011-01-31, a common copy as 1/31/2011. Both give the same
table here, and the same digest, which is taken of the table and not of the file's bytes.
"""

import csv
import hashlib
from datetime import date
from pathlib import Path
from typing import Any

from rightbatch.errors import DataUnavailable

CATEGORIES = {  # column -> (lowest code, how many codes)
    "season": (1, 4),
    "yr": (0, 2),
    "mnth": (1, 12),
    "hr": (0, 24),
    "holiday": (0, 2),
    "weekday": (0, 7),
    "workingday": (0, 2),
    "weathersit": (1, 4),
}
NUMBERS = ("temp", "atemp", "hum", "windspeed")
_COLUMNS = ("instant", "dteday", *CATEGORIES, *NUMBERS, "casual", "registered", "cnt")

_LEAST_ROWS = 100  # a batch to train on, and some held out

BikeTable = dict[str, list[Any]]  # column -> values: dates as ISO text, measurements as floats


def read_bike_table(path: Path) -> BikeTable:
    """Read and check the hourly table of rented bikes.

    Args:
        path: A comma-separated file with a header; further columns are left out.

    Returns:
        Its columns, in one fixed order: ISO dates, whole numbers, and floats for the weather.

    Raises:
        DataUnavailable: If the file is not such a table; the message names the missing columns,
            or the first wrong row and column.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream)
            _check_header(path, list(reader.fieldnames or ()))
            rows = [_parse_row(path, reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataUnavailable(
            f"{str(path)!r} must be a readable CSV file, got {type(error).__name__}: {error}. "
            "Replace it by hour.csv of the UCI bike sharing data."
        ) from error
    if len(rows) < _LEAST_ROWS:
        raise DataUnavailable(
            f"{str(path)!r} must hold at least {_LEAST_ROWS} rows, got {len(rows)}. Cut short: "
            "replace it by hour.csv of the UCI bike sharing data."
        )
    return {
        name: list(values) for name, values in zip(_COLUMNS, zip(*rows, strict=True), strict=True)
    }


def bike_table_sha256(table: BikeTable) -> str:
    """Return the SHA-256 of a table's canonical text, the same for both date styles.

    The text is CSV with line feeds and every number in Python's shortest form.
    """
    columns = [table[name] for name in _COLUMNS]
    digest = hashlib.sha256((",".join(_COLUMNS) + "\n").encode())
    for row in zip(*columns, strict=True):
        digest.update((",".join(map(str, row)) + "\n").encode())
    return digest.hexdigest()


def _check_header(path: Path, header: list[str]) -> None:
    missing = [name for name in _COLUMNS if name not in header]
    if missing:
        raise DataUnavailable(
            f"{str(path)!r} must have the columns of the UCI bike sharing data, but "
            f"{', '.join(missing[:5])}{' and more' if len(missing) > 5 else ''} "
            f"{'is' if len(missing) == 1 else 'are'} missing, got header={','.join(header):.80}. "
            "Replace it by the hourly file (hour.csv, not day.csv)."
        )


def _parse_row(path: Path, line: int, row: dict[str, str | None]) -> tuple[Any, ...]:
    values: list[Any] = []
    for name in _COLUMNS:
        try:
            values.append(_parse(name, row[name] or ""))
        except ValueError as error:
            raise DataUnavailable(
                f"{str(path)!r}, line {line}: `{name}` {error}, got {row[name]!r}. "
                "Replace the file by hour.csv of the UCI bike sharing data."
            ) from error
    month = values[_COLUMNS.index("mnth")]
    if int(values[1][5:7]) != month:
        raise DataUnavailable(
            f"{str(path)!r}, line {line}: `dteday` must lie in month {month} (column `mnth`), got "
            f"{row['dteday']!r}. Dates are read as 2011-01-31 or 1/31/2011, month first."
        )
    return tuple(values)


def _parse(name: str, text: str) -> str | int | float:
    if name == "dteday":
        return _parse_date(text).isoformat()
    if name in NUMBERS:
        return _parse_share(text)
    try:
        value = int(text)
    except ValueError:
        raise ValueError("must be a whole number") from None
    low, count = CATEGORIES.get(name, (0, None))
    if value < low or (count is not None and value >= low + count):
        most = "" if count is None else f" and at most {low + count - 1}"
        raise ValueError(f"must be at least {low}{most}")
    return value


def _parse_share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ValueError("must be a number") from None
    if not 0 <= value <= 1:  # also NaN
        raise ValueError("must lie between 0 and 1")
    return value


def _parse_date(text: str) -> date:
    try:
        if "/" in text:
            month, day, year = map(int, text.split("/"))
            return date(year, month, day)
        return date.fromisoformat(text)
    except ValueError:
        raise ValueError("must be a date such as 2011-01-31 or 1/31/2011") from None
