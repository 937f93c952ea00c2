"""Numbers as words. Oracle: closed forms at the joints between units, and reading back (law)."""

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rightbatch import _format
from rightbatch._format import (
    format_bytes,
    format_count,
    format_interval,
    format_learning_rate,
    format_number,
    format_ratio,
    format_seconds,
    round_significant,
)

_BYTES = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40, "PiB": 2**50}
_SECONDS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1, "min": 60, "h": 3600, "d": 86400}
_FORMATS = [
    getattr(_format, name)
    for name in vars(_format)
    if name.startswith("format_") and name != "format_interval"
]


@pytest.mark.parametrize("function", _FORMATS, ids=lambda f: f.__name__)
def test_none_is_unknown(function):
    assert function(None) == "unknown"


@pytest.mark.parametrize("function", _FORMATS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("value", [1e18, 1e100, 1e300])
def test_huge_numbers_stay_short(function, value):
    assert len(function(value)) <= 20


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.994, "990 ms"),
        (0.9951, "1 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (61, "1 min 1 s"),
        (3599.6, "1 h"),
        (3600 * 24 - 1, "1 d"),
        (86400 * 999.9, "999 d 22 h"),
        (1e9, "12,000 d"),
        (9.96e-4, "1 ms"),
        (5e-10, "0.5 ns"),
        (-80, "-1 min 20 s"),
    ],
)
def test_durations_change_units_where_the_rounded_number_does(seconds, words):
    assert format_seconds(seconds) == words


@pytest.mark.parametrize(
    ("num_bytes", "words"),
    [
        (1023, "1,023 B"),
        (1024, "1 KiB"),
        (9.96 * 2**20, "10 MiB"),
        (1023.4 * 2**20, "1,023 MiB"),
        (1023.6 * 2**20, "1 GiB"),
        (2**60, "1,024 PiB"),
        (-600 * 2**20, "-600 MiB"),
    ],
)
def test_sizes_change_units_where_the_rounded_number_does(num_bytes, words):
    assert format_bytes(num_bytes) == words


@pytest.mark.parametrize(
    ("rate", "words"),
    [
        (0.0009999, "0.001"),
        (0.00099, "9.9e-4"),
        (9990, "9990"),
        (9999, "1e4"),
        (123.4, "123"),
        (2e-9, "2e-9"),
    ],
)
def test_learning_rates_are_written_as_in_code(rate, words):
    assert format_learning_rate(rate) == words


@given(st.floats(1e-12, 1e6))
def test_a_learning_rate_reads_back_as_the_rounded_number(rate):
    assert float(format_learning_rate(rate)) == pytest.approx(round_significant(rate, 3), rel=1e-12)


@given(st.floats(1e-9, 8e7))
@example(59.5)
@example(3599.5)
@example(86399.9)
def test_a_duration_reads_back_within_its_digits(seconds):
    parts = format_seconds(seconds).split()
    units = zip(parts[0::2], parts[1::2], strict=True)
    back = sum(float(n.replace(",", "")) * _SECONDS[unit] for n, unit in units)
    assert back == pytest.approx(seconds, rel=0.051)


@given(st.integers(0, 2**59))
def test_a_size_reads_back_within_its_digits(num_bytes):
    number, unit = format_bytes(num_bytes).split()
    back = float(number.replace(",", "")) * _BYTES[unit]
    assert back == pytest.approx(num_bytes, rel=0.051)


@given(st.floats(1e-6, 1e14), st.integers(1, 6))
def test_a_number_keeps_its_digits_and_no_more(value, digits):
    words = format_number(value, digits)
    assert float(words.replace(",", "")) == pytest.approx(round_significant(value, digits))
    significand = words.replace(",", "").split("e")[0].replace(".", "").strip("0")
    assert len(significand) <= digits


@given(st.floats(1e-6, 1e9), st.floats(1e-6, 1e9))
def test_rounding_keeps_the_order_so_an_interval_never_crosses_its_value(one, other):
    low, high = sorted((one, other))
    assert round_significant(low) <= round_significant(high)


def test_every_missing_end_of_an_interval_has_words():
    words = {
        (v, low, high): format_interval(v, low, high)
        for v in (None, 5)
        for low in (None, 0, 2)
        for high in (None, 9)
    }
    assert words == {
        (None, None, None): "unknown",
        (None, None, 9): "at most 9",
        (None, 0, None): "unknown",
        (None, 0, 9): "at most 9",
        (None, 2, None): "at least 2",
        (None, 2, 9): "2 to 9",
        (5, None, None): "5",
        (5, None, 9): "5 (0 to 9)",
        (5, 0, None): "5 (0 to unbounded)",
        (5, 0, 9): "5 (0 to 9)",
        (5, 2, None): "5 (2 to unbounded)",
        (5, 2, 9): "5 (2 to 9)",
    }


@pytest.mark.parametrize(
    ("ratio", "words"), [(0.9949, "0.99x"), (0.996, "1x"), (1.034, "1.03x"), (1.996, "2x")]
)
def test_ratios_near_one_keep_the_digit_that_matters(ratio, words):
    assert format_ratio(ratio) == words


def test_zero_is_zero_everywhere():
    assert format_count(0) == format_number(0) == format_learning_rate(0) == "0"
    assert format_number(-0.0) == "0"
    assert (format_seconds(0), format_bytes(0), format_ratio(0)) == ("0 s", "0 B", "0x")
    assert math.copysign(1, round_significant(0.0)) == 1
