"""Which batch sizes are possible: whole examples, equal shares, within memory and data set."""

import operator
from typing import Any

_MOST = 2**53  # up to here a float counts every example


def nearest_valid(batch_size: int, multiple: int) -> tuple[int, ...]:
    """Name the nearest batch sizes that can be shared out equally.

    Args:
        batch_size: Examples per optimizer step; positive.
        multiple: What it must be a multiple of: devices times accumulation steps.

    Returns:
        The size itself where it is valid, else the next below (unless that is zero) and above.

    Raises:
        ValueError: If a number is not a positive whole number.

    Example:
        >>> nearest_valid(100, 16), nearest_valid(96, 16), nearest_valid(5, 8)
        ((96, 112), (96,), (8,))
    """
    batch_size = check_whole("batch_size", batch_size)
    multiple = check_whole("multiple", multiple)
    below = batch_size // multiple * multiple
    above = below if below == batch_size else below + multiple
    return tuple(size for size in sorted({below, above}) if size)


def whole(number: Any) -> int | None:
    """Return a whole number of any library as an ``int``, and nothing for what is none.

    Example:
        >>> import numpy as np
        >>> whole(np.int64(64)), whole(64.0), whole(True)
        (64, None, None)
    """
    if isinstance(number, bool):
        return None
    try:
        return operator.index(number)
    except TypeError:
        return None


def check_whole(name: str, number: int) -> int:
    """Refuse what is no positive whole number.

    Returns:
        The number as an ``int``, which a state can hold.

    Raises:
        ValueError: If it is below 1, above what can be counted, or not whole.
    """
    exact = whole(number)
    if exact is None or exact < 1:
        raise ValueError(
            f"`{name}` must be a whole number of at least 1, got {name}={number!r}. "
            "An optimizer step needs examples, and they cannot be cut: round it before."
        )
    if exact > _MOST:
        raise ValueError(
            f"`{name}` must be at most 2**53, got {name} of {exact.bit_length()} bits. "
            "Counts above it are not exact: no data set has so many examples."
        )
    return exact


def check_divides(batch_size: int, multiple: int, *, of: str) -> int:
    """Refuse a batch size that cannot be shared out equally.

    Args:
        batch_size: Examples per optimizer step.
        multiple: What must divide it.
        of: What the multiple counts, for the message: "devices".

    Returns:
        The batch size as an ``int``.

    Raises:
        ValueError: With the nearest valid sizes.
    """
    batch_size = check_whole("batch_size", batch_size)
    multiple = check_whole("multiple_of", multiple)
    if batch_size % multiple:
        nearest = " or ".join(str(size) for size in nearest_valid(batch_size, multiple))
        raise ValueError(
            f"`batch_size` must be a multiple of {multiple}, the number of {of}, got "
            f"batch_size={batch_size}. Unequal shares would weigh some examples more than others: "
            f"take {nearest}."
        )
    return batch_size


def check_fits(
    batch_size: int, *, max_batch_size: int | None = None, num_examples: int | None = None
) -> None:
    """Refuse a batch size that memory or the data set cannot supply.

    Args:
        batch_size: Examples per optimizer step.
        max_batch_size: The largest that memory holds; ``None``: not known.
        num_examples: In the data set; ``None``: not known.

    Raises:
        ValueError: If it exceeds one of them.
    """
    check_whole("batch_size", batch_size)
    if max_batch_size is not None and batch_size > max_batch_size:
        raise ValueError(
            f"`batch_size` must be at most max_batch_size={max_batch_size}, got "
            f"batch_size={batch_size}. A larger one does not fit in memory: end lower, or "
            "accumulate micro-batches."
        )
    if num_examples is not None and batch_size > num_examples:
        raise ValueError(
            f"`batch_size` must be at most the data set's {num_examples} examples, got "
            f"batch_size={batch_size}. No epoch would hold one such batch: end lower."
        )
