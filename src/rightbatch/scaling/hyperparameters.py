"""Every setting of an optimizer at another batch size: a pure function of numbers."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

from rightbatch.results import Change, Validity
from rightbatch.scaling.families import (
    OptimizerFamily,
    family_of,
    is_decoupled,
    similar_names,
)
from rightbatch.scaling.groups import numbers_of
from rightbatch.scaling.move import (
    LARGEST_FIRST_BETA_RATIO,
    AutoRule,
    FirstBetaPolicy,
    MomentumPolicy,
    Move,
)
from rightbatch.scaling.origins import Origins, fresh_origins
from rightbatch.scaling.rates import (
    Group,
    Rates,
    common_rates,
    momentum_factor_of,
    over_examples,
    total_factor,
    uses,
)
from rightbatch.scaling.report import ScalingReport
from rightbatch.scaling.settings import decoupled_weight_decay, eps_over_root

RATES = (
    "lr",
    "initial_lr",
    "max_lr",
    "min_lr",
    "swa_lr",
)  # torch's schedulers keep theirs in the groups

_ROUNDING = 1e-9  # ten times 1 - 0.9 is not quite 1


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """A group after the move."""

    changes: tuple[Change, ...]
    origins: Origins
    rate_ratio: float  # of the learning rate, this move's alone


def scaled_hyperparameters(
    optimizer: str,
    hyperparameters: Mapping[str, Any],
    from_batch_size: int,
    to_batch_size: int,
    *,
    rule: AutoRule = "auto",
    noise_scale: float | None = None,
    critical_batch_size: float | None = None,
    edge: float | None = None,
    learning_rate: float | None = None,
    momentum: MomentumPolicy = "keep",
    first_beta: FirstBetaPolicy = "auto",
) -> ScalingReport:
    """Compute an optimizer's settings at another batch size, and change nothing.

    The trap: without a critical batch size or a noise scale nothing says whether a rule holds,
    and the report is not valid, only not known to be wrong.

    Args:
        optimizer: Its class name.
        hyperparameters: Settings by name, as `rightbatch.results.TaskFacts` has them: "lr",
            "momentum", "beta1", "beta2", "alpha", "eps", "weight_decay"; or as an optimizer's
            ``defaults`` have them, with "betas". What is no number is ignored.
        from_batch_size: Examples an optimizer step that they suit.
        to_batch_size: Examples an optimizer step to train with.
        rule: Of the learning rate; "auto" as in `rightbatch.scale_hyperparameters`.
        noise_scale: Gradient noise scale in examples.
        critical_batch_size: In examples; where given, it takes the place of the noise scale.
        edge: Largest stable learning rate; the new one is never above.
        learning_rate: What a measurement at the new size gave, in place of the rule's. Weight
            decay moves as by the rule.
        momentum: As in `rightbatch.scale_hyperparameters`.
        first_beta: As in `rightbatch.scale_hyperparameters`.

    Returns:
        The changes; `ScalingReport.hyperparameters` has the new values by name.

    Raises:
        ValueError: If a number is out of range or a choice is unknown.

    Example:
        >>> today = {"lr": 0.001, "beta1": 0.5, "beta2": 0.75, "eps": 1e-8, "weight_decay": 0.1}
        >>> report = scaled_hyperparameters("AdamW", today, 64, 256, noise_scale=1000.0)
        >>> report.hyperparameters["lr"], report.hyperparameters["weight_decay"]
        (0.002, 0.2)
        >>> report.hyperparameters["beta1"], report.hyperparameters["beta2"]
        (0.0625, 0.31640625)
    """
    move = Move(
        from_batch_size=from_batch_size,
        to_batch_size=to_batch_size,
        rule=rule,
        noise_scale=noise_scale,
        critical_batch_size=critical_batch_size,
        edge=edge,
        learning_rate=learning_rate,
        momentum=momentum,
        first_beta=first_beta,
    )
    family = family_of(optimizer)
    group = Group(
        values=_checked_numbers(hyperparameters, family),
        origins=fresh_origins(move.from_batch_size),
        decoupled=family is not None and is_decoupled(family, hyperparameters),
    )
    rates = common_rates([group], family, move)
    moved = moved_group(group, family, move, rates)
    return assemble(optimizer, family, move, rates, [group], [moved])


def _checked_numbers(
    settings: Mapping[str, Any], family: OptimizerFamily | None
) -> dict[str, float]:
    values = numbers_of(settings)
    if "lr" not in values:
        raise ValueError(
            f"`hyperparameters` must have a learning rate 'lr', got {', '.join(settings)}. "
            "Every other setting is scaled beside it."
        )
    decays = () if family is None else (family.momentum, family.first_beta, family.second_beta)
    sizes = ("lr", "weight_decay") if family is None else ("lr", "weight_decay", family.eps)
    for name, value in values.items():
        top = 1.0 if name in decays else math.inf
        if name in (*decays, *sizes) and not (0 <= value <= top and math.isfinite(value)):
            limits = "in [0, 1]" if name in decays else "finite and not negative"
            raise ValueError(
                f"`hyperparameters` must have {name!r} {limits}, got {name}={value!r}. "
                "No optimizer trains with it: pass what the optimizer has."
            )
    return values


def moved_group(group: Group, family: OptimizerFamily | None, move: Move, rates: Rates) -> Moved:
    """Move every setting of one group."""
    momentum_factor = momentum_factor_of(group, family, move)
    total = total_factor(group, family, move, rates)
    changes = [_rate(name, group, total, rates) for name in RATES if name in group.values]
    if family is not None:
        averages = [*_averages(group, family, move), *_eps(group, family, move)]
        changes += [_unmoved(change) for change in averages] if move.stays else averages
        changes += _weight_decay(group, move, total, rates)
    origins = replace(
        group.origins,
        batch_size=move.to_batch_size,
        rate_factor=total,
        momentum_factor=momentum_factor,
        settings={
            c.parameter: replace(group.origins.of(c.parameter, c.before), last=c.after)
            for c in changes
            # A given rate is where the next move starts from, as one that the user sets.
            if rates.retuned is None or c.parameter not in RATES
        },
    )
    ratio = total / group.origins.rate_factor * (rates.retuned or 1.0)
    return Moved(changes=tuple(changes), origins=origins, rate_ratio=ratio)


def assemble(
    optimizer: str,
    family: OptimizerFamily | None,
    move: Move,
    rates: Rates,
    groups: Sequence[Group],
    moved: Sequence[Moved],
) -> ScalingReport:
    """Join the groups' changes into one report; rows that agree in all groups are one row."""
    warnings = [*rates.warnings, *_short_memories(moved)]
    if family is None:
        near = similar_names(optimizer)
        warnings.append(
            f"{optimizer} is of unknown kind: only its rate was scaled ({rates.why}). "
            "Say what its settings are with rightbatch.scaling.register_optimizer"
            + (f"; {', '.join(near)} are known." if near else ".")
        )
    return ScalingReport(
        optimizer=optimizer,
        from_batch_size=move.from_batch_size,
        to_batch_size=move.to_batch_size,
        rule=rates.rule,
        changes=_joined(moved),
        warnings=tuple(warnings),
        not_scaled=_not_scaled(family, groups)
        if move.to_batch_size != move.from_batch_size
        else (),
    )


def _unmoved(change: Change) -> Change:
    """Leave a setting as it is where the size stays, whatever else is known now than before."""
    return replace(change, after=change.before, validity=Validity.HOLDS)


def _rate(name: str, group: Group, total: float, rates: Rates) -> Change:
    now = group.values[name]
    origin = group.origin_of(name)
    after = origin.value * (total / origin.rate_factor)
    if rates.retuned is not None:
        after *= rates.retuned
    return Change(parameter=name, before=now, after=after, why=rates.why, validity=rates.validity)


def _averages(group: Group, family: OptimizerFamily, move: Move) -> Iterator[Change]:
    """Momentum, first and second beta, as far as the group has them."""
    if family.momentum is not None and uses(group, family.momentum):
        if move.momentum == "examples":
            why = "half-life kept in examples; the rate makes up for it"
            yield _average(group, family.momentum, move, why=why)
        else:
            yield _kept(group, family.momentum, "kept: its half-life in steps")
    name = family.first_beta
    if name in family.unscaled and name in group.values:
        yield _kept(group, name, "kept: no rule covers it", Validity.UNCHECKED)
    elif name is not None and name in group.values:
        ratio = move.to_batch_size / group.origin_of(name).batch_size
        near = 1 / LARGEST_FIRST_BETA_RATIO <= ratio <= LARGEST_FIRST_BETA_RATIO
        if move.first_beta == "examples" or (move.first_beta == "auto" and near):
            yield _average(group, name, move, why="half-life kept in examples")
        else:
            why = "kept" if move.first_beta == "keep" else "kept: the sizes are too far apart"
            yield _kept_beta(group, name, move, why)
    name = family.second_beta
    if name in family.unscaled and name in group.values:
        yield _kept(group, name, "kept: no rule covers it", Validity.UNCHECKED)
    elif name is not None and name in group.values:
        yield _average(group, name, move, why="half-life kept in examples")


def _average(group: Group, name: str, move: Move, *, why: str) -> Change:
    return Change(
        parameter=name,
        before=group.values[name],
        after=over_examples(group, name, move),
        why=why,
        validity=_memory(group, name, move),
    )


def _kept_beta(group: Group, name: str, move: Move, why: str) -> Change:
    """Go back to the value of before the first move, which a nearer size may have moved."""
    origin = group.origin_of(name)
    return Change(
        parameter=name,
        before=group.values[name],
        after=group.values[name] if move.first_beta == "keep" else origin.value,
        why=why,
        validity=_memory(group, name, move),
    )


def _memory(group: Group, name: str, move: Move) -> Validity:
    """A half-life in examples can be kept only while it is longer than one step."""
    origin = group.origin_of(name)
    steps = (move.to_batch_size / origin.batch_size) * (1 - origin.value)
    growing = move.to_batch_size > origin.batch_size
    return Validity.OUTSIDE if growing and steps >= 1 - _ROUNDING else Validity.HOLDS


def _kept(group: Group, name: str, why: str, validity: Validity = Validity.HOLDS) -> Change:
    now = group.values[name]
    return Change(parameter=name, before=now, after=now, why=why, validity=validity)


def _eps(group: Group, family: OptimizerFamily, move: Move) -> Iterator[Change]:
    name = family.eps
    if name is None or not group.values.get(name):
        return
    origin = group.origin_of(name)
    yield Change(
        parameter=name,
        before=group.values[name],
        after=eps_over_root(origin.value, move.to_batch_size / origin.batch_size),
        why="same share of the root of the second moment, where noise dominates it",
        validity=move.regime(origin.batch_size)[0],
    )


def _weight_decay(group: Group, move: Move, total: float, rates: Rates) -> Iterator[Change]:
    if not group.values.get("weight_decay"):
        return
    if not group.decoupled:
        yield _kept(group, "weight_decay", "kept: a term of the loss, whose minimum stays")
        return
    origin = group.origin_of("weight_decay")
    yield Change(
        parameter="weight_decay",
        before=group.values["weight_decay"],
        after=decoupled_weight_decay(
            origin.value,
            move.to_batch_size / origin.batch_size,
            total / origin.rate_factor,
        ),
        why="same time scale in examples: times the batch's ratio, over the rate's"
        + (" by the rule" if rates.retuned is not None else ""),
        validity=Validity.HOLDS,
    )


def _short_memories(moved: Sequence[Moved]) -> list[str]:
    names = dict.fromkeys(
        change.parameter
        for group in moved
        for change in group.changes
        if change.validity is Validity.OUTSIDE
        and change.parameter not in RATES
        and change.parameter != "eps"
    )
    return [
        f"outside validity: {name} would forget within one step of the new size "
        "(kappa (1 - decay) is 1 or more), so its half-life in examples cannot be kept. "
        "Choose a size nearer by."
        for name in names
    ]


def _not_scaled(family: OptimizerFamily | None, groups: Sequence[Group]) -> tuple[str, ...]:
    names = dict.fromkeys(
        name
        for group in groups
        for name, value in group.values.items()
        if value and (name not in RATES if family is None else name in family.unscaled)
    )
    return (*names, *(("the optimizer's state",) if family is None else ()))


def _joined(moved: Sequence[Moved]) -> tuple[Change, ...]:
    names = dict.fromkeys(change.parameter for group in moved for change in group.changes)
    joined: list[Change] = []
    for name in names:
        rows = [
            replace(change, group=index)
            for index, group in enumerate(moved)
            for change in group.changes
            if change.parameter == name
        ]
        alike = len(rows) == len(moved) and len({replace(row, group=None) for row in rows}) == 1
        joined += [replace(rows[0], group=None)] if alike else rows
    return tuple(joined)
