"""The learning rate for a batch size, from whatever was measured of it."""

import math

from rightbatch.plan.inputs import Inputs
from rightbatch.scaling import default_rule, scale_learning_rate

_EDGE_SHARE = 0.5  # a rate that no race confirmed stays below half of where the loss rises


def suggest_learning_rate(
    inputs: Inputs, batch_size: int, *, critical: float
) -> tuple[float | None, str]:
    """Suggest the rate for this batch size, and say where it comes from in words."""
    race, curve, facts = inputs.race, inputs.curve, inputs.task
    if race is not None and race.suggestion is not None:
        rate, origin = race.suggestion, race.batch_size
        raced = any(math.isclose(rate, e.learning_rate, rel_tol=1e-6) for e in race.entries)
        source = f"won a race of {len(race.entries)} rates at batch size {origin}"
        if not raced:
            source = f"lies below the winner of a race at batch size {origin} that ended early"
        if origin == batch_size:
            return rate, source
    elif curve is not None and curve.suggestion is not None:
        rate, origin = curve.suggestion, curve.batch_size
        source = f"was suggested by the range test at batch size {origin}"
    elif facts is not None and facts.learning_rate and facts.batch_size:
        rate, origin = facts.learning_rate, facts.batch_size
        source = f"is today's rate at batch size {origin}"
    else:
        return None, ""
    if origin != batch_size:
        rule = default_rule(facts.optimizer if facts else "SGD")
        rate = scale_learning_rate(rate, origin, batch_size, rule=rule, noise_scale=critical)
        source = f"{source}, scaled by the {rule} rule"
    if curve is not None and curve.edge is not None and rate > _EDGE_SHARE * curve.edge:
        return _EDGE_SHARE * curve.edge, f"{source} and capped at half the edge of stability"
    return rate, source
