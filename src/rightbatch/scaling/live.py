"""Change the batch size of a training run, and everything in its optimizer that must follow."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, final

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from rightbatch.results import Change, Validity
from rightbatch.scaling.attached import Write, batch_norm_moves, ema_move
from rightbatch.scaling.families import OptimizerFamily, family_of
from rightbatch.scaling.groups import MEMORY, check_shared_tensors, read_groups, write_groups
from rightbatch.scaling.hyperparameters import Moved, assemble, moved_group
from rightbatch.scaling.move import AutoRule, FirstBetaPolicy, MomentumPolicy, Move
from rightbatch.scaling.rates import Group, common_rates
from rightbatch.scaling.report import ScalingReport
from rightbatch.scaling.schedulers import (
    cycled_momentum,
    highest_rates,
    scheduler_moves,
    schedulers_of,
)
from rightbatch.scaling.settings import steps_for_examples
from rightbatch.scaling.state import carry_state, has_unknown_state, second_moment_move


def scale_hyperparameters(
    optimizer: Optimizer,
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
    scheduler: Any = None,
    model_ema: Any = None,
    model: nn.Module | None = None,
    warmup_examples: float | None = None,
    dry_run: bool = False,
) -> ScalingReport:
    r"""Move a live optimizer to another batch size, with everything that must move along.

    Running averages keep their half-life in examples (``beta^kappa``, with ``kappa`` the ratio
    of the sizes), decoupled weight decay keeps its time scale in examples, and the learning rate
    follows a published rule. The optimizer's state is kept: averages are rescaled so that their
    corrections for bias stay what they were, and when the batch shrinks, the second moment grows
    by the noise that it does not know yet, so that no step spikes.

    Every move starts from the settings of before the first one, which the parameter groups keep
    (entry "batch_size_scaling", saved by ``state_dict``). So from a to b to c is from a to c, and
    going back restores every setting. A setting that you change in between is taken as it is, and a
    size that is not the one the groups are set for is refused.

    The traps: a scheduler computes from rates of its own, so pass it too. Only the rates of a
    scheduler move; its length stays in steps. Running averages beside the optimizer have no memory
    of their own: a decay that a huge batch made 0 stays 0, and the report says that it is not
    valid (`rightbatch.BatchSizeController` remembers them). And without evidence nothing says
    whether a rule holds: then the report is not valid.

    Args:
        optimizer: SGD, Adam, AdamW, NAdam, RAdam, RMSprop, Adagrad, LAMB, LARS, Lion, a subclass
            of theirs, or what `rightbatch.scaling.register_optimizer` was told about. RAdam keeps
            its betas, which set its own warm-up. Of any other only the rate is scaled, and the
            report says so.
        from_batch_size: Examples an optimizer step until now, over all devices.
        to_batch_size: Examples an optimizer step from now on.
        rule: Of the learning rate, see `rightbatch.scaling.scale_learning_rate`. "auto" is
            "sqrt" for optimizers that normalise their gradients. For SGD it is "linear" where an
            edge cuts it, "saturating" where only a critical batch size or noise scale is known,
            and "linear", not checked, where nothing is.
        noise_scale: Gradient noise scale in examples (`rightbatch.measure_noise`).
        critical_batch_size: In examples, measured by training; where given, the rules use it in
            place of the noise scale, which stands in for it only roughly.
        edge: Largest stable learning rate of the first group that trains
            (`rightbatch.range_test`, at the new size: at a small one, noise alone makes the loss
            rise sooner); no new rate is above, and all groups are cut alike.
        learning_rate: Of the first group that trains, as a measurement at the new size gave it
            (`rightbatch.race`), in place of the rule's: the highest rate of its schedule. All
            groups move alike, weight decay moves as by the rule, and the next move starts from
            here.
        momentum: "keep" the momentum of SGD and RMSprop, or "examples": keep its half-life in
            examples, and ``lr / (1 - momentum)`` on the rule.
        first_beta: "auto" keeps the first beta's half-life in examples up to 4-fold changes and
            the beta itself beyond; "examples" and "keep" do one of them always.
        scheduler: A torch scheduler of this optimizer, or several in a list, whose rates are
            scaled too.
        model_ema: A decay, an object with a ``decay``, or torch's ``AveragedModel``: its
            half-life in examples is kept. A plain number comes back as `ScalingReport.model_ema`.
        model: Whose BatchNorm layers shall keep the memory of running statistics in examples;
            left out, they stay.
        warmup_examples: Length of the warm-up in examples, to have it counted in steps.
        dry_run: Only report; change nothing.

    Returns:
        Every setting from what to what and why, whether each rule holds, and warnings.

    Raises:
        TypeError: If ``scheduler`` is not one of torch.
        ValueError: If a number is out of range, a choice is unknown, there is no rate to scale,
            or the optimizer is set for another size. Nothing has been changed then.

    Example:
        >>> import torch
        >>> weight = torch.nn.Parameter(torch.ones(2))
        >>> optimizer = torch.optim.AdamW([weight], lr=0.001, betas=(0.9, 0.875), weight_decay=0.1)
        >>> known = {"noise_scale": 1000.0, "first_beta": "keep"}
        >>> report = scale_hyperparameters(optimizer, 64, 256, **known)
        >>> group = optimizer.param_groups[0]
        >>> group["lr"], group["betas"], group["weight_decay"], report.valid
        (0.002, (0.9, 0.586181640625), 0.2, True)
        >>> _ = scale_hyperparameters(optimizer, 256, 64, **known)
        >>> group["lr"], group["betas"], group["weight_decay"]
        (0.001, (0.9, 0.875), 0.1)

    References:
        See `rightbatch.scaling.scale_learning_rate` and `rightbatch.scaling.settings`.
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
    schedulers = schedulers_of(scheduler, optimizer)
    prepared = _prepare(optimizer, move, schedulers)
    extra, writes = _attached(move, model_ema, model, warmup_examples)
    writes += scheduler_moves(schedulers, [moved.rate_ratio for moved in prepared.moved])
    report = _with_cycled_momentum(prepared.report, cycled_momentum(schedulers))
    report = replace(
        report,
        changes=(*report.changes, *extra),
        warnings=(*report.warnings, *_stale(optimizer, schedulers, move)),
        model_ema=next((c.after for c in extra if c.parameter == "model_ema"), None),
    )
    if not dry_run:
        _write(optimizer, prepared)
        for write in writes:
            write()
    return report


def batch_size_set_for(optimizer: Optimizer) -> float | None:
    """Read which batch size an optimizer was last moved to; ``None`` if it never was.

    Groups that joined later count as set for it: their next move starts from there.

    Args:
        optimizer: Perhaps with what `scale_hyperparameters` leaves in its groups.
    """
    memories = [group.get(MEMORY) or {} for group in optimizer.param_groups]
    sizes = {memory["batch_size"] for memory in memories if memory}
    return sizes.pop() if len(sizes) == 1 else None


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Prepared:
    """A move, worked out in full before the first number is written."""

    family: OptimizerFamily | None
    groups: Sequence[Group]
    moved: Sequence[Moved]
    growths: Sequence[float]  # of each group's second moments
    report: ScalingReport


def _prepare(optimizer: Optimizer, move: Move, schedulers: Sequence[LRScheduler]) -> _Prepared:
    family = _nearest_family(type(optimizer))
    highest = highest_rates(optimizer, schedulers)
    groups = read_groups(optimizer, family, move.from_batch_size, highest)
    rates = common_rates(groups, family, move)
    moved = [moved_group(group, family, move, rates) for group in groups]
    growths = [1.0] * len(groups)
    if family is not None and family.second_moments:
        for index, group in enumerate(moved):
            growth, origins = second_moment_move(optimizer, index, family, move, group.origins)
            growths[index] = growth
            moved[index] = replace(group, origins=origins)
    check_shared_tensors(optimizer.param_groups, _new_values(moved))
    name = type(optimizer).__name__
    report = assemble(name, family, move, rates, groups, moved)
    if family is not None and not move.stays:
        report = _with_unknown_parts(report, optimizer, family, groups)
    if max(growths) > 1:
        changes = (*report.changes, _second_moment(max(growths), move))
        report = replace(report, changes=changes)
    return _Prepared(family=family, groups=groups, moved=moved, growths=growths, report=report)


def _with_unknown_parts(
    report: ScalingReport, optimizer: Optimizer, family: OptimizerFamily, groups: Sequence[Group]
) -> ScalingReport:
    """Say what the optimizer's name promises and the optimizer does not have."""
    missing = [name for name in family.settings if any(name not in g.values for g in groups)]
    unknown, warnings = [*missing], [*report.warnings]
    if missing:
        warnings.append(
            f"not scaled: {', '.join(missing)}, which {report.optimizer}'s groups do not have. "
            "Say how its settings are named with rightbatch.scaling.register_optimizer."
        )
    if has_unknown_state(optimizer, family):
        unknown.append("the optimizer's state")
        warnings.append(
            f"not scaled: the state of {report.optimizer}, which has none of "
            f"{', '.join(family.state)}. Its next steps may jump: say how its averages are named "
            "with rightbatch.scaling.register_optimizer."
        )
    not_scaled = tuple(dict.fromkeys((*report.not_scaled, *unknown)))
    return replace(report, not_scaled=not_scaled, warnings=tuple(warnings))


def _nearest_family(kind: type) -> OptimizerFamily | None:
    found = (family_of(ancestor.__name__) for ancestor in kind.__mro__)
    return next((family for family in found if family is not None), None)


def _with_cycled_momentum(report: ScalingReport, name: str | None) -> ScalingReport:
    """Say of a momentum that a scheduler sets at each step that its change will not last."""
    if all(c.parameter != name or c.before == c.after for c in report.changes):
        return report
    changes = (
        replace(change, validity=Validity.OUTSIDE) if change.parameter == name else change
        for change in report.changes
    )
    return replace(
        report,
        changes=tuple(changes),
        warnings=(
            *report.warnings,
            f"outside validity: the scheduler cycles {name} and puts its own back at its next "
            "step. Make it with cycle_momentum=False.",
        ),
    )


def _second_moment(growth: float, move: Move) -> Change:
    known = move.noise_scale is not None
    return Change(
        parameter="second_moment",
        before=1.0,
        after=growth,
        why="smaller batches are noisier: times the ratio of the noise"
        if known
        else "smaller batches are noisier: times the most that they can be, noise not measured",
        validity=Validity.HOLDS if known else Validity.UNCHECKED,
    )


def _attached(
    move: Move,
    model_ema: Any,
    model: nn.Module | None,
    warmup_examples: float | None,
) -> tuple[list[Change], list[Write]]:
    """Work out what hangs on the optimizer: rows of the report, and how to write them."""
    kappa = move.to_batch_size / move.from_batch_size
    changes: list[Change] = []
    writes: list[Write] = []
    if model_ema is not None:
        change, write = ema_move(model_ema, kappa)
        changes.append(change)
        writes.append(write)
    if model is not None:
        moves = list(batch_norm_moves(model, kappa))
        changes += dict.fromkeys(change for change, _ in moves)
        writes += [write for _, write in moves]
    if warmup_examples is not None:
        changes.append(_warmup(warmup_examples, move))
    return changes, writes


def _warmup(examples: float, move: Move) -> Change:
    if not (math.isfinite(examples) and examples >= 0):
        raise ValueError(
            f"`warmup_examples` must not be negative, got warmup_examples={examples!r}. "
            "It counts examples, not steps."
        )
    return Change(
        parameter="warmup_steps",
        before=steps_for_examples(examples, move.from_batch_size),
        after=steps_for_examples(examples, move.to_batch_size),
        why="as many examples",
        validity=Validity.HOLDS,
    )


def _stale(optimizer: Optimizer, schedulers: Sequence[LRScheduler], move: Move) -> tuple[str, ...]:
    has_scheduler = any("initial_lr" in group for group in optimizer.param_groups)
    if schedulers or not has_scheduler or move.stays:
        return ()
    return (
        "a scheduler drives this optimizer and was not passed: one that computes from its own base "
        "rates will put the old rate back at its next step. Pass `scheduler`.",
    )


def _write(optimizer: Optimizer, prepared: _Prepared) -> None:
    for index, (moved, growth) in enumerate(zip(prepared.moved, prepared.growths, strict=True)):
        if prepared.family is not None:
            decays = {c.parameter: (c.before, c.after) for c in moved.changes}
            carry_state(optimizer, index, prepared.family, decays, growth)
    origins = [moved.origins for moved in prepared.moved]
    write_groups(optimizer.param_groups, _new_values(prepared.moved), origins)


def _new_values(moved: Sequence[Moved]) -> list[dict[str, float]]:
    return [{c.parameter: c.after for c in m.changes if c.before != c.after} for m in moved]
