"""Reading the bike table in both date styles. Oracle: rows written by hand."""

import re
from pathlib import Path

import pytest

from rightbatch.errors import DataUnavailable
from rightbatch.tasks.bike_table import bike_table_sha256, read_bike_table
from tests.tasks.small_files import BIKE_HEADER, bike_rows, write_bikes


def with_row(folder: Path, row: str) -> Path:
    return write_bikes(folder, [*bike_rows(), row])


def test_values_and_their_types_are_those_of_the_file(tmp_path: Path) -> None:
    row = "7,2012-02-29,1,1,2,23,0,3,1,4,0.3,0.2727,1,0,5,6,11"
    table = read_bike_table(with_row(tmp_path, row))
    got = [values[-1] for values in table.values()]
    assert got == [7, "2012-02-29", 1, 1, 2, 23, 0, 3, 1, 4, 0.3, 0.2727, 1.0, 0.0, 5, 6, 11]
    assert list(table) == BIKE_HEADER.split(",")
    assert {type(value) for value in table["hum"]} == {float}
    assert {type(value) for value in table["cnt"]} == {int}


def test_both_date_styles_give_the_same_table_and_digest(tmp_path: Path) -> None:
    iso = read_bike_table(write_bikes(tmp_path, bike_rows(iso=True)))
    american = read_bike_table(write_bikes(tmp_path, bike_rows(iso=False)))
    assert iso == american
    assert bike_table_sha256(iso) == bike_table_sha256(american)
    assert iso["dteday"][24] == "2011-12-02"


@pytest.mark.parametrize("rewrite", ["number style", "line ends", "mark", "columns"])
def test_harmless_differences_do_not_change_the_digest(tmp_path: Path, rewrite: str) -> None:
    path = write_bikes(tmp_path)
    before = bike_table_sha256(read_bike_table(path))
    text = path.read_text()
    if rewrite == "number style":
        text = text.replace("0.2879,", "0.28790,").replace(",0,0,", ",0,00,")
    elif rewrite == "line ends":
        text = text.replace("\n", "\r\n")
    elif rewrite == "mark":
        text = "\ufeff" + text
    else:
        lines = [line.split(",") for line in text.splitlines()]
        text = "\n".join(",".join([*reversed(line), "more"]) for line in lines)
    path.write_bytes(text.encode())
    assert bike_table_sha256(read_bike_table(path)) == before


@pytest.mark.parametrize("column", range(17))
def test_every_column_counts_in_the_digest(tmp_path: Path, column: int) -> None:
    table = read_bike_table(write_bikes(tmp_path))
    before = bike_table_sha256(table)
    values = list(table.values())[column]
    values[5] = "2012-01-01" if column == 1 else values[5] + 1
    assert bike_table_sha256(table) != before


@pytest.mark.parametrize("column", BIKE_HEADER.split(","))
def test_a_missing_column_is_named(tmp_path: Path, column: str) -> None:
    header = BIKE_HEADER.replace(column + ",", "other,", 1)
    if column == "cnt":
        header = BIKE_HEADER.removesuffix("cnt") + "other"
    with pytest.raises(DataUnavailable, match=f"but {column} is missing, got header=[io]"):
        read_bike_table(write_bikes(tmp_path, header=header))


def test_a_file_of_something_else_lists_five_missing_columns(tmp_path: Path) -> None:
    with pytest.raises(DataUnavailable, match="yr, mnth and more are missing, got header=name"):
        read_bike_table(write_bikes(tmp_path, header="name,age"))


def test_an_empty_file_has_no_header(tmp_path: Path) -> None:
    (tmp_path / "empty.csv").touch()
    with pytest.raises(DataUnavailable, match=r"are missing, got header=\. "):
        read_bike_table(tmp_path / "empty.csv")


GOOD = dict(zip(BIKE_HEADER.split(","), bike_rows()[0].split(","), strict=True))


@pytest.mark.parametrize(
    ("column", "value", "rule"),
    [
        ("season", "5", "must be at least 1 and at most 4"),
        ("season", "0", "must be at least 1 and at most 4"),
        ("hr", "24", "must be at least 0 and at most 23"),
        ("weekday", "7", "must be at least 0 and at most 6"),
        ("cnt", "-1", "must be at least 0"),
        ("cnt", "1.5", "must be a whole number"),
        ("cnt", "", "must be a whole number"),
        ("temp", "warm", "must be a number"),
        ("temp", "nan", "must lie between 0 and 1"),
        ("temp", "24.0", "must lie between 0 and 1"),
        ("dteday", "1 Dec 2011", "must be a date such as 2011-01-31 or 1/31/2011"),
        ("dteday", "31/12/2011", "must be a date such as 2011-01-31 or 1/31/2011"),
    ],
)
def test_a_wrong_value_is_named_with_its_line(
    tmp_path: Path, column: str, value: str, rule: str
) -> None:
    row = ",".join((GOOD | {column: value}).values())
    with pytest.raises(DataUnavailable, match=f"line 122: `{column}` {rule}, got {value!r}"):
        read_bike_table(with_row(tmp_path, row))


def test_a_date_with_the_day_first_is_caught_by_the_month_column(tmp_path: Path) -> None:
    row = ",".join((GOOD | {"dteday": "1/12/2011"}).values())
    with pytest.raises(DataUnavailable, match=r"must lie in month 12 .*got '1/12/2011'"):
        read_bike_table(with_row(tmp_path, row))


def test_a_row_that_breaks_off_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataUnavailable, match="line 122: `mnth` must be a whole number, got None"):
        read_bike_table(with_row(tmp_path, "121,2011-12-06,1,0"))


def test_a_table_of_few_rows_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataUnavailable, match="at least 100 rows, got 99"):
        read_bike_table(write_bikes(tmp_path, bike_rows(99)))


@pytest.mark.parametrize("content", [b"\xff\xfe\x00bad", b"PK\x03\x04\xa0\xa1"])
def test_a_file_that_is_no_text_is_an_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes(content)
    with pytest.raises(DataUnavailable, match=re.escape(str(path)) + ".*UnicodeDecodeError"):
        read_bike_table(path)
