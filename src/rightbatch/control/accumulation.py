"""How many micro-batches a batch is cut into, and how much each of them weighs."""

import math

from rightbatch.batches import nearest_valid
from rightbatch.batches.sizes import check_divides

_WASTE = 2  # a micro-batch may be so many times smaller than memory asks for


def accumulation_for(batch_size: int, world_size: int, max_micro_batch_size: int | None) -> int:
    """Choose the fewest accumulation steps that make equal micro-batches which fit.

    The trap: 97 examples divide into 97 micro-batches of one and nothing else. Where the fewest
    steps come to more than twice what memory asks for, the size is refused, and the nearest
    that divide are named.

    Args:
        batch_size: Examples per optimizer step, over all devices.
        world_size: Number of devices.
        max_micro_batch_size: Examples that fit on one; ``None``: no limit.

    Returns:
        The steps: ``batch_size`` is a multiple of ``steps * world_size``.

    Raises:
        ValueError: If the size cannot be shared out; the nearest valid sizes are named.

    Example:
        >>> accumulation_for(256, 2, 48), 256 // (2 * 4)
        (4, 32)
    """
    check_divides(batch_size, world_size, of="devices")
    share = batch_size // world_size
    fewest = 1 if max_micro_batch_size is None else -(-share // max_micro_batch_size)
    steps = next(count for count in range(fewest, share + 1) if share % count == 0)
    if steps > _WASTE * fewest:
        nearest = " or ".join(map(str, nearest_valid(batch_size, fewest * world_size)))
        raise ValueError(
            f"`batch_size` must divide into micro-batches of at most {max_micro_batch_size} on "
            f"{world_size} devices, got batch_size={batch_size}. Equal ones would hold only "
            f"{share // steps} examples, in {steps} accumulation steps where {fewest} suffice: "
            f"take {nearest}."
        )
    return steps


def check_devices(of_sampler: int, of_group: int) -> None:
    """Refuse a sampler that shares batches out over other devices than train.

    Args:
        of_sampler: Its number of devices.
        of_group: The number of ranks.

    Raises:
        ValueError: If they differ.
    """
    if of_sampler != of_group:
        raise ValueError(
            f"`sampler` must share batches out over the {of_group} devices that train, got "
            f"world_size={of_sampler}. Examples would be repeated or left out: pass the sampler "
            "their `world_size` (and each its `rank`), or neither where a process group is "
            "initialised before."
        )


def share_of_units(units: float, total_units: float, world_size: int) -> float:
    """Return what the mean loss of a micro-batch must be multiplied by.

    Args:
        units: That the mean ran over: examples, or unmasked tokens.
        total_units: Of all micro-batches of all devices.
        world_size: Number of devices, over which gradients are averaged afterwards.

    Raises:
        ValueError: If the units are not between 0 and a positive total.

    Example:
        >>> share_of_units(30, 40, 1), share_of_units(10, 40, 2)
        (0.75, 0.5)
    """
    if not (math.isfinite(total_units) and 0 <= units <= total_units and total_units > 0):
        raise ValueError(
            f"`units` must be between 0 and a positive `total_units`, got units={units!r} and "
            f"total_units={total_units!r}. The total runs over all micro-batches of the "
            "optimizer step, on all devices: count it before the first backward pass."
        )
    return units * world_size / total_units
