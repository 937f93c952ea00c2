"""Every rule against its own published statistic, computed from gradients, not from algebra."""

import math

import pytest
import torch

from rightbatch.batches.policies import (
    adascale_gain,
    cabs_size,
    critical_size,
    divebatch_size,
    gradient_diversity,
    norm_test_size,
    pollux_efficiency,
    pollux_size,
)
from rightbatch.scaling import scale_learning_rate


@pytest.fixture
def gradients() -> torch.Tensor:
    """Gradients of 40 single examples, with a mean of their own."""
    return torch.randn(40, 7) + 0.4


def parts(gradients: torch.Tensor) -> tuple[float, float]:
    """``tr(Sigma)`` and ``|G|^2`` of the whole population."""
    return gradients.var(0, correction=0).sum().item(), gradients.mean(0).square().sum().item()


def test_diversity_is_one_plus_the_noise_scale(gradients: torch.Tensor) -> None:
    trace_cov, grad_sq = parts(gradients)
    published = gradients.square().sum() / gradients.sum(0).square().sum()
    assert gradient_diversity(trace_cov / grad_sq, examples=40) == pytest.approx(published.item())
    assert divebatch_size(trace_cov / grad_sq, delta=0.3) == pytest.approx(
        0.3 * 40 * published.item()
    )


@pytest.mark.parametrize("theta", [0.3, 0.5, 0.7, 0.9])
def test_the_norm_test_holds_from_its_size_on(gradients: torch.Tensor, theta: float) -> None:
    trace_cov, grad_sq = parts(gradients)
    size = norm_test_size(trace_cov / grad_sq, theta=theta)

    def passes(batch_size: float) -> bool:
        measured_sq = grad_sq + trace_cov / batch_size  # what |g_B|^2 is on average
        return trace_cov / batch_size <= theta**2 * measured_sq

    assert passes(size * 1.001)
    assert not passes(size * 0.999)


def test_shares_of_the_norm_test() -> None:
    shares = [norm_test_size(1.0, theta=theta) for theta in (0.5, 0.7, 0.9)]
    assert shares == pytest.approx([3.0, 1.0408, 0.23457], rel=1e-4)


@pytest.mark.parametrize("theta", [0.0, 1.0, 1.5, math.nan])
def test_a_norm_test_that_always_passes_is_refused(theta: float) -> None:
    with pytest.raises(ValueError, match=f"got theta={theta}"):
        norm_test_size(100.0, theta=theta)


def test_cabs_is_the_rate_times_the_variance_over_the_loss(gradients: torch.Tensor) -> None:
    trace_cov, grad_sq = parts(gradients)
    wanted = cabs_size(trace_cov / grad_sq, learning_rate=0.1, grad_sq=grad_sq, loss=2.0)
    assert wanted == pytest.approx(0.1 * trace_cov / 2.0)


@pytest.mark.parametrize("scale", [1, 2, 7, 100])
def test_the_gain_of_adascale_is_the_ratio_of_rates(gradients: torch.Tensor, scale: int) -> None:
    trace_cov, grad_sq = parts(gradients)
    noise_scale, base = trace_cov / grad_sq, 8
    variance = trace_cov / base
    published = (variance + grad_sq) / (variance / scale + grad_sq)
    gain = adascale_gain(noise_scale, batch_size=base, scale=scale)
    assert gain == pytest.approx(published)
    assert gain == pytest.approx(
        scale_learning_rate(1.0, base, base * scale, rule="saturating", noise_scale=noise_scale)
    )
    assert 1 <= gain <= scale


@pytest.mark.parametrize("scale", [1, 2, 16])
def test_polluxs_efficiency_is_the_gain_over_the_scale(scale: int) -> None:
    efficiency = pollux_efficiency(50.0, batch_size=10 * scale, base_batch_size=10)
    assert efficiency == pytest.approx(adascale_gain(50.0, batch_size=10, scale=scale) / scale)


def test_pollux_takes_the_size_of_most_goodput() -> None:
    overhead, noise_scale = 30.0, 120.0

    def goodput(size: float) -> float:
        throughput = size / (overhead + size)
        return throughput * pollux_efficiency(noise_scale, batch_size=size, base_batch_size=1)

    best = max((1 + index / 100 for index in range(30_000)), key=goodput)
    assert pollux_size(noise_scale, half_batch_size=overhead) == pytest.approx(best, abs=0.01)


def test_the_critical_size_is_the_noise_scale() -> None:
    assert critical_size(123.0) == 123.0
