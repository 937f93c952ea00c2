r"""What adaptive batch sizes want, all from one statistic: the noise scale ``tr(Sigma)/|G|^2``.

Each published rule estimates its own ratio of noise to signal. Written out, each is a function
of the simple noise scale ``B_simple``, so one measurement serves them all, and a rule is a line
of algebra: hand one to `BatchSizeSchedule.noise` as its ``policy``.
"""

import math

from rightbatch.scaling.learning_rate import rate_ratio


def norm_test_size(noise_scale: float, *, theta: float) -> float:
    r"""Return the smallest batch that passes the norm test.

    The test asks for ``tr(Sigma)/B <= theta^2 |g_B|^2`` with the measured ``g_B``, whose square
    is ``|G|^2 + tr(Sigma)/B`` on average. So it passes from
    ``B = B_simple (1 - theta^2) / theta^2`` on; the trap is ``theta >= 1``, which always passes.

    Args:
        noise_scale: ``B_simple``, in examples.
        theta: Of the test, in (0, 1).

    Raises:
        ValueError: If ``theta`` is not in (0, 1).

    Example:
        >>> norm_test_size(100.0, theta=0.5)
        300.0

    References:
        Byrd et al. (2012), Sample Size Selection in Optimization Methods for Machine Learning.
    """
    if not 0 < theta < 1:
        raise ValueError(
            f"`theta` must be between 0 and 1, got theta={theta!r}. With the measured gradient "
            "in its denominator the test holds for every batch from 1 on."
        )
    return noise_scale * (1 - theta**2) / theta**2


def gradient_diversity(noise_scale: float, *, examples: float) -> float:
    r"""Return DiveBatch's ``Delta = sum |g_i|^2 / |sum g_i|^2`` over that many examples.

    ``n Delta = (tr(Sigma) + |G|^2) / |G|^2 = 1 + B_simple``.

    Args:
        noise_scale: ``B_simple``, in examples, over the same examples.
        examples: ``n``.

    Example:
        >>> gradient_diversity(49.0, examples=100)
        0.5
    """
    return (1 + noise_scale) / examples


def divebatch_size(noise_scale: float, *, delta: float) -> float:
    r"""Return DiveBatch's size, ``delta n Delta = delta (1 + B_simple)``.

    Args:
        noise_scale: ``B_simple``, in examples.
        delta: The method's own factor; positive.

    Example:
        >>> divebatch_size(49.0, delta=0.5)
        25.0

    References:
        Chen et al. (2025), DiveBatch, https://arxiv.org/abs/2509.16173.
    """
    return delta * (1 + noise_scale)


def cabs_size(noise_scale: float, *, learning_rate: float, grad_sq: float, loss: float) -> float:
    r"""Return the size of CABS, ``learning_rate tr(Sigma) / loss``.

    Since ``tr(Sigma) = B_simple |G|^2`` it is the noise scale times the share of the loss that
    one step of gradient descent would remove, ``learning_rate |G|^2 / loss``. The trap: it takes
    the lowest possible loss to be zero.

    Args:
        noise_scale: ``B_simple``, in examples.
        learning_rate: Of SGD.
        grad_sq: ``|G|^2``.
        loss: Now, positive.

    Example:
        >>> cabs_size(100.0, learning_rate=0.1, grad_sq=4.0, loss=2.0)
        20.0

    References:
        Balles et al. (2017), Coupling Adaptive Batch Sizes with Learning Rates,
        https://arxiv.org/abs/1612.05086.
    """
    return noise_scale * learning_rate * grad_sq / loss


def adascale_gain(noise_scale: float, *, batch_size: int, scale: float) -> float:
    r"""Return how many steps at ``batch_size`` one step of ``scale`` times as many is worth.

    ``r = (sigma^2 + mu^2) / (sigma^2/S + mu^2)``, with ``sigma^2 = tr(Sigma)/B`` and
    ``mu^2 = |G|^2``: the ratio of the learning rates that suit both sizes, "adascale" of
    `scale_learning_rate`. From 1 (no noise) to S (nothing but noise).

    Args:
        noise_scale: ``B_simple``, in examples.
        batch_size: The base size ``B``.
        scale: ``S``, at least 1.

    Example:
        >>> adascale_gain(300.0, batch_size=100, scale=3)
        2.0

    References:
        Johnson et al. (2020), AdaScale SGD, https://arxiv.org/abs/2007.05105.
    """
    return rate_ratio(batch_size, batch_size * scale, "adascale", noise_scale)


def pollux_efficiency(noise_scale: float, *, batch_size: float, base_batch_size: float) -> float:
    r"""Return how much an example teaches, beside one at the base size: Pollux's efficiency.

    ``(phi + B0) / (phi + B)``, with ``phi = B_simple``: the gain of AdaScale over its scale.
    Goodput is this times the throughput.

    Args:
        noise_scale: ``B_simple``, in examples.
        batch_size: ``B``.
        base_batch_size: ``B0``.

    Example:
        >>> pollux_efficiency(100.0, batch_size=300, base_batch_size=100)
        0.5

    References:
        Qiao et al. (2021), Pollux, https://arxiv.org/abs/2008.12260.
    """
    return (noise_scale + base_batch_size) / (noise_scale + batch_size)


def pollux_size(noise_scale: float, *, half_batch_size: float) -> float:
    r"""Return the size of most goodput on hardware of a known overhead.

    With a step time of ``alpha + beta B`` throughput is ``B / (alpha + beta B)``; times the
    efficiency it is largest at ``B = sqrt(phi alpha / beta)``, where ``alpha / beta`` is
    the `ThroughputProfile.half_batch_size`.

    Args:
        noise_scale: ``phi = B_simple``, in examples.
        half_batch_size: Of the hardware, in examples.

    Example:
        >>> pollux_size(100.0, half_batch_size=25.0)
        50.0

    References:
        Qiao et al. (2021), Pollux, https://arxiv.org/abs/2008.12260.
    """
    return math.sqrt(noise_scale * half_batch_size)


def critical_size(noise_scale: float) -> float:
    """Return the noise scale itself: there a run takes twice the fewest steps.

    Example:
        >>> critical_size(100.0)
        100.0
    """
    return noise_scale
