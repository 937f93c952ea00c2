"""Parameter groups as numbers: read before a move, written after it."""

import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from rightbatch.scaling.families import OptimizerFamily, is_decoupled
from rightbatch.scaling.origins import Origins, fresh_origins, origins_from_state
from rightbatch.scaling.rates import Group
from rightbatch.scaling.schedulers import write_number

MEMORY = "batch_size_scaling"  # entry of a parameter group; saved with the optimizer
_BETAS = {"beta1": 0, "beta2": 1}
_SHARED_TOLERANCE = 1e-6  # a tensor in single precision holds no more


def read_groups(
    optimizer: Optimizer,
    family: OptimizerFamily | None,
    from_batch_size: int,
    highest_rates: Sequence[float | None],
) -> tuple[Group, ...]:
    """Read every parameter group.

    Args:
        optimizer: Whose groups are read.
        family: Of the optimizer.
        from_batch_size: That it is said to be set for.
        highest_rates: Of each group's schedule, where a scheduler holds it.

    Returns:
        The groups, each with what it remembers of earlier moves.

    Raises:
        ValueError: If a group has no rate, or was left at another batch size.
    """
    memories = [group.get(MEMORY) or {} for group in optimizer.param_groups]
    for index, memory in enumerate(memories):
        if memory and memory["batch_size"] != from_batch_size:
            raise ValueError(
                f"`from_batch_size` must be what the optimizer is set for, got from_batch_size="
                f"{from_batch_size} and a group {index} that is set for {memory['batch_size']:g} "
                "examples a step. Its settings would be scaled a second time: pass "
                f"from_batch_size={memory['batch_size']:g}, or delete {MEMORY!r} from every "
                f"parameter group if you set everything for {from_batch_size} yourself."
            )
    # The rates of all groups move together, so one that joined later shares their history.
    shared = next((origins_from_state(memory) for memory in memories if memory), None)
    groups: list[Group] = []
    for index, (entries, memory) in enumerate(zip(optimizer.param_groups, memories, strict=True)):
        values = numbers_of(entries)
        rate = values.get("lr")
        if rate is None or not (math.isfinite(rate) and rate >= 0):
            raise ValueError(
                f"group {index} of the optimizer must have a finite learning rate 'lr' of at least "
                f"0, got {entries.get('lr')!r}. There is nothing to scale: set one first."
            )
        origins = origins_from_state(memory) if memory else fresh_origins(from_batch_size, shared)
        decoupled = family is not None and is_decoupled(family, entries)
        highest = highest_rates[index]
        group = Group(values=values, origins=origins, decoupled=decoupled, highest_rate=highest)
        groups.append(group)
    return tuple(groups)


def numbers_of(settings: Mapping[str, Any]) -> dict[str, float]:
    """Take the numbers out of a parameter group: betas by their places, tensors of one number."""
    betas = settings.get("betas") or ()
    flat = {**{name: betas[i] for name, i in _BETAS.items() if i < len(betas)}, **settings}
    found: dict[str, float] = {}
    for name, value in flat.items():
        is_scalar = isinstance(value, Tensor) and value.numel() == 1
        if is_scalar or (isinstance(value, numbers.Real) and not isinstance(value, bool)):
            found[name] = float(value)
    return found


def write_groups(
    groups: Sequence[dict[str, Any]],
    values: Sequence[Mapping[str, float]],
    origins: Sequence[Origins],
) -> None:
    """Write the new settings of all parameter groups, and what each is to remember.

    Args:
        groups: Of the optimizer.
        values: Of each, by name; betas by their places.
        origins: Of each, after the move.
    """
    for group, new in zip(groups, values, strict=True):
        for name, value in new.items():
            _write_setting(group, name, value)
    # Only now, since groups may share a tensor.
    for group, remembered in zip(groups, origins, strict=True):
        group[MEMORY] = remembered.as_written(numbers_of(group)).as_state()


def _write_setting(group: dict[str, Any], name: str, value: float) -> None:
    if name in group:
        write_number(group, name, value)
        return
    betas = list(group["betas"])
    write_number(betas, _BETAS[name], value)
    group["betas"] = tuple(betas)


def check_shared_tensors(
    groups: Sequence[Mapping[str, Any]], values: Sequence[Mapping[str, float]]
) -> None:
    """Refuse to write two numbers into one tensor.

    Args:
        groups: Of the optimizer.
        values: What is to be written into each, by name.

    Raises:
        ValueError: If groups share a tensor and would differ.
    """
    wanted: dict[int, tuple[int, float]] = {}
    for index, (group, new) in enumerate(zip(groups, values, strict=True)):
        for name, value in new.items():
            holder = group.get(name)
            if not isinstance(holder, Tensor):
                continue
            first, expected = wanted.setdefault(id(holder), (index, value))
            if not math.isclose(value, expected, rel_tol=_SHARED_TOLERANCE):
                raise ValueError(
                    f"groups {first} and {index} share one tensor as {name!r}, and must have "
                    f"{expected:g} and {value:g} at the new size. One tensor cannot hold both: "
                    "give each group a tensor of its own."
                )
