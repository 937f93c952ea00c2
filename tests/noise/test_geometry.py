"""Geometries and layers. Oracle: stored gradients and the definition in each metric."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

import rightbatch as rb
from rightbatch.noise.geometry import Preconditioner, fitting_geometry, preconditioners
from rightbatch.noise.squares import inner_products, named_parameters
from rightbatch.results import GeometryNoise, Status
from rightbatch.task import Task, supervised

DATA = 48


def task_with(optimizer: type[Optimizer], *, steps: int = 0, **options: object) -> Task:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    inputs, noise = torch.randn(DATA, 3), torch.randn(DATA, 2)
    data = list(zip(inputs, inputs[:, :2] + noise, strict=True))
    task = Task(
        model,
        optimizer(model.parameters(), **{"lr": 0.01, **options}),
        data,
        supervised(F.mse_loss),
        batch_size=4,
    )
    batches = task.batches(4)
    for _ in range(steps):
        task.step(next(batches))
    return task


def example_gradients(task: Task) -> Tensor:
    """Gradients of all examples, [examples, parameters], by the definition."""
    rows = []
    for batch in task.batches(1, epochs=1):
        grads = torch.autograd.grad(task.loss(batch)[0], task.parameters)
        rows.append(torch.cat([g.flatten() for g in grads]))
    return torch.stack(rows)


def of(noise: rb.NoiseScale, geometry: str) -> GeometryNoise:
    return next(g for g in noise.geometries if g.geometry == geometry)


def adam_p(task: Task, name: str = "exp_avg_sq") -> Tensor:
    parts = []
    for p in task.parameters:
        state, group = task.optimizer.state[p], task.optimizer.param_groups[0]
        correction = 1 - group["betas"][1] ** float(state["step"]) if "betas" in group else 1.0
        parts.append(1 / ((state[name] / correction).sqrt() + group["eps"]).flatten())
    return torch.cat(parts)


MOMENTS = [
    (torch.optim.AdamW, {}, "exp_avg_sq"),
    (torch.optim.Adam, {"amsgrad": True}, "max_exp_avg_sq"),
    (torch.optim.Adam, {"fused": True}, "exp_avg_sq"),
    (torch.optim.Adam, {"foreach": True, "betas": (0.5, 0.9)}, "exp_avg_sq"),
    (torch.optim.RMSprop, {}, "square_avg"),
    (torch.optim.Adagrad, {}, "sum"),
]


@pytest.mark.parametrize(("kind", "options", "name"), MOMENTS)
def test_the_whole_data_set_gives_the_definition_in_every_metric(
    kind: type[Optimizer], options: dict[str, object], name: str
) -> None:
    task = task_with(kind, steps=8, **options)
    gradients, p = example_gradients(task), adam_p(task, name)
    noise = rb.measure_noise(task, precision=None, micro_batch_size=1)
    for geometry, weight in (("euclidean", p**0), ("adam", p**2), ("adam_sqrt", p)):
        signal = (gradients.mean(0).square() * weight).sum()
        scatter = (gradients.var(0) * weight).sum()
        assert of(noise, geometry).noise_scale == pytest.approx((scatter / signal).item(), rel=1e-8)
    assert [g.geometry for g in noise.geometries if g.fits] == ["adam"]


def test_a_centred_rmsprop_uses_the_variance() -> None:
    task = task_with(torch.optim.RMSprop, steps=8, centered=True)
    found = preconditioners(task.optimizer, task.parameters)
    assert found is not None
    state = task.optimizer.state[task.parameters[0]]
    expected = 1 / ((state["square_avg"] - state["grad_avg"] ** 2).sqrt() + 1e-8)
    weight = found[0].of(found[0].second_moment, found[0].mean)
    torch.testing.assert_close(weight, expected)


@pytest.mark.parametrize("steps", [0, 4])
def test_cold_second_moments_are_not_used(steps: int) -> None:
    noise = rb.measure_noise(task_with(torch.optim.AdamW, steps=steps), precision=None)
    assert [g.geometry for g in noise.geometries] == ["euclidean", "adam", "sign"]
    cold = of(noise, "adam")
    assert (cold.noise_scale, cold.high, cold.fits, cold.status) == (None, None, True, "not_yet")


def test_sgd_has_no_preconditioned_geometry() -> None:
    noise = rb.measure_noise(task_with(torch.optim.SGD, steps=9, momentum=0.9), precision=None)
    assert [(g.geometry, g.fits) for g in noise.geometries] == [
        ("euclidean", True),
        ("sign", False),
    ]


def test_a_common_factor_of_the_second_moments_changes_nothing() -> None:
    task = task_with(torch.optim.AdamW, steps=8, eps=0.0)
    before = rb.measure_noise(task, precision=None)
    for state in task.optimizer.state.values():
        state["exp_avg_sq"] *= 9.0
    after = rb.measure_noise(task, precision=None)
    for geometry in ("adam", "adam_sqrt"):
        assert of(after, geometry).noise_scale == pytest.approx(of(before, geometry).noise_scale)


class Lion(torch.optim.SGD):
    """Lion by name."""


def test_the_optimizer_says_which_geometry_fits() -> None:
    weights = [nn.Parameter(torch.zeros(1))]
    assert fitting_geometry(Lion(weights, lr=0.1)) == "sign"
    assert fitting_geometry(torch.optim.NAdam(weights)) == "adam"
    noise = rb.measure_noise(task_with(Lion), precision=None)
    assert [g.geometry for g in noise.geometries if g.fits] == ["sign"]


# Signs.


def test_the_sign_bracket_holds_the_truth() -> None:
    """One coordinate per signal strength: sigma = 1, |G_i| from 0 to 2 standard deviations."""
    means = torch.linspace(0, 2, 50)
    model = nn.Linear(50, 1, bias=False)
    model.weight.data.zero_()
    data = means + torch.randn(4000, 50)
    task = Task(model, torch.optim.SGD(model.parameters(), lr=0.1), data, lambda m, b: m(b).mean())
    truth = data.std(0).sum().item() ** 2 / data.mean(0).abs().sum().item() ** 2
    assert truth == pytest.approx(50**2 / means.sum().item() ** 2, rel=0.05)
    # Few examples: the signs of weak coordinates are wrong, and their noise does not cancel.
    ends = []
    for seed in range(40):
        sign = of(rb.measure_noise(task, precision=None, max_examples=8, seed=seed), "sign")
        assert sign.status is Status.BRACKET
        assert sign.high is not None
        ends.append((sign.low, sign.high))
    lowest, highest = np.log(ends).mean(0)
    assert lowest < np.log(truth) - 0.01
    assert highest > np.log(truth) + 0.01
    # Of the whole data set the upper norm is exact: only the deviations of the sample remain.
    whole = of(rb.measure_noise(task, precision=None, micro_batch_size=1), "sign")
    assert whole.low == pytest.approx(truth, rel=1e-3)


def test_pure_noise_has_no_upper_sign_bound_or_a_very_large_one() -> None:
    model = nn.Linear(50, 1, bias=False)
    data = torch.randn(512, 50)
    data -= data.mean(0)
    task = Task(model, torch.optim.SGD(model.parameters(), lr=0.1), data, lambda m, b: m(b).mean())
    sign = of(rb.measure_noise(task, precision=None, max_examples=200), "sign")
    assert sign.high is None or sign.high > 20 * sign.low


def test_large_tensors_are_sampled() -> None:
    def sign(features: int) -> GeometryNoise:
        torch.manual_seed(3)
        model = nn.Linear(features, 1, bias=False)
        data = torch.randn(64, features) + 0.5
        task = Task(
            model, torch.optim.SGD(model.parameters(), lr=0.1), data, lambda m, b: m(b).mean()
        )
        return of(rb.measure_noise(task, precision=None, max_examples=32), "sign")

    few, many = sign(16_384), sign(3 * 16_384)
    assert many.low == pytest.approx(few.low, rel=0.02)


# Layers.


def test_layers_add_up_exactly_and_equal_their_definition() -> None:
    task = task_with(torch.optim.SGD)
    noise = rb.measure_noise(task, precision=None, micro_batch_size=5)
    assert [layer.layer for layer in noise.layers] == ["0", "2"]
    assert [layer.parameters for layer in noise.layers] == [16, 10]
    assert sum(x.trace_cov for x in noise.layers) == pytest.approx(noise.trace_cov, rel=1e-12)
    assert sum(x.grad_sq for x in noise.layers) == pytest.approx(noise.grad_sq, rel=1e-12)
    assert sum(x.noise_share for x in noise.layers) == pytest.approx(1)
    assert sum(x.gradient_share for x in noise.layers) == pytest.approx(1)
    single = rb.measure_noise(task, precision=None, micro_batch_size=1)
    gradients = example_gradients(task)
    for layer, part in zip(single.layers, gradients.split([16, 10], dim=1), strict=True):
        assert layer.trace_cov == pytest.approx(part.var(0).sum().item(), rel=1e-10)
        assert layer.grad_sq == pytest.approx(part.mean(0).square().sum().item(), rel=1e-10)
        assert layer.noise_scale == pytest.approx(layer.trace_cov / layer.grad_sq)


def test_coverage_names_what_got_no_gradient() -> None:
    task = task_with(torch.optim.SGD)
    unused = nn.Parameter(torch.zeros(26))
    task.model.register_parameter("unused", unused)
    task.optimizer.add_param_group({"params": [unused]})
    noise = rb.measure_noise(task, precision=None)
    assert (noise.coverage, noise.uncovered) == (0.5, ("unused",))
    assert rb.measure_noise(task_with(torch.optim.SGD), precision=None).coverage == 1.0


def test_names_are_those_of_the_model_below_its_wrappers() -> None:
    model = nn.Sequential(nn.Linear(1, 1))
    compiled = torch.compile(model, backend="eager")
    assert isinstance(compiled, nn.Module)
    names = [name for name, _ in named_parameters(compiled, list(model.parameters()))]
    assert names == ["0.weight", "0.bias"]


def test_batch_norm_makes_the_micro_batch_the_unit() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    data = [(torch.randn(3), torch.randn(2)) for _ in range(DATA)]
    task = Task(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        data,
        supervised(F.mse_loss),
        batch_size=6,
    )
    assert rb.measure_noise(task, precision=None).ghost_batch_size == 6
    assert rb.measure_noise(task_with(torch.optim.SGD), precision=None).ghost_batch_size is None


# Along a run.


def test_a_track_averages_in_the_geometries_that_were_warm() -> None:
    track = rb.track_noise(task_with(torch.optim.AdamW), steps=20, probes=4, max_examples=DATA)
    names = [g.geometry for g in track.geometries]
    assert names == ["euclidean", "adam", "adam_sqrt"]
    assert track.geometries[0].noise_scale == track.run_average
    assert [g.fits for g in track.geometries] == [False, True, False]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("permuted", [False, True])
def test_weighted_inner_products_do_not_depend_on_layout(
    dtype: torch.dtype, permuted: bool
) -> None:
    left, right, moment = torch.randn(3, 7, 200, 150).to(dtype).unbind(0)  # more than one chunk
    moment = moment.square() + 0.1
    p = 1 / (moment.double().sqrt() + 0.01)
    expected = [(left.double() * right.double() * w).sum().item() for w in (p**0, p**2, p)]
    if permuted:
        left, right, moment = (
            t.permute(2, 0, 1).contiguous().permute(1, 2, 0) for t in (left, right, moment)
        )
    found = inner_products(left, right, Preconditioner(moment, mean=None, correction=1.0, eps=0.01))
    tolerance = 1e-9 if dtype == torch.float64 else 1e-3
    np.testing.assert_allclose(found.numpy(), expected, rtol=tolerance, atol=tolerance * 500)
