"""What a sampler refuses: states of other runs, and what two would decide, or nobody."""

import warnings
from collections.abc import Mapping
from typing import Any

from rightbatch.batches.schedules import BatchSizeSchedule


def check_version(state: Mapping[str, Any], version: int) -> None:
    """Refuse the state of another release.

    Raises:
        ValueError: If the versions differ.
    """
    if state.get("version") != version:
        raise ValueError(
            f"`state` must be of version {version}, got {state.get('version')!r}. "
            "It was saved by another release: begin a new run."
        )


def check_same(name: str, saved: Any, here: Any, *, why: str) -> None:
    """Refuse the state of a run that was set up in another way.

    Args:
        name: Of what must be the same.
        saved: In the state.
        here: Of the sampler that loads it.
        why: A sentence.

    Raises:
        ValueError: If they differ.
    """
    if saved != here:
        raise ValueError(
            f"`state` must be of the same {name} {here}, got {saved}. {why} "
            "Build the sampler as the run began."
        )


def load_schedule(schedule: BatchSizeSchedule | None, state: Mapping[str, Any] | None) -> None:
    """Restore a schedule's state, where both or neither exist.

    Raises:
        ValueError: If one of them is missing, or they differ.
    """
    if schedule is not None and state is not None:
        schedule.load_state_dict(state)
    elif schedule is not None or state is not None:
        there = "no schedule" if state is None else state["schedule"]
        raise ValueError(
            f"`state` must be of the same schedule, got {there!r} for {schedule!r}. "
            "Sizes would jump: build the sampler as the run began."
        )


def refuse_two_masters(schedule: BatchSizeSchedule | None) -> None:
    """Refuse a size by hand where a schedule says it.

    Raises:
        ValueError: If there is a schedule.
    """
    if schedule is not None:
        raise ValueError(
            f"`set_batch_size` must be called without a schedule, got {schedule!r}. "
            "The schedule would undo it at the next batch: pass a number as `batch_size` first."
        )


def warn_of_silence(schedule: BatchSizeSchedule | None) -> None:
    """Warn of a schedule that follows the noise, and was handed none in a whole pass."""
    if schedule is not None and schedule.waits_for_noise:
        warnings.warn(
            f"`batch_size` follows a noise scale that nobody measures: {schedule!r} was handed "
            "none in this pass, and stays where it is. Give the sampler a number and the schedule "
            "to BatchSizeController(monitor=...), or call schedule.size_at(examples_seen, noise).",
            UserWarning,
            stacklevel=3,
        )
