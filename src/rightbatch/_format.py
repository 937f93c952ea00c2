"""Numbers as words that people read: counts, times, sizes, rates, intervals.

Pure functions of numbers. ``None`` is always "unknown", so that a caller need not ask first.
Units are those of the argument's name; a thin thing (1,024, 3.2 ms, 1.4 GiB) is what comes out.
"""

import math
from collections.abc import Callable

UNKNOWN = "unknown"
_MINUTE, _HOUR, _DAY = 60, 3600, 86400
_LARGEST_PLAIN = 1e15  # above, a row of digits is no longer read
_BYTE_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def round_significant(value: float, digits: int = 2) -> float:
    """Round to a number of significant digits.

    Args:
        value: Any finite number.
        digits: Significant digits to keep, at least 1.

    Returns:
        The rounded number; 0 stays 0.

    Example:
        >>> round_significant(1234.0), round_significant(0.04567), round_significant(0.0)
        (1200.0, 0.046, 0.0)
    """
    return float(f"{value:.{digits - 1}e}")


def format_count(value: float | None) -> str:
    """Write a count with thousands separators, to the nearest whole number.

    Args:
        value: How many; ``None`` for not known.

    Returns:
        A short text.

    Example:
        >>> format_count(1024), format_count(0), format_count(None), format_count(3e18)
        ('1,024', '0', 'unknown', '3e18')
    """
    if value is None:
        return UNKNOWN
    return f"{value:,.0f}" if abs(value) < _LARGEST_PLAIN else _scientific(value, 3)


def format_number(value: float | None, digits: int = 2) -> str:
    """Write an estimate: no more digits than are meant.

    Args:
        value: The estimate; ``None`` for not known.
        digits: Significant digits.

    Returns:
        A short text; very small and very large numbers in powers of ten.

    Example:
        >>> format_number(412.7), format_number(1234.0), format_number(0.318)
        ('410', '1,200', '0.32')
        >>> format_number(1234.0, digits=3), format_number(2.0e-7), format_number(None)
        ('1,230', '2e-7', 'unknown')
    """
    if value is None:
        return UNKNOWN
    rounded = round_significant(value, digits)
    if rounded == 0:
        return "0"
    if not 1e-4 <= abs(rounded) < _LARGEST_PLAIN:
        return _scientific(rounded, digits)
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(rounded))))
    return _without_zeros(f"{rounded:,.{decimals}f}")


def format_seconds(value: float | None) -> str:
    """Write a duration in the unit that people would use.

    Args:
        value: Seconds; ``None`` for not known.

    Returns:
        Two significant digits below a minute, two units above.

    Example:
        >>> [format_seconds(s) for s in (0.0032, 41.2, 80, 7500, 0.00085)]
        ['3.2 ms', '41 s', '1 min 20 s', '2 h 5 min', '850 us']
        >>> format_seconds(59.7), format_seconds(0), format_seconds(200_000)
        ('1 min', '0 s', '2 d 8 h')
    """
    if value is None:
        return UNKNOWN
    if value < 0:
        return f"-{format_seconds(-value)}"
    if value >= 1000 * _DAY:
        return f"{format_number(value / _DAY)} d"
    if round(value) >= _MINUTE:
        return _two_units(value)
    for scale, unit in ((1, "s"), (1e-3, "ms"), (1e-6, "us")):
        if round_significant(value / scale) >= 1 or value == 0:
            return f"{format_number(value / scale)} {unit}"
    return f"{format_number(value / 1e-9)} ns"


def format_bytes(value: float | None) -> str:
    """Write a size in binary units: 1 GiB is 2^30 bytes.

    Args:
        value: Bytes; ``None`` for not known.

    Returns:
        Two significant digits below 10 of a unit, whole units above.

    Example:
        >>> [format_bytes(b) for b in (0, 17, 1_536, 600 * 2**20, 1.4 * 2**30)]
        ['0 B', '17 B', '1.5 KiB', '600 MiB', '1.4 GiB']
        >>> format_bytes(2**30 - 1), format_bytes(None)
        ('1 GiB', 'unknown')
    """
    if value is None:
        return UNKNOWN
    if value < 0:
        return f"-{format_bytes(-value)}"
    power = 0
    while power < len(_BYTE_UNITS) - 1 and round(value / 1024**power) >= 1024:
        power += 1
    scaled = value / 1024**power
    number = format_number(scaled) if scaled < 9.95 else format_count(scaled)
    return f"{number} {_BYTE_UNITS[power]}"


def format_learning_rate(value: float | None, digits: int = 3) -> str:
    """Write a learning rate as it is written in code.

    Args:
        value: The rate; ``None`` for not known.
        digits: Significant digits.

    Returns:
        A decimal from 0.001 on, a power of ten below; Python reads it back.

    Example:
        >>> [format_learning_rate(r) for r in (0.02, 3e-4, 0.001, 1.0, 0.0316228, 0)]
        ['0.02', '3e-4', '0.001', '1', '0.0316', '0']
        >>> format_learning_rate(0.0316228, digits=2), format_learning_rate(None)
        ('0.032', 'unknown')
    """
    if value is None:
        return UNKNOWN
    rounded = round_significant(value, digits)
    if rounded != 0 and not 1e-3 <= abs(rounded) < 1e4:
        return _scientific(rounded, digits)
    return format_number(rounded, digits).replace(",", "")


def format_setting(value: float | None) -> str:
    """Write a setting of an optimizer with digits enough to see a beta move.

    Args:
        value: A rate, a decay of an average, a small constant; ``None`` for not known.

    Example:
        >>> [format_setting(s) for s in (0.9, 0.9999, 0.99999, 0.9999999, 1e-8)]
        ['0.9', '0.9999', '0.99999', '1e-07 below 1', '1e-8']
    """
    if value is not None and 0.9 < value < 1:
        return f"{1 - value:.3g} below 1" if value > 0.999999 else f"{value:.6g}"
    return format_number(value, 4)


def format_ratio(value: float | None) -> str:
    """Write how many times one thing is another.

    Args:
        value: The ratio; ``None`` for not known.

    Returns:
        Two significant digits, three between 1 and 2, where the second decimal matters.

    Example:
        >>> [format_ratio(r) for r in (2.41, 1.034, 13.2, 0.853, 1.0)]
        ['2.4x', '1.03x', '13x', '0.85x', '1x']
        >>> format_ratio(None)
        'unknown'
    """
    if value is None:
        return UNKNOWN
    near_one = 0.995 <= value < 1.995
    return f"{format_number(round(value, 2), 3) if near_one else format_number(value)}x"


def format_interval(
    value: float | None,
    low: float | None,
    high: float | None,
    *,
    number: Callable[[float], str] = format_number,
) -> str:
    """Write a value with its 95 % interval, in words where an end is missing.

    Args:
        value: The estimate; ``None`` where only ends are known.
        low: Lower end; ``None`` or, without a value, 0: nothing is known from below.
        high: Upper end; ``None``: not bounded.
        number: How each number is written.

    Returns:
        A short text.

    Example:
        >>> format_interval(410, 300, 620), format_interval(410, 300, None)
        ('410 (300 to 620)', '410 (300 to unbounded)')
        >>> format_interval(None, 900, None), format_interval(None, 0, 50)
        ('at least 900', 'at most 50')
        >>> format_interval(None, 0, None), format_interval(410, None, None)
        ('unknown', '410')
        >>> format_interval(0.02, 0.01, 0.04, number=format_learning_rate)
        '0.02 (0.01 to 0.04)'
    """
    if value is None:
        return _ends_alone(low, high, number)
    if low is None and high is None:
        return number(value)
    upper = "unbounded" if high is None else number(high)
    return f"{number(value)} ({number(low or 0)} to {upper})"


def _ends_alone(low: float | None, high: float | None, number: Callable[[float], str]) -> str:
    if high is None:
        return f"at least {number(low)}" if low else UNKNOWN
    return f"{number(low)} to {number(high)}" if low else f"at most {number(high)}"


def _two_units(value: float) -> str:
    """Minutes and above, the smaller of the two units left out where it is 0."""
    pairs = ((_DAY, _HOUR, "d", "h"), (_HOUR, _MINUTE, "h", "min"), (_MINUTE, 1, "min", "s"))
    # The first pair whose larger unit the rounded duration fills.
    big, small, name, rest_name = next(p for p in pairs if round(value / p[1]) * p[1] >= p[0])
    whole, rest = divmod(round(value / small), big // small)
    return f"{whole:,} {name}" + (f" {rest} {rest_name}" if rest else "")


def _scientific(value: float, digits: int) -> str:
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    return f"{_without_zeros(mantissa)}e{int(exponent)}"


def _without_zeros(number: str) -> str:
    return number.rstrip("0").rstrip(".") if "." in number else number
