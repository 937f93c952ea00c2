"""A change of batch size: what is known about it, which rule follows, and where that rule holds."""

import math
from dataclasses import dataclass
from typing import Literal, final

from rightbatch._format import format_count, format_number
from rightbatch.results import Validity
from rightbatch.scaling.families import OptimizerFamily
from rightbatch.scaling.learning_rate import RULES, ScalingRule, check_batch_sizes, rate_ratio

AutoRule = ScalingRule | Literal["auto"]
MomentumPolicy = Literal["keep", "examples"]
FirstBetaPolicy = Literal["auto", "keep", "examples"]

LARGEST_FIRST_BETA_RATIO = 4  # pilots: beyond, a shorter first average hurts


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """From which batch size to which, with the evidence there is and what was asked for."""

    from_batch_size: int
    to_batch_size: int
    rule: AutoRule = "auto"
    noise_scale: float | None = None
    critical_batch_size: float | None = None
    edge: float | None = None
    learning_rate: float | None = None  # at the new size: takes the rule's place
    momentum: MomentumPolicy = "keep"
    first_beta: FirstBetaPolicy = "auto"

    def __post_init__(self) -> None:
        """Refuse what no rule can be applied to.

        Raises:
            ValueError: If a number is out of range or a choice is unknown.
        """
        check_batch_sizes(self.from_batch_size, self.to_batch_size)
        if self.noise_scale is not None and not self.noise_scale >= 0:
            raise ValueError(
                f"`noise_scale` must not be negative, got noise_scale={self.noise_scale!r}. "
                "It counts examples: leave it out where it could not be resolved."
            )
        for name in ("critical_batch_size", "edge", "learning_rate"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(
                    f"`{name}` must be positive, got {name}={value!r}. "
                    "Leave it out where it was not measured."
                )
        if self.learning_rate is not None and math.isinf(self.learning_rate):
            raise ValueError(
                f"`learning_rate` must be finite, got learning_rate={self.learning_rate!r}. "
                "It is set as it is: leave it out to have a rule find one."
            )
        self._make_plain()
        _check_choice("rule", self.rule, ("auto", *RULES))
        _check_choice("momentum", self.momentum, ("keep", "examples"))
        _check_choice("first_beta", self.first_beta, ("auto", "keep", "examples"))

    def _make_plain(self) -> None:
        """Turn other kinds of numbers into Python's: a checkpoint with them cannot be loaded."""
        for name in ("from_batch_size", "to_batch_size"):
            size = float(getattr(self, name))
            object.__setattr__(self, name, int(size) if size.is_integer() else size)
        for name in ("noise_scale", "critical_batch_size", "edge", "learning_rate"):
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else float(value))

    @property
    def stays(self) -> bool:
        """Whether there is no change of the batch size."""
        return self.from_batch_size == self.to_batch_size

    @property
    def saturation(self) -> float | None:
        """Examples at which a larger batch stops helping: measured by training, else by noise."""
        return self.noise_scale if self.critical_batch_size is None else self.critical_batch_size

    def resolved(self, family: OptimizerFamily | None) -> ScalingRule:
        """Choose the rule by the optimizer and the evidence, unless one was asked for."""
        if self.rule != "auto":
            return self.rule
        wanted = "sqrt" if family is None else family.rule
        # Cut by a measured edge, linear came nearest to tuned rates (benchmarks, training
        # scaling); without an edge it diverges, and saturation has to hold it back.
        has_edge = self.edge is not None and math.isfinite(self.edge)
        if wanted == "saturating" and (has_edge or self.saturation is None):
            return "linear"
        return wanted

    def ratio(self, origin: float, rule: ScalingRule) -> float:
        """Divide the rule's rate at the new size by its rate at another, before any cap."""
        # A critical batch size from training beats the noise that stands in for it.
        return rate_ratio(origin, self.to_batch_size, rule, self.saturation)

    def regime(self, origin: float) -> tuple[Validity, str]:
        """Judge whether the sizes are small enough for the rules of noise; say why not."""
        largest = max(origin, self.to_batch_size)
        if origin == self.to_batch_size:
            return Validity.HOLDS, ""
        if self.saturation is None or math.isinf(self.saturation):
            return Validity.UNCHECKED, (
                "not checked: pass `critical_batch_size` or `noise_scale` to learn whether the "
                "rules hold at these sizes."
            )
        if largest > self.saturation:
            known = "noise scale" if self.critical_batch_size is None else "critical batch size"
            return Validity.OUTSIDE, (
                f"outside validity: {format_count(largest)} examples are above the {known} of "
                f"{format_number(self.saturation)}. Larger batches no longer save steps in "
                "proportion: race a few rates there (rightbatch.race)."
            )
        return Validity.HOLDS, ""


def mismatch(rule: ScalingRule, family: OptimizerFamily) -> str:
    """Say why a rule that was asked for was derived for other steps; empty if it was not."""
    for_gradient_steps = rule in ("linear", "saturating", "adascale")
    if family.step == "normalised" and for_gradient_steps:
        return (
            f"outside validity: the {rule} rule was derived for steps proportional to the "
            "gradient, which this optimizer's are not. Use rule='sqrt'."
        )
    if family.step == "gradient" and rule == "surge":
        return (
            "outside validity: the surge rule was derived for steps of normalised gradients. "
            "Use rule='saturating'."
        )
    return ""


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {', '.join(choices)}, got {name}={value!r}.")
