"""How each setting but the learning rate follows the batch size: closed forms, one a function.

``kappa`` is the ratio of the batch sizes, ``to / from``. A running average keeps its half-life
in examples, and what shrinks weights keeps its time scale in examples. Each function at
``kappa = 1`` is the identity, and two ratios in turn are their product.
"""

import math


def decay_over_examples(decay: float, kappa: float) -> float:
    r"""Keep a running average's half-life in examples: ``decay ** kappa``.

    For the betas of Adam, the alpha of RMSprop, a momentum, the decay of a model average. To
    first order it is the ``1 - kappa (1 - decay)`` of Malladi et al. (2022), which leaves the
    unit interval at ``kappa (1 - decay) > 1``; a power never does.

    Args:
        decay: In [0, 1].
        kappa: Ratio of the batch sizes.

    Returns:
        A decay in [0, 1].

    Example:
        >>> decay_over_examples(0.25, 2), round(decay_over_examples(0.999, 8), 4)
        (0.0625, 0.992)

    References:
        Malladi et al. (2022), On the SDEs and Scaling Rules for Adaptive Gradient Algorithms,
        https://arxiv.org/abs/2205.10287. Busbridge et al. (2023), How to Scale Your EMA,
        https://arxiv.org/abs/2307.13813. Marek et al. (2025), Small Batch Size Training for
        Language Models, https://arxiv.org/abs/2507.07101.
    """
    return decay**kappa


def share_over_examples(share: float, kappa: float) -> float:
    """Keep the memory of BatchNorm's running statistics in examples: ``1 - (1 - share)^kappa``.

    Args:
        share: What a new batch contributes, torch's ``momentum`` of BatchNorm, in [0, 1].
        kappa: Ratio of the batch sizes.

    Returns:
        The share at the other batch size, in [0, 1].

    Example:
        >>> share_over_examples(0.5, 2)
        0.75
    """
    return share if kappa == 1 else 1 - (1 - share) ** kappa


def eps_over_root(eps: float, kappa: float) -> float:
    """Keep ``eps`` a fixed share of the root of the second moment: ``eps / sqrt(kappa)``.

    Where noise dominates, the second moment is proportional to ``1 / B``.

    Args:
        eps: Added to the root of the second moment.
        kappa: Ratio of the batch sizes.

    Returns:
        The eps at the other batch size.

    Example:
        >>> eps_over_root(1e-8, 4)
        5e-09

    References:
        Malladi et al. (2022), https://arxiv.org/abs/2205.10287.
    """
    return eps / math.sqrt(kappa)


def decoupled_weight_decay(weight_decay: float, kappa: float, rate_ratio: float) -> float:
    """Keep AdamW's time scale in examples, ``B / (lr * weight_decay)``.

    Args:
        weight_decay: Multiplied with the learning rate at every step.
        kappa: Ratio of the batch sizes.
        rate_ratio: Ratio of the learning rates, as applied.

    Returns:
        ``weight_decay * kappa / rate_ratio``.

    Example:
        >>> decoupled_weight_decay(0.1, 4, rate_ratio=2)
        0.2

    References:
        Wang and Aitchison (2024), How to set AdamW's weight decay as you scale model and dataset
        size, https://arxiv.org/abs/2405.13698. Bergsma et al. (2025), Power Lines,
        https://arxiv.org/abs/2505.13738.
    """
    return weight_decay * (kappa / rate_ratio)


def steps_for_examples(examples: float, batch_size: float) -> int:
    """Count the optimizer steps that see so many examples.

    Args:
        examples: Not negative.
        batch_size: Examples a step.

    Returns:
        The last step counted whole.

    Example:
        >>> steps_for_examples(1000, 64), steps_for_examples(1024, 256)
        (16, 4)
    """
    return math.ceil(examples / batch_size)


def second_moment_growth(
    from_inverse_size: float, to_inverse_size: float, noise_scale: float | None
) -> float:
    r"""Bound how much larger the mean squared gradient is at a smaller batch.

    ``E|g_B|^2 = |G|^2 (1 + B_noise / B)``, so a second moment that was averaged at ``B`` is too
    small for batches of ``B' < B`` by ``(1 + B_noise / B') / (1 + B_noise / B)``; without a
    noise scale by at most ``B / B'``.

    Args:
        from_inverse_size: Mean of ``1 / B`` over what the second moment remembers.
        to_inverse_size: ``1 / B'`` of the batches to come.
        noise_scale: In examples; ``None`` where it is not known.

    Returns:
        At least 1: a second moment that is too large only makes steps smaller, for a while.

    Example:
        >>> second_moment_growth(1 / 300, 1 / 100, noise_scale=300.0)
        2.0
        >>> second_moment_growth(1 / 64, 1 / 16, None), second_moment_growth(1 / 64, 1 / 256, None)
        (4.0, 1.0)
    """
    if noise_scale is None or math.isinf(noise_scale):
        growth = to_inverse_size / from_inverse_size
    else:
        growth = (1 + noise_scale * to_inverse_size) / (1 + noise_scale * from_inverse_size)
    return max(1.0, growth)
