"""What an optimizer has averaged so far, carried over so that its next step does not jump.

Two things would make it jump. A new beta changes the correction for a young average,
``1 - beta^step``, at once, and the average not at all. And a second moment that was averaged
over large batches is too small for the noisier gradients of small ones.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch.optim import Optimizer

from rightbatch.scaling.families import OptimizerFamily
from rightbatch.scaling.move import Move
from rightbatch.scaling.origins import Origins
from rightbatch.scaling.settings import second_moment_growth


def second_moment_move(
    optimizer: Optimizer, index: int, family: OptimizerFamily, move: Move, origins: Origins
) -> tuple[float, Origins]:
    """Find how much a group's second moment must grow, and what it remembers afterwards.

    Args:
        optimizer: Before the move.
        index: Of the group.
        family: Of the optimizer.
        move: What is known about the noise.
        origins: What the group remembers of earlier moves.

    Returns:
        The factor, at least 1, and the origins with the new memory.
    """
    group = optimizer.param_groups[index]
    step = _latest_step(optimizer, group)
    has_average = any(
        name in optimizer.state.get(p, {})
        for p in group["params"]
        for name in family.second_moments
    )
    if not has_average:
        inverse = 1 / move.to_batch_size
        return 1.0, replace(origins, averaged_inverse_size=inverse, step=step or 0.0)
    remembered = _remembered_inverse(group, family, move, origins, step)
    growth = second_moment_growth(remembered, 1 / move.to_batch_size, move.noise_scale)
    inverse = max(remembered, 1 / move.to_batch_size)
    return growth, replace(origins, averaged_inverse_size=inverse, step=step or 0.0)


def carry_state(
    optimizer: Optimizer,
    index: int,
    family: OptimizerFamily,
    decays: Mapping[str, tuple[float, float]],
    growth: float,
) -> None:
    """Rescale a group's averages in place.

    Args:
        optimizer: Whose state is changed.
        index: Of the group.
        family: Of the optimizer.
        decays: Before and after, of the settings that decay averages.
        growth: Factor of the second moments, from `second_moment_move`.
    """
    for parameter in optimizer.param_groups[index]["params"]:
        state = optimizer.state.get(parameter)
        if not state:
            continue
        step = float(state.get("step", 0))
        if family.first_moment in state:
            state[family.first_moment].mul_(_correction(decays.get(family.first_beta or ""), step))
        second = decays.get(family.second_beta or "") if family.bias_corrected else None
        for name in family.second_moments:
            if name in state:
                state[name].mul_(growth * _correction(second, step))
        buffer = state.get(family.momentum_buffer)
        pair = decays.get(family.momentum or "")
        if buffer is not None and pair is not None:
            before, after = pair  # the sum of a constant gradient g is g / (1 - momentum)
            buffer.mul_((1 - before) / (1 - after))


def has_unknown_state(optimizer: Optimizer, family: OptimizerFamily) -> bool:
    """Whether some parameter's averages have none of the names that the family knows.

    Args:
        optimizer: Perhaps of another library, with the name of a known one.
        family: That its name stands for.
    """
    if not family.state:
        return False
    entries = (state.keys() - {"step"} for state in optimizer.state.values())
    return any(names and names.isdisjoint(family.state) for names in entries)


def _correction(pair: tuple[float, float] | None, step: float) -> float:
    """Keep ``average / (1 - beta^step)`` what it was when the beta changes."""
    if pair is None or pair[0] == pair[1] or step < 1:
        return 1.0
    before, after = pair
    return (1 - after**step) / (1 - before**step)


def _latest_step(optimizer: Optimizer, group: Mapping[str, Any]) -> float | None:
    states = (optimizer.state.get(parameter, {}) for parameter in group["params"])
    return max((float(state["step"]) for state in states if "step" in state), default=None)


def _remembered_inverse(
    group: Mapping[str, Any],
    family: OptimizerFamily,
    move: Move,
    origins: Origins,
    step: float | None,
) -> float:
    """Mean of 1 / batch size over the average's memory: the share of before the last move fades."""
    now = 1 / move.from_batch_size
    decay = _second_beta(group, family)
    if step is None or decay is None or step <= 0:
        return now
    if not family.bias_corrected:
        share = decay ** (step - origins.step)
    elif decay < 1:
        young = (1 - decay**origins.step) / (1 - decay**step)
        share = decay ** (step - origins.step) * young
    else:
        share = origins.step / step
    return share * origins.averaged_inverse_size + (1 - share) * now


def _second_beta(group: Mapping[str, Any], family: OptimizerFamily) -> float | None:
    if family.second_beta == "beta2":
        return float(group["betas"][1])
    return None if family.second_beta is None else float(group[family.second_beta])
