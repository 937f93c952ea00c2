"""The learning rate at another batch size, by one of five published rules.

Every rule is a ratio of one function of the batch size, ``rate(to) / rate(from)``, so going
from a to b and on to c is the same as going from a to c, and staying is no change at all.
"""

import math
from typing import Literal

ScalingRule = Literal["linear", "sqrt", "saturating", "adascale", "surge"]

RULES: tuple[ScalingRule, ...] = ("linear", "sqrt", "saturating", "adascale", "surge")


def scale_learning_rate(
    learning_rate: float,
    from_batch_size: int,
    to_batch_size: int,
    *,
    rule: ScalingRule,
    noise_scale: float | None = None,
) -> float:
    r"""Carry a learning rate from one batch size over to another.

    The rate is proportional to ``B`` ("linear"), to ``sqrt(B)`` ("sqrt"), to
    ``1 / (1 + B_noise / B)`` ("saturating", which is linear far below the noise scale and
    constant far above it), or to ``1 / (sqrt(B_noise / B) + sqrt(B / B_noise))`` ("surge", a
    square root far below the noise scale, highest at it, and falling above). "adascale" is
    "saturating" by another derivation: the gain of ``B`` over ``B_from`` examples is
    ``(sigma^2 + mu^2) / (sigma^2 / S + mu^2)`` with ``S = B / B_from``, which is the same ratio.

    The trap: no rule knows the rate at which training becomes unstable. Linear scaling of SGD
    diverges above about the critical batch size, so cap the answer by a measured edge
    (`rightbatch.range_test`), or race a few rates around it (`rightbatch.race`).

    Args:
        learning_rate: The rate that suits ``from_batch_size``; positive.
        from_batch_size: Examples per optimizer step that the rate is known for; at least 1.
        to_batch_size: Examples per optimizer step to train with; at least 1.
        rule: "linear", "saturating" and "adascale" hold for SGD, "sqrt" and "surge" for Adam
            and its relatives; see `default_rule`.
        noise_scale: Gradient noise scale in examples, not negative; ``math.inf`` makes
            "saturating" the same as "linear", and "surge" the same as "sqrt". "linear" and
            "sqrt" ignore it.

    Returns:
        The rate for ``to_batch_size``, in the units of ``learning_rate``.

    Raises:
        ValueError: If a number is out of range, the rule is unknown, or a rule that needs a
            noise scale is asked for without one.

    Example:
        >>> scale_learning_rate(0.1, 64, 256, rule="linear")
        0.4
        >>> scale_learning_rate(0.1, 64, 256, rule="sqrt")
        0.2
        >>> scale_learning_rate(0.1, 100, 300, rule="saturating", noise_scale=300)
        0.2
        >>> scale_learning_rate(0.1, 100, 900, rule="surge", noise_scale=300)
        0.1

    References:
        Linear: Goyal et al. (2017), Accurate, Large Minibatch SGD,
        https://arxiv.org/abs/1706.02677.
        Square root: Malladi et al. (2022), On the SDEs and Scaling Rules for Adaptive Gradient
        Algorithms, https://arxiv.org/abs/2205.10287.
        Saturating: McCandlish et al. (2018), An Empirical Model of Large-Batch Training,
        https://arxiv.org/abs/1812.06162, equation 2.6.
        AdaScale: Johnson et al. (2020), AdaScale SGD, https://arxiv.org/abs/2007.05105.
        Surge: Li et al. (2024), Surge Phenomenon in Optimal Learning Rate and Batch Size
        Scaling, https://arxiv.org/abs/2405.14578.
    """
    if not (math.isfinite(learning_rate) and learning_rate > 0):
        raise ValueError(
            f"`learning_rate` must be positive and finite, got learning_rate={learning_rate!r}. "
            "There is nothing to scale: pass the rate that suits `from_batch_size`."
        )
    return learning_rate * rate_ratio(from_batch_size, to_batch_size, rule, noise_scale)


def rate_ratio(
    from_batch_size: float, to_batch_size: float, rule: ScalingRule, noise_scale: float | None
) -> float:
    """Divide the rate that suits one batch size by the rate that suits another.

    Args:
        from_batch_size: At least 1.
        to_batch_size: At least 1.
        rule: One of `RULES`.
        noise_scale: In examples; needed by "saturating", "adascale" and "surge".

    Returns:
        ``rate(to) / rate(from)``, positive; exactly 1 when the sizes are equal.

    Raises:
        ValueError: If a size is below 1, the rule is unknown or its noise scale is missing.
    """
    check_batch_sizes(from_batch_size, to_batch_size)
    if rule not in RULES:
        raise ValueError(f"`rule` must be one of {', '.join(RULES)}, got rule={rule!r}.")
    growth = to_batch_size / from_batch_size
    if rule == "linear":
        return growth
    if rule == "sqrt":
        return math.sqrt(growth)
    noise = _checked_noise(noise_scale, rule)
    if rule == "surge":
        if math.isinf(noise):
            return math.sqrt(growth)
        return math.sqrt(growth) * (noise + from_batch_size) / (noise + to_batch_size)
    if math.isinf(noise):
        return growth
    if rule == "adascale":
        variance = noise / from_batch_size  # in units of the squared mean gradient
        return (variance + 1) / (variance / growth + 1)
    return (1 + noise / from_batch_size) / (1 + noise / to_batch_size)


def check_batch_sizes(from_batch_size: float, to_batch_size: float) -> None:
    """Refuse sizes that are no count of examples.

    Raises:
        ValueError: If one is below 1 or not finite.
    """
    for name, size in (("from_batch_size", from_batch_size), ("to_batch_size", to_batch_size)):
        if not (math.isfinite(size) and size >= 1):
            raise ValueError(
                f"`{name}` must be at least 1, got {name}={size!r}. "
                "It counts the examples of an optimizer step, over all devices."
            )


def default_rule(optimizer_name: str) -> ScalingRule:
    """Name the rule that suits an optimizer.

    An SGD step is proportional to the gradient, whose noise averages out: "saturating". An
    adaptive step is the gradient over its own size, most of which is noise: "sqrt". Optimizers
    of an unknown name get "sqrt", which takes the smaller step when the batch grows.

    The trap: "saturating" needs a noise scale. Until one is measured, "linear" stands in for it,
    and only far below the critical batch size.

    Args:
        optimizer_name: Its class name, such as ``type(optimizer).__name__``.

    Returns:
        "saturating" for SGD and its layer-wise relative LARS, "sqrt" for every other.

    Example:
        >>> default_rule("SGD"), default_rule("AdamW")
        ('saturating', 'sqrt')

    References:
        See `scale_learning_rate`.
    """
    name = optimizer_name.lower()
    return "saturating" if "sgd" in name or "lars" in name else "sqrt"


def _checked_noise(noise_scale: float | None, rule: str) -> float:
    if noise_scale is None or not noise_scale >= 0:
        raise ValueError(
            f"`noise_scale` must be given and not negative for the {rule} rule, "
            f"got noise_scale={noise_scale!r}. It says where the rate stops growing: measure it "
            "with rightbatch.measure_noise, or use rule='linear' (SGD) or 'sqrt' (Adam) far "
            "below it."
        )
    return float(noise_scale)
