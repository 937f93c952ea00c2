"""One factor for the learning rates of all parameter groups: by a rule, given, or cut."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import final

from rightbatch._format import format_learning_rate, format_number
from rightbatch.results import Validity
from rightbatch.scaling.families import OptimizerFamily
from rightbatch.scaling.learning_rate import ScalingRule
from rightbatch.scaling.move import Move, mismatch
from rightbatch.scaling.origins import Origins
from rightbatch.scaling.settings import decay_over_examples


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """One parameter group as numbers."""

    values: Mapping[str, float]
    origins: Origins
    decoupled: bool  # whether its weight decay is outside the gradient


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What every group's rates are multiplied by, and why."""

    rule: ScalingRule
    factor: float  # from the first batch size to the new one, after the cap
    why: str
    validity: Validity
    warnings: tuple[str, ...]
    retuned: float | None = None  # by a given rate: its ratio to what the rule says


def common_rates(groups: Sequence[Group], family: OptimizerFamily | None, move: Move) -> Rates:
    """Find the one factor of all rates: by the rule, cut where the first group's meets the edge."""
    first = groups[0]
    rates = _by_rule(first, family, move)
    # A schedule lowers the rate of now; what the edge has to hold is the rate it started from.
    peak = first.values.get("initial_lr", first.values["lr"]) / first.origins.rate_factor
    wanted = peak * rates.factor * momentum_factor_of(first, family, move)
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
    origin = first.origins.first_batch_size
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


def momentum_factor_of(group: Group, family: OptimizerFamily | None, move: Move) -> float:
    """Keep ``lr / (1 - momentum)`` on the rule, where the momentum moves."""
    applied = group.origins.momentum_factor
    name = family.momentum if family is not None else None
    if name is None or not group.values.get(name) or move.momentum == "keep":
        return applied
    now = group.values[name]
    after = over_examples(group, name, move)
    return applied if after == now else applied * (1 - after) / (1 - now)


def over_examples(group: Group, name: str, move: Move) -> float:
    """Keep a running average's half-life in examples, from the size that its decay was set for."""
    origin = group.origins.of(name, group.values[name])
    return decay_over_examples(origin.value, move.to_batch_size / origin.batch_size)
