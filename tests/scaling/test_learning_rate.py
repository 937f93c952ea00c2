"""Oracles: closed form, and the laws of a ratio (identity, composition, limits)."""

import math
from itertools import permutations

import pytest

from rightbatch.scaling import ScalingRule, default_rule, scale_learning_rate

RULES: list[ScalingRule] = ["linear", "sqrt", "saturating", "adascale", "surge"]
SIZES = (1, 7, 64, 1000)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("size", SIZES)
def test_the_same_batch_size_keeps_the_rate_exactly(rule: ScalingRule, size: int) -> None:
    assert scale_learning_rate(0.03, size, size, rule=rule, noise_scale=90.0) == 0.03


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("sizes", list(permutations(SIZES, 3)))
def test_a_detour_over_a_third_size_changes_nothing(
    rule: ScalingRule, sizes: tuple[int, int, int]
) -> None:
    a, b, c = sizes
    at_b = scale_learning_rate(0.03, a, b, rule=rule, noise_scale=90.0)
    detour = scale_learning_rate(at_b, b, c, rule=rule, noise_scale=90.0)
    assert detour == pytest.approx(
        scale_learning_rate(0.03, a, c, rule=rule, noise_scale=90.0), rel=1e-12
    )


@pytest.mark.parametrize("from_size", SIZES)
@pytest.mark.parametrize("to_size", SIZES)
def test_saturating_is_the_quotient_of_the_published_optimum(from_size: int, to_size: int) -> None:
    """lr(B) = lr_max / (1 + B_noise / B), McCandlish et al. (2018)."""
    noise, maximum = 37.0, 0.8
    rate = [maximum / (1 + noise / size) for size in (from_size, to_size)]
    scaled = scale_learning_rate(rate[0], from_size, to_size, rule="saturating", noise_scale=noise)
    assert scaled == pytest.approx(rate[1], rel=1e-12)


def test_saturating_is_linear_without_end_of_noise_and_constant_without_noise() -> None:
    assert scale_learning_rate(
        0.1, 8, 24, rule="saturating", noise_scale=math.inf
    ) == scale_learning_rate(0.1, 8, 24, rule="linear")
    assert scale_learning_rate(0.1, 8, 24, rule="saturating", noise_scale=1e12) == pytest.approx(
        0.3, rel=1e-9
    )
    assert scale_learning_rate(0.1, 8, 24, rule="saturating", noise_scale=0.0) == 0.1


@pytest.mark.parametrize("from_size", SIZES)
@pytest.mark.parametrize("to_size", SIZES)
def test_the_gain_of_adascale_is_the_ratio_of_the_saturating_rule(
    from_size: int, to_size: int
) -> None:
    """Both derivations: sigma^2 is the variance at the first size, mu^2 the squared gradient."""
    trace_cov, grad_sq = 74.0, 2.0
    gain = (trace_cov / from_size + grad_sq) / (trace_cov / to_size + grad_sq)
    scaled = [
        scale_learning_rate(0.5, from_size, to_size, rule=rule, noise_scale=37.0)
        for rule in ("adascale", "saturating")
    ]
    assert scaled == pytest.approx([0.5 * gain] * 2, rel=1e-12)


def test_surge_is_the_published_peak_at_the_noise_scale() -> None:
    """lr(B) = lr_max / (0.5 (sqrt(Bn/B) + sqrt(B/Bn))): sqrt below, as much above as below."""

    def rate(size: int, noise: float) -> float:
        return scale_learning_rate(0.1, 64, size, rule="surge", noise_scale=noise)

    for size in SIZES:
        published = [1 / (0.5 * (math.sqrt(300 / b) + math.sqrt(b / 300))) for b in (64, size)]
        assert rate(size, 300.0) == pytest.approx(0.1 * published[1] / published[0], rel=1e-12)
    assert max(range(1, 2000), key=lambda size: rate(size, 300.0)) == 300
    assert rate(256, math.inf) == 0.2
    assert rate(256, 1e12) == pytest.approx(0.2, rel=1e-9)


@pytest.mark.parametrize("rule", ["adascale", "surge"])
def test_every_rule_of_noise_asks_for_a_noise_scale(rule: ScalingRule) -> None:
    with pytest.raises(ValueError, match=f"{rule} rule, got noise_scale=None"):
        scale_learning_rate(0.1, 8, 16, rule=rule)


@pytest.mark.parametrize(
    "name", ["Adam", "AdamW", "RMSprop", "Adagrad", "NAdam", "Lion", "Mystery"]
)
def test_adaptive_and_unknown_optimizers_scale_by_the_root(name: str) -> None:
    assert default_rule(name) == "sqrt"


@pytest.mark.parametrize("name", ["SGD", "ASGD", "SGDW", "Lars"])
def test_plain_gradient_steps_saturate(name: str) -> None:
    assert default_rule(name) == "saturating"


@pytest.mark.parametrize("rate", [0.0, -0.1, math.nan, math.inf])
def test_a_rate_that_is_not_positive_and_finite_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match=f"got learning_rate={rate!r}"):
        scale_learning_rate(rate, 8, 16, rule="linear")


@pytest.mark.parametrize("size", [0, -3, math.nan])
def test_a_size_below_one_is_refused_by_name(size: int) -> None:
    with pytest.raises(ValueError, match=f"got from_batch_size={size!r}"):
        scale_learning_rate(0.1, size, 16, rule="linear")
    with pytest.raises(ValueError, match=f"got to_batch_size={size!r}"):
        scale_learning_rate(0.1, 16, size, rule="linear")


@pytest.mark.parametrize("noise", [None, -1.0, math.nan])
def test_saturating_asks_for_a_noise_scale(noise: float | None) -> None:
    with pytest.raises(ValueError, match=f"got noise_scale={noise!r}"):
        scale_learning_rate(0.1, 8, 16, rule="saturating", noise_scale=noise)


def test_an_unknown_rule_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="saturating, adascale, surge, got rule='cubic'"):
        scale_learning_rate(0.1, 8, 16, rule="cubic")  # type: ignore[arg-type]
