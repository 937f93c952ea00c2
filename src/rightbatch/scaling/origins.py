"""Where an optimizer's settings come from, so that moves in turn equal one move.

A cap, or a beta that stays beyond some ratio, forgets what it cut off. So every setting keeps
the value and the batch size of before the first move, and each move starts from there, for as
long as nobody else changes the setting in between.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, final


@final
@dataclass(frozen=True, slots=True)
class Origin:
    """One setting before the first move."""

    batch_size: float
    value: float
    rate_factor: float  # what the learning rate had been multiplied by, then
    last: float  # what the last move left: another value now is somebody's own choice


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Origins:
    """What one parameter group remembers of its moves; numbers only, as it is saved with it."""

    batch_size: float  # that the group is set for now
    first_batch_size: float
    rate_factor: float  # of the learning rate, from the first batch size until now
    momentum_factor: float  # its part that makes up for another momentum
    settings: Mapping[str, Origin]
    averaged_inverse_size: float  # mean of 1 / batch size over what the second moment remembers
    step: float  # optimizer steps when it was that

    def of(self, name: str, value: float) -> Origin:
        """Find a setting's origin: here and now, if it is new or was changed by somebody."""
        known = self.settings.get(name)
        if known is not None and known.last == value:
            return known
        return Origin(self.batch_size, value, self.rate_factor, value)

    def as_written(self, values: Mapping[str, float]) -> "Origins":
        """Remember what was stored: a setting in a float32 tensor is not quite what was meant."""
        settings = {name: replace(o, last=values[name]) for name, o in self.settings.items()}
        return replace(self, settings=settings)

    def as_state(self) -> dict[str, Any]:
        """Write it as plain numbers for an optimizer's ``state_dict``."""
        return {
            "batch_size": self.batch_size,
            "first_batch_size": self.first_batch_size,
            "rate_factor": self.rate_factor,
            "momentum_factor": self.momentum_factor,
            "averaged_inverse_size": self.averaged_inverse_size,
            "step": self.step,
            "settings": {
                name: [o.batch_size, o.value, o.rate_factor, o.last]
                for name, o in self.settings.items()
            },
        }


def fresh_origins(batch_size: float, others: Origins | None = None) -> Origins:
    """Start to remember, here and now.

    Args:
        batch_size: That the settings are for.
        others: What groups remember whose rates this group's will move with.
    """
    return Origins(
        batch_size=batch_size,
        first_batch_size=others.first_batch_size if others else batch_size,
        rate_factor=others.rate_factor if others else 1.0,
        momentum_factor=others.momentum_factor if others else 1.0,
        settings={},
        averaged_inverse_size=1 / batch_size,
        step=0.0,
    )


def origins_from_state(state: Mapping[str, Any]) -> Origins:
    """Read what `Origins.as_state` wrote."""
    settings: Mapping[str, Sequence[float]] = state["settings"]
    return Origins(
        batch_size=state["batch_size"],
        first_batch_size=state["first_batch_size"],
        rate_factor=state["rate_factor"],
        momentum_factor=state["momentum_factor"],
        averaged_inverse_size=state["averaged_inverse_size"],
        step=state["step"],
        settings={name: Origin(*numbers) for name, numbers in settings.items()},
    )
