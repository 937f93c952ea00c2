"""Do the 95 % intervals cover the truth? 400 repeats of gradients whose noise scale is known.

An example's gradient is ``G + sqrt(s) z``: ``z`` is Gaussian with covariance ``Sigma``, and the
random ``s`` (mean 1) makes tails heavy and squared lengths of one batch unequal. A micro-batch of
``b`` examples then has mean ``G + sqrt(s_1 + .. + s_b)/b z``, so no single example need be drawn.

    gaussian     s = 1
    student      s = 3 / chi2_5, so that every coordinate is a Student t with 5 degrees of freedom
    lognormal    s = exp(u - 1/2) with u standard normal: kurtosis 8 instead of 3
    loss-scaled  the whole gradient, G too, is multiplied by such a factor: hard examples pull
                 harder, in one direction; errors of both parts then go together

Student's t with 3 degrees has no fourth moment, so that the error of ``tr(Sigma)`` has no
variance: it is in the table to be seen, and not promised.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import stdtrit  # pyright: ignore[reportMissingTypeStubs]
from scipy.stats import binom  # pyright: ignore[reportMissingTypeStubs]

from rightbatch._environment import describe_environment
from rightbatch.noise.estimators import NoiseEstimate, estimate_noise, two_sizes
from rightbatch.noise.running import RunningNoise
from rightbatch.tasks import BUILT_IN

Floats = NDArray[np.float64]
Interval = tuple[float, float | None]

RESULTS = Path(__file__).parent / "results"
REPEATS = 400
RATIOS = (1.0, 10.0, 50.0)  # noise scale / batch
FAMILIES = ("gaussian", "student", "lognormal", "loss-scaled", "student-3")
NOT_PROMISED = ("student-3",)
NAMES = {"ours": "This library", "delta": "The delta method", "jackknife": "The jackknife"}
SPECTRA = {
    "flat 100": np.full(100, 1 / 100),  # directions of noise that count: 100
    "steep 300": 1 / np.arange(1, 301) / np.sum(1 / np.arange(1, 301)),  # 24
}
PROBES = (32, 64, 128)  # micro-batches
RUNS = ((50, None), (200, None), (200, 50.0))  # measured steps, half-life in steps
SEED = 1000  # of the first cell; the intervals were made with other seeds
GROUPS, GROUP = 50, 8  # of micro-batches: a run of 50 steps with 8 of them each
MICRO_BATCHES = 8  # of a monitor's step
SIZES = (4, 12)  # examples in a micro-batch, lowest and highest


def scales(family: str, draw: np.random.Generator, sizes: Floats) -> Floats:
    """Draw ``s_1 + .. + s_b`` of micro-batches of the given sizes."""
    if family == "gaussian":
        return sizes
    most = int(sizes.max())
    shape = (*sizes.shape, most)
    if family == "student":
        s = 3 / draw.chisquare(5, shape)
    elif family == "student-3":
        s = 1 / draw.chisquare(3, shape)
    else:
        s = np.exp(draw.standard_normal(shape) - 0.5)
    return np.where(np.arange(most) < sizes[..., None], s, 0.0).sum(-1)


def gradients(
    family: str, spectrum: Floats, draw: np.random.Generator, sizes: Floats, grad_sq: float
) -> tuple[Floats, float]:
    """Draw mean gradients of micro-batches, [*sizes, d]; return them and the true ratio."""
    mean = np.sqrt(grad_sq * spectrum)  # more gradient where there is more noise
    noise = draw.standard_normal((*sizes.shape, len(spectrum))) * np.sqrt(spectrum)
    if family != "loss-scaled":
        width = np.sqrt(scales(family, draw, sizes)) / sizes
        return mean + noise * width[..., None], 1 / grad_sq
    # g_i = c_i (G + z_i) with E c = 1, E c^2 = e^(1/4): the sum has mean G sum c, var sum c^2
    most = int(sizes.max())
    c = np.exp(draw.standard_normal((*sizes.shape, most)) / 2 - 1 / 8)
    c = np.where(np.arange(most) < sizes[..., None], c, 0.0)
    pulled = (c.sum(-1) / sizes)[..., None] * mean
    width = np.sqrt(np.square(c).sum(-1)) / sizes
    second = math.exp(0.25)
    return pulled + noise * width[..., None], (second * (1 + grad_sq) - grad_sq) / grad_sq


def grad_sq_for(family: str, noise_scale: float) -> float:
    """``|G|^2`` that gives a family this noise scale, where ``tr`` of the spectrum is 1."""
    if family != "loss-scaled":
        return 1 / noise_scale
    second = math.exp(0.25)
    return second / (noise_scale + 1 - second)


def probe_scalars(g: Floats, sizes: Floats) -> tuple[Floats, Floats, Floats]:
    """Return ``q``, ``a`` [repeats, K] and ``M`` [repeats] of gradients [repeats, K, d]."""
    sums = np.cumsum(g * sizes[..., None], axis=1)
    weight = np.cumsum(sizes, axis=1)[..., None]
    before = np.concatenate([np.zeros_like(g[:, :1]), sums[:, :-1] / weight[:, :-1]], axis=1)
    whole = sums[:, -1] / weight[:, -1]
    return np.square(g).sum(-1), (g * before).sum(-1), np.square(whole).sum(-1)


def delta_interval(estimate: NoiseEstimate) -> Interval:
    """Return what the usual linearisation prints, however little is known of ``|G|^2``."""
    ratio = estimate.trace_cov / estimate.grad_sq
    variance = (
        estimate.var_trace_cov - 2 * ratio * estimate.covariance + ratio**2 * estimate.var_grad_sq
    ) / estimate.grad_sq**2
    half = 1.96 * math.sqrt(max(0.0, variance))
    return ratio - half, ratio + half


def jackknife_interval(trace_cov: Floats, grad_sq: Floats, whole: float) -> Interval:
    """Interval from leaving out one micro-batch or step at a time (parts without each one)."""
    count = len(trace_cov)
    left = trace_cov / grad_sq
    middle = count * whole - (count - 1) * left.mean()
    variance = (count - 1) / count * np.square(left - left.mean()).sum()
    half = float(stdtrit(count - 1, 0.975)) * math.sqrt(variance)
    return middle - half, middle + half


def leave_one_out(g: Floats, sizes: Floats) -> tuple[Floats, Floats]:
    """Both parts without each micro-batch: needs all gradients, which a probe never has."""
    count = len(sizes) - 1
    squares, weighted = np.square(g).sum(-1), sizes[:, None] * g
    units = sizes.sum() - sizes
    mean_sq = np.square(weighted.sum(0) - weighted).sum(-1) / units**2
    small = ((sizes * squares).sum() - sizes * squares) / units
    return units * (small - mean_sq) / (count - 1), (count * mean_sq - small) / (count - 1)


def tally(name: str, intervals: list[Interval], truth: float) -> dict[str, Any]:
    """Count how often the truth was covered, and how wide the bounded intervals were."""
    count = len(intervals)
    above = sum(low > truth for low, _ in intervals)
    below = sum(high is not None and high < truth for _, high in intervals)
    widths = [(high - low) / truth for low, high in intervals if high is not None]
    return {
        f"{name}_covered": 1 - (above + below) / count,
        f"{name}_too_high": above / count,  # the whole interval lies above the truth
        f"{name}_too_low": below / count,
        f"{name}_unbounded": sum(high is None for _, high in intervals) / count,
        f"{name}_median_width": float(np.median(widths)) if widths else None,
    }


def probe_cell(
    family: str, spectrum: str, count: int, ratio: float, *, batch: str, seed: int
) -> dict[str, Any]:
    """Repeat one frozen probe."""
    draw = np.random.default_rng(seed)
    sizes = draw.integers(SIZES[0], SIZES[1] + 1, (REPEATS, count)).astype(np.float64)
    examples = sum(SIZES) / 2 * (count if batch == "probe" else 1)
    grad_sq = grad_sq_for(family, ratio * examples)
    g, truth = gradients(family, SPECTRA[spectrum], draw, sizes, grad_sq)
    q, a, m = probe_scalars(g, sizes)
    ours, delta, jackknife = [], [], []
    for i in range(REPEATS):
        estimate = estimate_noise(q[i], a[i], sizes[i], float(m[i]))
        ours.append(estimate.interval())
        delta.append(delta_interval(estimate))
        whole = estimate.trace_cov / estimate.grad_sq
        jackknife.append(jackknife_interval(*leave_one_out(g[i], sizes[i]), whole))
    return {
        "instrument": f"probe, {count} micro-batches",
        "batch": batch,
        "family": family,
        "spectrum": spectrum,
        "ratio": ratio,
        **tally("ours", ours, truth),
        **tally("delta", delta, truth),
        **tally("jackknife", jackknife, truth),
    }


def step_parts(g: Floats, sizes: Floats) -> tuple[Floats, Floats]:
    """Both parts of steps of some micro-batches: gradients [..., K, d], sizes [..., K]."""
    share = sizes / sizes.sum(-1, keepdims=True)
    small = (share * np.square(g).sum(-1)).sum(-1)
    big = np.square((share[..., None] * g).sum(-2)).sum(-1)
    count, units = sizes.shape[-1], sizes.sum(-1)
    # `two_sizes` takes one pair of sizes; here every step has its own, so scale to one pair.
    trace_cov, grad_sq = two_sizes(small, big, small_inverse=float(count), big_inverse=1.0)
    return trace_cov * units, grad_sq


def run_cell(
    family: str, spectrum: str, steps: int, half_life: float | None, ratio: float, *, seed: int
) -> dict[str, Any]:
    """Repeat one monitored run whose true noise scale stays put."""
    draw = np.random.default_rng(seed)
    shape = (steps, MICRO_BATCHES)
    grad_sq = grad_sq_for(family, ratio * MICRO_BATCHES * sum(SIZES) / 2)
    keep = 1.0 if half_life is None else 0.5 ** (1 / half_life)
    ours, delta, jackknife, truth = [], [], [], 0.0
    for _ in range(REPEATS):
        sizes = draw.integers(SIZES[0], SIZES[1] + 1, shape).astype(np.float64)
        g, truth = gradients(family, SPECTRA[spectrum], draw, sizes, grad_sq)
        trace_cov, signal = step_parts(g, sizes)
        weights, running = sizes.sum(-1), RunningNoise()
        for t, s, w in zip(trace_cov, signal, weights, strict=True):
            running.add([t], [s], weight=float(w), keep=keep)
        estimate = running.estimate()
        ours.append(estimate.interval())
        delta.append(delta_interval(estimate))
        weights = weights * keep ** np.arange(steps)[::-1]
        t_left = (weights @ trace_cov - weights * trace_cov) / (weights.sum() - weights)
        s_left = (weights @ signal - weights * signal) / (weights.sum() - weights)
        whole = estimate.trace_cov / estimate.grad_sq
        jackknife.append(jackknife_interval(t_left, s_left, whole))
    forgetting = "" if half_life is None else f", half-life {half_life:.0f}"
    return {
        "instrument": f"monitor, {steps} steps{forgetting}",
        "batch": "step",
        "family": family,
        "spectrum": spectrum,
        "ratio": ratio,
        **tally("ours", ours, truth),
        **tally("delta", delta, truth),
        **tally("jackknife", jackknife, truth),
    }


def cells(say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Run every cell, each from its own seed."""
    rows: list[dict[str, Any]] = []
    for spectrum in SPECTRA:
        for family in FAMILIES:
            for ratio in RATIOS if family not in NOT_PROMISED else (10.0,):
                for count in PROBES:
                    seed = SEED + len(rows)
                    rows.append(
                        probe_cell(family, spectrum, count, ratio, batch="probe", seed=seed)
                    )
                for steps, half_life in RUNS:
                    seed = SEED + len(rows)
                    rows.append(run_cell(family, spectrum, steps, half_life, ratio, seed=seed))
            say(f"{spectrum}, {family}: done")
    return rows


def pooled_and_grouped(g: Floats) -> tuple[float, float]:
    """Return ``|G|^2`` from all pairs of micro-batches [K, d], and from pairs within groups."""

    def from_pairs(part: Floats) -> Floats:
        count = part.shape[-2]
        whole = np.square(part.sum(-2)).sum(-1)
        return (whole - np.square(part).sum((-2, -1))) / (count * (count - 1))

    return float(from_pairs(g)), float(from_pairs(g.reshape(GROUPS, GROUP, -1)).mean())


def digits_gradients() -> Floats:
    """Gradients of all examples of the digits task at its first weights, [N, parameters]."""
    task = BUILT_IN["digits"].factory()
    rows = []
    for batch in task.batches(1, epochs=1):
        found = torch.autograd.grad(task.loss(batch)[0], task.parameters)
        rows.append(torch.cat([gradient.flatten() for gradient in found]).numpy())
    return np.stack(rows).astype(np.float64)


def pooling(say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Compare the spread of ``|G|^2`` from all pairs with that from pairs within groups.

    The digits' examples are drawn with replacement: micro-batches are independent, as in the
    simulated rows. Without it a third of all would be used up, which favours all pairs.
    """
    draw = np.random.default_rng(SEED)
    rows = []
    size = 8
    sizes = np.full(GROUPS * GROUP, float(size))
    for spectrum in SPECTRA:
        for ratio in RATIOS:
            grad_sq = 1 / (ratio * GROUP * size)
            pairs = [
                pooled_and_grouped(
                    gradients("gaussian", SPECTRA[spectrum], draw, sizes, grad_sq)[0]
                )
                for _ in range(REPEATS)
            ]
            rows.append({"data": spectrum, "ratio": ratio, **_spread(pairs)})
    each = digits_gradients()
    pairs = []
    for _ in range(REPEATS):
        chosen = draw.choice(len(each), GROUPS * GROUP * size)
        pairs.append(pooled_and_grouped(each[chosen].reshape(GROUPS * GROUP, size, -1).mean(1)))
    grad_sq = float(np.square(each.mean(0)).sum())
    trace_cov = float(each.var(0).sum())
    ratio = trace_cov / grad_sq / (GROUP * size)
    rows.append({"data": "digits, first weights", "ratio": ratio, **_spread(pairs)})
    say("pooled against groups: done")
    return rows


def _spread(pairs: list[tuple[float, float]]) -> dict[str, float]:
    pooled, grouped = np.std(np.array(pairs), axis=0, ddof=1)
    return {
        "pooled_sd": float(pooled),
        "grouped_sd": float(grouped),
        "ratio_of_sd": float(grouped / pooled),
    }


def coverage(say: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Run both parts."""
    return {
        "environment": describe_environment(),
        "repeats": REPEATS,
        "pooling": pooling(say),
        "cells": cells(say),
    }


def as_markdown(result: dict[str, Any]) -> str:
    """Lay the result out: a summary, the cells, what is not promised, and the pooling."""
    promised = [row for row in result["cells"] if row["family"] not in NOT_PROMISED]
    others = [row for row in result["cells"] if row["family"] in NOT_PROMISED]
    lines = [
        f"# Coverage of 95 % intervals, {result['repeats']} repeats of each cell",
        "",
        _summary(promised, result["repeats"]),
        "",
        "Noise / batch: noise scale over all examples of the probe, or over those of one step. "
        "Unbounded: intervals without an upper end. Width: median of the others, over the truth.",
        "",
        *_table(promised),
        "",
        "Not promised: Student's t with 3 degrees, where the error of tr(Sigma) has no variance.",
        "",
        *_table(others),
        "",
        f"# All pairs of {GROUPS * GROUP} micro-batches against pairs within {GROUPS} groups",
        "",
        "| gradients | noise / group | s.d. of grad_sq, all pairs | within groups | ratio |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['data']} | {r['ratio']:.1f} | {r['pooled_sd']:.3g} | {r['grouped_sd']:.3g} | "
        f"**{r['ratio_of_sd']:.1f}** |"
        for r in result["pooling"]
    ]
    machine = ", ".join(f"{k} {v}" for k, v in result["environment"].items())
    return "\n".join([*lines, "", f"Machine: {machine}."]) + "\n"


def _summary(rows: list[dict[str, Any]], repeats: int) -> str:
    chance = math.sqrt(0.95 * 0.05 / repeats)
    sentences = []
    for name in ("ours", "delta", "jackknife"):
        found = [row[f"{name}_covered"] for row in rows]
        inside = sum(0.93 - 1e-9 <= c <= 0.97 + 1e-9 for c in found)
        below = sum(c < 0.93 - 1e-9 for c in found)
        sentences.append(
            f"{NAMES[name]}: {inside} of {len(found)} cells lie in 93 to 97 %, {below} below, "
            f"{len(found) - inside - below} above (mean {np.mean(found):.1%}, lowest "
            f"{min(found):.1%}, highest {max(found):.1%})."
        )
    exact = binom(repeats, 0.95)
    outside = exact.cdf(0.93 * repeats - 0.5) + exact.sf(0.97 * repeats)
    sentences.append(f"Repeats scatter by {chance:.1%}: by chance alone {outside:.0%} lie outside.")
    return " ".join(sentences)


def _table(rows: list[dict[str, Any]]) -> list[str]:
    """Cells outside 93 to 97 % are bold."""
    lines = [
        "| instrument | gradients | spectrum | noise / batch | covered | too high | too low | "
        "unbounded | width | delta method (width) | jackknife (width) |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        covered = row["ours_covered"]
        mark = "" if 0.93 - 1e-9 <= covered <= 0.97 + 1e-9 else "**"
        usual = " | ".join(
            f"{row[f'{name}_covered']:.1%} ({_width(row, name)})" for name in ("delta", "jackknife")
        )
        lines.append(
            f"| {row['instrument']} | {row['family']} | {row['spectrum']} | {row['ratio']:.0f} | "
            f"{mark}{covered:.1%}{mark} | {row['ours_too_high']:.1%} | {row['ours_too_low']:.1%} | "
            f"{row['ours_unbounded']:.0%} | {_width(row, 'ours')} | {usual} |"
        )
    return lines


def _width(row: dict[str, Any], name: str) -> str:
    width = row[f"{name}_median_width"]
    return "-" if width is None else f"{width:.2f}"


def write(result: dict[str, Any], folder: Path = RESULTS) -> None:
    """Write the JSON and the tables."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "coverage.json").write_text(json.dumps(result, indent=1) + "\n")
    (folder / "coverage.md").write_text(as_markdown(result))
