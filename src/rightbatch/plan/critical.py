"""The critical batch size of a run, from what was measured, with the error of the model itself."""

import math

from rightbatch.results import CriticalBatchSize, NoiseScale, NoiseTrack, Status
from rightbatch.scaling import default_rule

# Critical batch size of tuned sweeps over the noise scale of the same task (benchmarks/results:
# decision-digits and -mnist with SGD, decision-bikes with AdamW), shrunk towards 1 since they are
# so few. An adaptive step divides the noise away in part, so it supports larger batches than the
# Euclidean noise scale says.
SWEEP_OVER_NOISE = {"sgd": 0.6, "adaptive": 2.0}
# Three tasks do not make a spread of their own: a factor of two either way (one standard
# deviation) is assumed, and no longer probe makes it smaller.
MODEL_LOG_SD = math.log(2.0)


def critical_batch_size(
    noise: NoiseScale | None = None,
    track: NoiseTrack | None = None,
    *,
    optimizer: str | None = None,
) -> CriticalBatchSize | None:
    r"""Say at which batch size a run needs twice the fewest possible steps.

    Steps to a given loss follow ``S(b) = S_min (1 + B_c / b)``. The noise scale stands in for
    ``B_c``: averaged over minimal steps where a track was followed, else at the weights that were
    probed; times the ratio that tuned sweeps showed for this kind of optimizer. The interval
    holds the sampling error *and* the model's own error.

    Args:
        noise: At one point in training.
        track: Along a run; preferred where it resolved anything.
        optimizer: Class name of the optimizer; without it the ratio is 1.

    Returns:
        The critical batch size in examples, or ``None`` where neither was measured.

    Example:
        >>> critical_batch_size() is None
        True

    References:
        McCandlish et al. (2018), https://arxiv.org/abs/1812.06162, equation 2.11.
    """
    if track is not None and (track.run_average is not None or noise is None):
        value, low, high = track.run_average, track.low, track.high
        status = track.status
    elif noise is not None:
        value, low, high, status = noise.noise_scale, noise.low, noise.high, noise.status
    else:
        return None
    ratio = _ratio(optimizer)
    return CriticalBatchSize(
        value=None if value is None else ratio * value,
        low=ratio * _widened(value, low, -1),
        high=None if high is None else ratio * _widened(value, high, +1),
        source="noise",
        status=_status(value, high, status),
    )


def _ratio(optimizer: str | None) -> float:
    if optimizer is None:
        return 1.0
    return SWEEP_OVER_NOISE["adaptive" if default_rule(optimizer) == "sqrt" else "sgd"]


def _status(value: float | None, high: float | None, measured: Status) -> Status:
    if measured is Status.DIVERGED:
        return measured
    if high is None:
        return Status.UNRESOLVED if value is None else Status.AT_LEAST
    return Status.OK


def _widened(value: float | None, end: float, side: int) -> float:
    """Move one end of a sampling interval outwards by the model's error (errors add in squares)."""
    if not end:
        return end
    if not value:  # the end alone is known: the model's error alone moves it
        return end * math.exp(side * 1.96 * MODEL_LOG_SD)
    sampling = math.log(end / value)
    return value * math.exp(side * math.hypot(sampling, 1.96 * MODEL_LOG_SD))
