"""One factor for the learning rates of all parameter groups: by a rule, given, or cut."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import final

from rightbatch._format import format_learning_rate, format_number
from rightbatch.results import Validity
from rightbatch.scaling.families import OptimizerFamily
from rightbatch.scaling.learning_rate import ScalingRule
from rightbatch.scaling.move import Move, mismatch
from rightbatch.scaling.origins import Origin, Origins
from rightbatch.scaling.settings import decay_over_examples


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """One parameter group as numbers."""

    values: Mapping[str, float]
    origins: Origins
    decoupled: bool  # whether its weight decay is outside the gradient
    highest_rate: float | None = None  # of its schedule, where that is not among the values

    @property
    def peak(self) -> float:
        """The rate that an edge has to hold and that a measurement gives: not that of now."""
        highest = self.highest_rate
        if highest is None:
            highest = self.values.get("max_lr", self.values.get("initial_lr"))
        return self.values["lr"] if highest is None else highest

    def origin_of(self, name: str) -> Origin:
        """Find where a setting comes from."""
        return self.origins.of(name, self.values[name])


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What every group's rates are multiplied by, and why."""

    rule: ScalingRule
    factor: float  # from the first batch size; from now where the size stays; after the cap
    why: str
    validity: Validity
    warnings: tuple[str, ...]
    retuned: float | None = None  # by a given rate: its ratio to what the rule says


def common_rates(groups: Sequence[Group], family: OptimizerFamily | None, move: Move) -> Rates:
    """Find the one factor of all rates: by the rule, given, or cut at the edge.

    A given rate and the edge are those of the first group that trains: one with a rate of 0 says
    nothing about a factor.
    """
    first = next((group for group in groups if group.peak > 0), groups[0])
    rates = _by_rule(first, family, move)
    wanted = first.peak * total_factor(first, family, move, rates) / first.origins.rate_factor
    if move.learning_rate is not None and wanted > 0:
        given = replace(rates, why="given, not by a rule", validity=Validity.HOLDS, warnings=())
        rates = replace(given, retuned=move.learning_rate / wanted)
        if move.edge is not None and move.learning_rate > move.edge:
            return _cut(rates, move.learning_rate, move.edge, "the given rate is")
    elif move.edge is not None and wanted > move.edge:
        return _cut(rates, wanted, move.edge, "the rule asks for a rate of")
    return rates


def _by_rule(first: Group, family: OptimizerFamily | None, move: Move) -> Rates:
    rule = move.resolved(family)
    # Where the size stays nothing moves, whatever was known when it came there.
    origin = move.to_batch_size if move.stays else first.origins.first_batch_size
    validity, doubt = move.regime(origin)
    warnings = [doubt] if doubt else []
    why = f"{rule} rule"
    if rule not in ("linear", "sqrt") and move.saturation is not None:
        why += f" at {format_number(move.saturation)} examples"
    if origin != move.to_batch_size:
        if validity is Validity.HOLDS and (family is None or not family.is_derived):
            validity = Validity.UNCHECKED
            why += ", tried but not derived for this optimizer"
        wrong = mismatch(rule, family) if family is not None else ""
        if wrong:
            validity = Validity.OUTSIDE
            warnings.append(wrong)
    return Rates(
        rule=rule,
        factor=move.ratio(origin, rule),
        why=why,
        validity=validity,
        warnings=tuple(warnings),
    )


def _cut(rates: Rates, wanted: float, edge: float, source: str) -> Rates:
    """Lower every rate so that the first is at the edge."""
    share = edge / wanted
    given = rates.retuned is not None
    return replace(
        rates,
        factor=rates.factor if given else rates.factor * share,
        retuned=rates.retuned * share if rates.retuned is not None else None,
        validity=Validity.OUTSIDE,
        why=f"{rates.why}, cut from {format_learning_rate(wanted)} by the measured edge",
        warnings=(
            *rates.warnings,
            f"outside validity: {source} {format_learning_rate(wanted)}, above "
            f"the measured edge of {format_learning_rate(edge)}, to which it is cut. Expect "
            "less of the larger batch than the rule promises.",
        ),
    )


def total_factor(group: Group, family: OptimizerFamily | None, move: Move, rates: Rates) -> float:
    """Multiply everything that a group's rates get, from its first batch size to the new one."""
    if move.stays:
        return group.origins.rate_factor * rates.factor
    return rates.factor * momentum_factor_of(group, family, move)


def momentum_factor_of(group: Group, family: OptimizerFamily | None, move: Move) -> float:
    """Keep ``lr / (1 - momentum)`` on the rule, where the momentum moves."""
    applied = group.origins.momentum_factor
    name = family.momentum if family is not None else None
    if name is None or move.stays or move.momentum == "keep" or not uses(group, name):
        return applied
    now = group.values[name]
    after = over_examples(group, name, move)
    return applied if after == now else applied * (1 - after) / (1 - now)


def uses(group: Group, name: str) -> bool:
    """Whether a group has a setting above 0; one that a power took below any number counts too."""
    return name in group.values and group.origin_of(name).value > 0


def over_examples(group: Group, name: str, move: Move) -> float:
    """Keep a running average's half-life in examples, from the size that its decay was set for."""
    origin = group.origin_of(name)
    return decay_over_examples(origin.value, move.to_batch_size / origin.batch_size)
