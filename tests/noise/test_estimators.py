"""Oracles: closed form and exhaustive enumeration of all draws (rungs 1 and 2); coverage last."""

from itertools import permutations, product

import numpy as np
import pytest

from rightbatch.noise.estimators import (
    NoiseEstimate,
    _squares_of_running_means,  # pyright: ignore[reportPrivateUsage]
    estimate_noise,
    two_sizes,
)

GRADIENTS = np.array([[3.0, 1.0], [-1.0, 0.5], [2.0, -2.0], [0.5, 0.25], [1.0, -1.5]])
MEAN_SQ = float(np.square(GRADIENTS.mean(0)).sum())


def probe(units: list[np.ndarray], weights: list[float], **options: float) -> NoiseEstimate:
    """Estimate from lists of per-unit gradients, one list per micro-batch, by the definition."""
    means = np.stack([unit.mean(0) for unit in units])
    w = np.array(weights)
    sums = np.cumsum(w[:, None] * means, axis=0)
    before = np.vstack([np.zeros(means.shape[1]), sums[:-1] / np.cumsum(w)[:-1, None]])
    overall = sums[-1] / w.sum()
    return estimate_noise(
        np.square(means).sum(1), (means * before).sum(1), w, float(overall @ overall), **options
    )


def test_unequal_micro_batches_are_unbiased_over_every_draw_with_replacement() -> None:
    sizes = [1, 2, 1]
    population = GRADIENTS[:3]
    estimates = []
    for draw in product(range(3), repeat=sum(sizes)):
        rows = population[list(draw)]
        estimates.append(probe(np.split(rows, np.cumsum(sizes)[:-1]), [1.0, 2.0, 1.0]))
    mean = population.mean(0)
    assert np.mean([e.grad_sq for e in estimates]) == pytest.approx(mean @ mean, rel=1e-12)
    assert np.mean([e.trace_cov for e in estimates]) == pytest.approx(
        population.var(0).sum(), rel=1e-12
    )


def test_drawing_without_replacement_is_corrected_over_every_order() -> None:
    sizes = [1, 2, 1]  # four of five
    estimates = [
        probe(
            np.split(GRADIENTS[list(order[:4])], np.cumsum(sizes)[:-1]),
            [1.0, 2.0, 1.0],
            population=5,
        )
        for order in permutations(range(5))
    ]
    assert np.mean([e.grad_sq for e in estimates]) == pytest.approx(MEAN_SQ, rel=1e-12)
    assert np.mean([e.trace_cov for e in estimates]) == pytest.approx(
        GRADIENTS.var(0, ddof=1).sum(), rel=1e-12
    )


def test_without_the_correction_the_squared_gradient_is_too_small() -> None:
    """The twin of the test above: the correction is not idle."""
    estimates = [
        probe(np.split(GRADIENTS[list(order[:4])], [1, 3]), [1.0, 2.0, 1.0])
        for order in permutations(range(5))
    ]
    expected = MEAN_SQ - GRADIENTS.var(0, ddof=1).sum() / 5
    assert np.mean([e.grad_sq for e in estimates]) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("sizes", [[1, 1, 1, 1, 1], [2, 2, 1], [3, 1, 1]])
def test_the_whole_population_leaves_no_doubt_in_the_squared_gradient(sizes: list[int]) -> None:
    estimate = probe(
        np.split(GRADIENTS, np.cumsum(sizes)[:-1]), [float(s) for s in sizes], population=5
    )
    assert estimate.grad_sq == pytest.approx(MEAN_SQ, rel=1e-12)
    assert estimate.var_grad_sq == pytest.approx(0.0, abs=1e-15)


def test_the_scatter_of_an_inner_product_is_what_the_variance_fit_assumes() -> None:
    """Var[a_2] = G'Sigma G (1/w_2 + 1/w_1) + tr(Sigma^2)/(w_1 w_2), over every draw."""
    mean = GRADIENTS.mean(0)
    sigma = np.cov(GRADIENTS.T, ddof=0)
    squared = []
    for draw in product(range(5), repeat=5):
        rows = GRADIENTS[list(draw)]
        squared.append((rows[:2].mean(0) @ rows[2:].mean(0) - mean @ mean) ** 2)
    expected = mean @ sigma @ mean * (1 / 2 + 1 / 3) + np.trace(sigma @ sigma) / (2 * 3)
    assert np.mean(squared) == pytest.approx(expected, rel=1e-12)


def draw_probe(
    generator: np.random.Generator, *, ratio: float, count: int = 64, dimensions: int = 200
) -> tuple[NoiseEstimate, float]:
    """One Gaussian probe with tr(Sigma) = 1 and noise scale ``ratio`` times its units."""
    weights = generator.integers(8, 40, size=count).astype(float)
    grad_sq = 1 / (ratio * count * 23.5)  # 23.5: mean weight
    mean = np.zeros(dimensions)
    mean[:] = np.sqrt(grad_sq / dimensions)
    noise = generator.standard_normal((count, dimensions)) / np.sqrt(dimensions)
    gradients = mean + noise / np.sqrt(weights)[:, None]
    sums = np.cumsum(weights[:, None] * gradients, axis=0)
    before = np.vstack([np.zeros(dimensions), sums[:-1] / np.cumsum(weights)[:-1, None]])
    overall = sums[-1] / weights.sum()
    estimate = estimate_noise(
        np.square(gradients).sum(1), (gradients * before).sum(1), weights, overall @ overall
    )
    return estimate, 1 / grad_sq


def draw_heavy(
    generator: np.random.Generator, *, ratio: float, count: int, spectrum: np.ndarray
) -> tuple[NoiseEstimate, float]:
    """One probe of 8 examples per micro-batch, Student t with 5 degrees, tr(Sigma) = 1."""
    scales = np.sqrt(3 / generator.chisquare(5, (count, 8, 1)))
    noise = (scales * generator.standard_normal((count, 8, len(spectrum)))).mean(1)
    gradients = (noise + 1 / np.sqrt(8 * count * ratio)) * np.sqrt(spectrum)
    return probe([row[None] for row in gradients], [8.0] * count), ratio * 8 * count


@pytest.mark.slow
@pytest.mark.parametrize("ratio", [1.0, 10.0, 50.0])
@pytest.mark.parametrize("count", [32, 128])
@pytest.mark.parametrize("steepness", [0.0, 1.0])
def test_intervals_of_heavy_tails_cover_the_truth_as_often_as_they_say(
    ratio: float, count: int, steepness: float
) -> None:
    """400 draws at 95 %: true coverage of 94 to 96.5 % leaves these bounds in 1 of 10,000 runs."""
    generator = np.random.default_rng(11)
    spectrum = np.arange(1.0, 101.0) ** -steepness
    spectrum /= spectrum.sum()
    covered = 0
    for _ in range(400):
        estimate, truth = draw_heavy(generator, ratio=ratio, count=count, spectrum=spectrum)
        low, high = estimate.interval()
        covered += low <= truth and (high is None or truth <= high)
    assert 0.905 <= covered / 400 <= 0.99


def test_squares_of_running_means_follow_from_the_floats() -> None:
    weights = np.array([1.0, 3.0, 2.0, 5.0, 1.0])
    sums = np.cumsum(weights[:, None] * GRADIENTS, axis=0)
    means = sums[:-1] / np.cumsum(weights)[:-1, None]
    found = _squares_of_running_means(
        np.square(GRADIENTS).sum(1),
        np.concatenate([[0.0], (GRADIENTS[1:] * means).sum(1)]),
        weights,
    )
    assert found == pytest.approx(np.square(means).sum(1), rel=1e-12)


def test_the_eigenvalue_is_that_of_the_noise() -> None:
    """Isotropic noise in 50 directions: 1/50 of the trace, whatever the gradient. 4 sigma."""
    generator = np.random.default_rng(4)
    for ratio in (0.05, 2.0, 50.0):
        found = []
        for _ in range(100):
            estimate, _ = draw_probe(generator, ratio=ratio, dimensions=50)
            assert estimate.scatter is not None
            found.append(estimate.scatter.eigenvalue)
        error = float(np.std(found)) / 10
        assert np.mean(found) == pytest.approx(1 / 50, abs=4 * error + 0.03 / 50)


@pytest.mark.parametrize(("small", "big"), [(1, 2), (1, 3), (2, 3)])
def test_two_sizes_are_unbiased_over_every_draw(small: int, big: int) -> None:
    population = GRADIENTS[:4]

    def mean_sq(size: int) -> float:
        draws = product(range(4), repeat=size)
        return float(np.mean([np.square(population[list(d)].mean(0)).sum() for d in draws]))

    trace_cov, grad_sq = two_sizes(
        np.array([mean_sq(small)]),
        np.array([mean_sq(big)]),
        small_inverse=1 / small,
        big_inverse=1 / big,
    )
    assert trace_cov[0] == pytest.approx(population.var(0).sum(), rel=1e-12)
    assert grad_sq[0] == pytest.approx(np.square(population.mean(0)).sum(), rel=1e-12)


@pytest.mark.parametrize(("small", "big"), [(0.5, 0.5), (0.25, 0.5), (1.0, 0.0)])
def test_sizes_that_tell_nothing_are_refused(small: float, big: float) -> None:
    with pytest.raises(ValueError, match=rf"small_inverse={small}, big_inverse={big}"):
        two_sizes(np.ones(1), np.ones(1), small_inverse=small, big_inverse=big)


@pytest.mark.parametrize("ratio", [0.05, 0.5, 2.0])
def test_intervals_cover_the_truth(ratio: float) -> None:
    """400 draws at 95 %: a true coverage of 0.92 stays above 0.875 in all but 1 of 1,000 runs."""
    generator = np.random.default_rng(7)
    covered = 0
    for _ in range(400):
        estimate, truth = draw_probe(generator, ratio=ratio)
        low, high = estimate.interval()
        covered += low <= truth and (high is None or truth <= high)
    assert 0.875 <= covered / 400 <= 0.995


@pytest.mark.parametrize("ratio", [0.05, 0.5, 2.0])
def test_the_variance_is_that_of_repeated_draws(ratio: float) -> None:
    """400 draws give a standard deviation to 3.5 %, a variance to 7 %: 4 sigma is 28 %."""
    generator = np.random.default_rng(3)
    estimates = [draw_probe(generator, ratio=ratio)[0] for _ in range(400)]
    scatter = np.var([e.grad_sq for e in estimates], ddof=1)
    assert np.mean([e.var_grad_sq for e in estimates]) == pytest.approx(scatter, rel=0.28)


def test_the_forecast_of_examples_reaches_the_precision() -> None:
    """Median over 40 pilots: the widths they forecast are met within a quarter."""
    generator = np.random.default_rng(5)
    widths = []
    for _ in range(40):
        pilot, _ = draw_probe(generator, ratio=0.5, count=48)
        needed = pilot.units_for(0.1)
        assert needed is not None
        count = round(needed / 23.5)
        again, _ = draw_probe(generator, ratio=0.5 * 48 / count, count=count)
        low, high = again.interval()
        assert again.ratio is not None
        assert high is not None
        widths.append((high - low) / 2 / again.ratio)
    assert np.median(widths) == pytest.approx(0.1, rel=0.25)


def test_a_hidden_gradient_has_no_upper_end() -> None:
    generator = np.random.default_rng(1)
    estimate, truth = draw_probe(generator, ratio=50.0)
    low, high = estimate.interval()
    assert high is None
    assert 0 < low < truth


def test_estimates_scale_with_the_loss_and_the_ratio_does_not() -> None:
    generator = np.random.default_rng(2)
    squares = generator.uniform(1, 2, 20)
    inner = generator.uniform(0, 1, 20)
    weights = generator.integers(1, 9, 20).astype(float)
    plain = estimate_noise(squares, inner, weights, 0.5)
    scaled = estimate_noise(100 * squares, 100 * inner, weights, 50.0)
    assert scaled.grad_sq == pytest.approx(100 * plain.grad_sq, rel=1e-12)
    assert scaled.ratio == pytest.approx(plain.ratio, rel=1e-12)
    assert scaled.interval() == pytest.approx(plain.interval(), rel=1e-9)


def test_identical_gradients_have_no_noise() -> None:
    estimate = estimate_noise(np.ones(5), np.ones(5), np.ones(5), 1.0)
    assert estimate.ratio == 0.0
    assert estimate.interval() == (0.0, 0.0)


def test_two_micro_batches_are_too_few() -> None:
    with pytest.raises(ValueError, match="at least 3 micro-batches, got 2"):
        estimate_noise(np.ones(2), np.ones(2), np.ones(2), 1.0)
