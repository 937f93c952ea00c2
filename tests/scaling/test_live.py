"""Oracles: laws of moves (identity, return, composition) and what a live optimizer does next."""

import copy
import io
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st
from torch import nn
from torch.optim import Optimizer, lr_scheduler
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_ema_multi_avg_fn

import rightbatch as rb
from rightbatch.scaling import OptimizerFamily, Validity, register_optimizer
from tests.scaling.optimizers import NAMES, every_registered_name, make

SETTINGS = ("lr", "momentum", "alpha", "eps", "weight_decay", "betas")


def two_groups(name: str, **options: Any) -> Optimizer:
    """An optimizer of two groups, the second with three times the rate, that made five steps."""
    generator = torch.Generator().manual_seed(0)
    weights = [nn.Parameter(torch.randn(4, 3, generator=generator)) for _ in range(2)]
    optimizer = make(name, [{"params": weights[:1]}, {"params": weights[1:]}], **options)
    optimizer.param_groups[1]["lr"] *= 3
    for _ in range(5):
        step(optimizer, generator)
    return optimizer


def step(optimizer: Optimizer, generator: torch.Generator, noise: float = 0.3) -> None:
    """One step on |w|^2 / 2 with noise added to the gradient."""
    for group in optimizer.param_groups:
        for weight in group["params"]:
            drawn = torch.randn(weight.shape, generator=generator)
            weight.grad = weight.detach() + noise * drawn
    optimizer.step()


def settings(optimizer: Optimizer) -> list[float]:
    flat: list[float] = []
    for group in optimizer.param_groups:
        for name in SETTINGS:
            value = group.get(name, 0.0)
            flat += [float(v) for v in (value if isinstance(value, tuple) else (value,))]
    return flat


def tensors(optimizer: Optimizer) -> list[torch.Tensor]:
    entries = [entry for state in optimizer.state.values() for entry in state.values()]
    return [torch.as_tensor(entry).clone() for entry in entries if entry is not None]


def test_the_tests_make_every_registered_optimizer() -> None:
    assert every_registered_name() == NAMES


SIZES = st.integers(1, 20_000)
EVIDENCE = st.fixed_dictionaries(
    {
        "rule": st.sampled_from(["auto", "linear", "sqrt"]),
        "noise_scale": st.none() | st.floats(1, 1e5),
        "edge": st.none() | st.floats(0.5, 50.0),
        "momentum": st.sampled_from(["keep", "examples"]),
        "first_beta": st.sampled_from(["auto", "examples"]),
    }
)


@pytest.mark.parametrize("name", NAMES)
@limits(max_examples=25)  # of each of twelve optimizers
@given(sizes=st.tuples(SIZES, SIZES), options=EVIDENCE)
def test_there_and_back_restores_every_setting(
    name: str, sizes: tuple[int, int], options: dict[str, Any]
) -> None:
    optimizer = two_groups(name)
    options["edge"] = options["edge"] and options["edge"] * optimizer.param_groups[0]["lr"] * 2
    before = settings(optimizer)
    rb.scale_hyperparameters(optimizer, sizes[0], sizes[1], **options)
    rb.scale_hyperparameters(optimizer, sizes[1], sizes[0], **options)
    assert settings(optimizer) == pytest.approx(before, rel=1e-12)


@pytest.mark.parametrize("name", NAMES)
@limits(max_examples=25)  # of each of twelve optimizers
@given(sizes=st.tuples(SIZES, SIZES, SIZES), options=EVIDENCE)
def test_a_detour_over_a_third_size_changes_no_setting(
    name: str, sizes: tuple[int, int, int], options: dict[str, Any]
) -> None:
    direct, detour = two_groups(name), two_groups(name)
    options["edge"] = options["edge"] and options["edge"] * direct.param_groups[0]["lr"] * 2
    rb.scale_hyperparameters(direct, sizes[0], sizes[2], **options)
    rb.scale_hyperparameters(detour, sizes[0], sizes[1], **options)
    rb.scale_hyperparameters(detour, sizes[1], sizes[2], **options)
    assert settings(detour) == pytest.approx(settings(direct), rel=1e-12)


@pytest.mark.parametrize("name", NAMES)
@limits(max_examples=25)  # of each of twelve optimizers
@given(sizes=st.tuples(SIZES, SIZES), edge=st.none() | st.floats(1e-4, 1.0))
def test_the_ratio_of_the_groups_rates_is_kept(
    name: str, sizes: tuple[int, int], edge: float | None
) -> None:
    optimizer = two_groups(name)
    report = rb.scale_hyperparameters(optimizer, *sizes, edge=edge)
    slow, fast = (group["lr"] for group in optimizer.param_groups)
    assert fast / slow == pytest.approx(3, rel=1e-12)
    assert (report.after("lr", 0), report.after("lr", 1)) == (slow, fast)
    if edge is not None:
        assert slow <= edge * (1 + 1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_growing_keeps_the_state_and_the_other_options(name: str) -> None:
    optimizer = two_groups(name)
    reference = copy.deepcopy(optimizer)
    rb.scale_hyperparameters(optimizer, 64, 512, noise_scale=1e3)
    for weight, other in zip(optimizer.state, reference.state, strict=True):
        assert optimizer.state[weight].keys() == reference.state[other].keys()
    for group, other in zip(optimizer.param_groups, reference.param_groups, strict=True):
        assert group.keys() - other.keys() == {"batch_size_scaling"}
        assert all(group[key] == other[key] for key in other if key not in (*SETTINGS, "params"))


@pytest.mark.parametrize("name", ["Adam", "AdamW", "RAdam", "LAMB"])
@pytest.mark.parametrize("to_size", [16, 256])
def test_corrected_averages_stay_what_they_were(name: str, to_size: int) -> None:
    """m / (1 - beta1^t) before and after; v too, but for the noise of smaller batches."""
    optimizer = two_groups(name)

    def corrected() -> list[torch.Tensor]:
        found = []
        for group in optimizer.param_groups:
            for weight in group["params"]:
                state = optimizer.state[weight]
                for beta, moment in zip(group["betas"], ("exp_avg", "exp_avg_sq"), strict=True):
                    found.append(state[moment] / (1 - beta ** float(state["step"])))
        return found

    before = corrected()
    report = rb.scale_hyperparameters(optimizer, 64, to_size, noise_scale=300.0)
    after = corrected()
    growth = (1 + 300 / 16) / (1 + 300 / 64) if to_size == 16 else 1.0
    for index, (old, new) in enumerate(zip(before, after, strict=True)):
        torch.testing.assert_close(new, old * (growth if index % 2 else 1.0), rtol=1e-12, atol=0)
    assert [c.after for c in report.changes if c.parameter == "second_moment"] == (
        [pytest.approx(growth)] if to_size == 16 else []
    )


def test_a_new_beta_without_new_corrections_would_spike() -> None:
    """The fault that carrying the state prevents: after 5 steps, eight-fold, the next step."""
    sizes = []
    for carry in (True, False):
        optimizer = two_groups("Adam", weight_decay=0.0)
        weight = optimizer.param_groups[0]["params"][0]
        if carry:
            rb.scale_hyperparameters(optimizer, 64, 512)
        else:
            for group in optimizer.param_groups:
                group["lr"] *= 8**0.5
                group["betas"] = (0.9, 0.999**8)
        before = weight.detach().clone()
        weight.grad = torch.zeros_like(weight)
        optimizer.step()
        sizes.append((weight.detach() - before).norm().item())
    assert sizes[1] > 2 * sizes[0]


def test_shrinking_twice_is_shrinking_once_also_for_the_second_moment() -> None:
    direct, detour = two_groups("Adam"), two_groups("Adam")
    rb.scale_hyperparameters(direct, 64, 8, noise_scale=100.0)
    for sizes in ((64, 16), (16, 64), (64, 16), (16, 8)):
        rb.scale_hyperparameters(detour, *sizes, noise_scale=100.0)
    for one, other in zip(tensors(direct), tensors(detour), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=0)


def test_what_the_second_moment_remembers_fades_with_its_beta() -> None:
    """After long at 64 it has forgotten the 16 of before, and must grow anew."""
    growths = []
    for num_steps in (0, 10, 2000):
        optimizer = two_groups("Adam", betas=(0.9, 0.99))
        generator = torch.Generator().manual_seed(1)
        rb.scale_hyperparameters(optimizer, 64, 16)
        rb.scale_hyperparameters(optimizer, 16, 64)
        for _ in range(num_steps):
            step(optimizer, generator)
        report = rb.scale_hyperparameters(optimizer, 64, 16)
        growths.append(report.hyperparameters.get("second_moment", 1.0))
    assert growths[0] == 1.0
    assert 1.0 < growths[1] < growths[2]
    assert growths[2] == pytest.approx(4, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "options"), [("Adam", {"betas": (0.9, 0.99)}), ("RMSprop", {"alpha": 0.99})]
)
def test_what_the_second_moment_remembers_is_averaged_as_it_is(
    name: str, options: dict[str, Any]
) -> None:
    """The definition: 1 / batch size through the same average, step by step.

    Adam's begins at 0 and is corrected for it; RMSprop's is not, and keeps what it begins with.
    """
    optimizer, generator = two_groups(name, **options), torch.Generator().manual_seed(1)
    rb.scale_hyperparameters(optimizer, 64, 16)  # as if its 5 steps had been at 16
    rb.scale_hyperparameters(optimizer, 16, 64)
    for _ in range(10):
        step(optimizer, generator)
    report = rb.scale_hyperparameters(optimizer, 64, 16)
    average = 0.0 if name == "Adam" else 1 / 16
    for inverse in [1 / 16] * 5 + [1 / 64] * 10:
        average = 0.99 * average + 0.01 * inverse
    average /= 1 - 0.99**15 if name == "Adam" else 1.0
    assert report.hyperparameters["second_moment"] == pytest.approx(1 / 16 / average, rel=1e-12)


def test_a_first_moment_that_keeps_its_own_corrections_is_left_alone() -> None:
    """NAdam divides by a product of the betas that each step had."""
    optimizer = two_groups("NAdam")
    before = [state["exp_avg"].clone() for state in optimizer.state.values()]
    rb.scale_hyperparameters(optimizer, 64, 128, first_beta="examples")
    assert optimizer.param_groups[0]["betas"][0] == pytest.approx(0.9**2)
    for state, old in zip(optimizer.state.values(), before, strict=True):
        assert torch.equal(state["exp_avg"], old)


@pytest.mark.parametrize("to_size", [4, 16, 256, 1024])
@pytest.mark.parametrize("name", NAMES)
def test_training_goes_on_after_a_move_without_a_spike(name: str, to_size: int) -> None:
    """A quadratic with noise tr(Sigma)/B: for 50 steps after the move the mean loss of eight
    runs stays below 1.5 times its largest of the 50 steps before, and stays finite.
    """
    generator = torch.Generator().manual_seed(3)
    peaks = []
    weights = [nn.Parameter(torch.randn(8, 16, generator=generator)) for _ in range(2)]
    optimizer = make(name, [{"params": weights[:1]}, {"params": weights[1:]}], weight_decay=0.0)
    size = 64
    noise_scale = 64.0

    def loss() -> float:
        return sum(float(w.detach().square().sum()) / 2 for w in weights) + 1.0

    def run(batch_size: int) -> float:
        worst = 0.0
        for _ in range(50):
            # Noise of fixed size: |G|^2 falls along the way, so this is harder than the model.
            step(optimizer, generator, noise=(noise_scale / batch_size) ** 0.5)
            worst = max(worst, loss())
        return worst

    run(size)
    peaks.append(run(size))
    rb.scale_hyperparameters(optimizer, size, to_size, noise_scale=noise_scale)
    peaks.append(run(to_size))
    assert peaks[1] < 1.5 * peaks[0]
    assert all(bool(entry.isfinite().all()) for entry in tensors(optimizer))


def test_a_rate_in_a_tensor_is_filled_and_comes_back() -> None:
    rate = torch.tensor(0.01, dtype=torch.float32)
    optimizer = two_groups("Adam")
    optimizer.param_groups[0]["lr"] = rate
    optimizer.param_groups[1]["lr"] = rate  # one tensor in both groups: scaled once
    rb.scale_hyperparameters(optimizer, 64, 256)
    assert optimizer.param_groups[0]["lr"] is rate
    assert rate.item() == pytest.approx(0.02, rel=1e-6)
    rb.scale_hyperparameters(optimizer, 256, 1000)
    rb.scale_hyperparameters(optimizer, 1000, 64)
    assert rate.item() == torch.tensor(0.01, dtype=torch.float32).item()


def test_a_capturable_step_goes_on_with_tensors_of_betas() -> None:
    weight = nn.Parameter(torch.ones(3))
    betas = (torch.tensor(0.9), torch.tensor(0.999))
    optimizer = make("Adam", [weight], lr=torch.tensor(0.01), betas=betas, foreach=False)
    step(optimizer, torch.Generator().manual_seed(0))
    rb.scale_hyperparameters(optimizer, 8, 16)
    assert optimizer.param_groups[0]["betas"][0] is betas[0]
    assert betas[0].item() == pytest.approx(0.81)


def test_a_beta_in_a_single_precision_tensor_remembers_where_it_came_from() -> None:
    """What was stored is not quite what was meant, and yet nobody's own choice."""
    betas = tuple(torch.tensor(beta, dtype=torch.float32) for beta in (0.9, 0.999))
    optimizer = make("Adam", [nn.Parameter(torch.ones(3))], lr=torch.tensor(0.01), betas=betas)
    rb.scale_hyperparameters(optimizer, 64, 192)
    assert betas[0].item() == pytest.approx(0.729, rel=1e-6)
    rb.scale_hyperparameters(optimizer, 192, 640)  # ten-fold from the first: kept
    assert betas[0].item() == pytest.approx(0.9, rel=1e-6)


@pytest.mark.parametrize("name", ["SGD", "RMSprop"])
def test_a_sum_of_gradients_is_rescaled_with_its_momentum(name: str) -> None:
    """The rate times the sum of a constant gradient follows the rule at once, not slowly."""
    weight = nn.Parameter(torch.zeros(2))
    optimizer = make(name, [weight], weight_decay=0.0, momentum=0.9)
    optimizer.param_groups[0]["alpha"] = 0.0  # RMSprop: a gradient of 1 is normalised to 1

    def change() -> float:
        before = weight.detach().clone()
        weight.grad = torch.ones_like(weight)
        optimizer.step()
        return float((before - weight.detach())[0])

    for _ in range(300):
        change()
    steady = change()
    rb.scale_hyperparameters(optimizer, 64, 256, rule="linear", momentum="examples")
    assert change() == pytest.approx(4 * steady, rel=1e-6)
    rb.scale_hyperparameters(optimizer, 256, 64, rule="linear", momentum="examples")
    assert change() == pytest.approx(steady, rel=1e-6)


def test_the_largest_second_moment_of_amsgrad_moves_with_the_second_moment() -> None:
    optimizer = two_groups("Adam", amsgrad=True)
    before = [state["max_exp_avg_sq"].clone() for state in optimizer.state.values()]
    rb.scale_hyperparameters(optimizer, 64, 16, first_beta="keep")
    beta = optimizer.param_groups[0]["betas"][1]
    factor = 4 * (1 - beta**5) / (1 - 0.999**5)
    for state, old in zip(optimizer.state.values(), before, strict=True):
        torch.testing.assert_close(state["max_exp_avg_sq"], factor * old, rtol=1e-10, atol=0)


def test_the_history_travels_with_the_optimizers_state() -> None:
    """Cut by the edge at 512, saved, loaded, and back at 64: the rate of before."""
    options: dict[str, Any] = {"rule": "linear", "edge": 0.02}
    optimizer = two_groups("SGD")
    rb.scale_hyperparameters(optimizer, 64, 512, **options)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.02)
    saved = io.BytesIO()
    torch.save(optimizer.state_dict(), saved)
    saved.seek(0)
    resumed = two_groups("SGD")
    resumed.load_state_dict(torch.load(saved, weights_only=True))
    rb.scale_hyperparameters(resumed, 512, 64, **options)
    assert [group["lr"] for group in resumed.param_groups] == pytest.approx([0.01, 0.03], rel=1e-12)


def test_a_setting_changed_by_hand_is_taken_as_it_is() -> None:
    optimizer = two_groups("AdamW")
    rb.scale_hyperparameters(optimizer, 64, 256)
    optimizer.param_groups[0]["lr"] = 0.5
    optimizer.param_groups[0]["weight_decay"] = 0.7
    rb.scale_hyperparameters(optimizer, 256, 64)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.25)
    assert optimizer.param_groups[0]["weight_decay"] == pytest.approx(0.35)
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.999)


def test_a_first_beta_to_keep_is_the_one_of_now() -> None:
    optimizer = two_groups("Adam")
    rb.scale_hyperparameters(optimizer, 64, 128)
    rb.scale_hyperparameters(optimizer, 128, 256, first_beta="keep")
    assert optimizer.param_groups[0]["betas"][0] == pytest.approx(0.9**2)


def test_a_group_that_joins_later_moves_along() -> None:
    optimizer = two_groups("SGD")
    rb.scale_hyperparameters(optimizer, 64, 128, rule="linear")
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))], "lr": 1.0})
    rb.scale_hyperparameters(optimizer, 128, 256, rule="linear")
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.04, 0.12, 2.0])


def schedulers(optimizer: Optimizer, kind: str) -> Any:
    made = {
        "lambda": lambda: lr_scheduler.LambdaLR(optimizer, lambda epoch: 1 / (1 + epoch)),
        "step": lambda: lr_scheduler.StepLR(optimizer, 3, gamma=0.5),
        "cosine": lambda: lr_scheduler.CosineAnnealingLR(optimizer, 12, eta_min=0.001),
        "restarts": lambda: lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 4, eta_min=0.001),
        "polynomial": lambda: lr_scheduler.PolynomialLR(optimizer, 12, power=2.0),
        "one cycle": lambda: lr_scheduler.OneCycleLR(
            optimizer, [0.1, 0.3], total_steps=20, cycle_momentum=False
        ),
        "cyclic": lambda: lr_scheduler.CyclicLR(
            optimizer, [0.01, 0.03], [0.1, 0.3], 3, cycle_momentum=False
        ),
        "sequence": lambda: lr_scheduler.SequentialLR(
            optimizer,
            [
                lr_scheduler.LinearLR(optimizer, 0.1, total_iters=4),
                lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.9**epoch),
            ],
            [4],
        ),
    }
    return made[kind]()


@pytest.mark.parametrize(
    "kind",
    ["lambda", "step", "cosine", "restarts", "polynomial", "one cycle", "cyclic", "sequence"],
)
def test_a_schedule_goes_on_in_the_same_shape(kind: str) -> None:
    def rates(moves: bool) -> list[list[float]]:
        optimizer = two_groups("SGD")
        scheduler = schedulers(optimizer, kind)
        followed = []
        for epoch in range(10):
            if moves and epoch == 2:
                rb.scale_hyperparameters(optimizer, 64, 256, rule="linear", scheduler=scheduler)
            if moves and epoch == 6:
                rb.scale_hyperparameters(optimizer, 256, 128, rule="linear", scheduler=scheduler)
            followed.append([group["lr"] for group in optimizer.param_groups])
            optimizer.step()
            scheduler.step()
        return followed

    plain, moved = rates(moves=False), rates(moves=True)
    for epoch, (one, other) in enumerate(zip(plain, moved, strict=True)):
        factor = 1 if epoch < 2 else 4 if epoch < 6 else 2
        assert other == pytest.approx([factor * rate for rate in one], rel=1e-12), epoch


def test_a_scheduler_that_was_not_passed_is_warned_about() -> None:
    optimizer = two_groups("SGD")
    scheduler = schedulers(optimizer, "lambda")
    report = rb.scale_hyperparameters(optimizer, 64, 128)
    assert "Pass `scheduler`" in report.warnings[-1]
    assert not rb.scale_hyperparameters(optimizer, 128, 64, scheduler=scheduler).warnings


def test_the_edge_holds_the_peak_of_a_schedule_not_the_rate_of_now() -> None:
    optimizer = two_groups("SGD")
    scheduler = schedulers(optimizer, "lambda")
    for _ in range(4):
        optimizer.step()
        scheduler.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.01 / 5)
    rb.scale_hyperparameters(optimizer, 64, 640, rule="linear", edge=0.05, scheduler=scheduler)
    assert optimizer.param_groups[0]["initial_lr"] == pytest.approx(0.05)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.05 / 5)


@pytest.mark.parametrize("make_average", [get_ema_multi_avg_fn, get_ema_avg_fn])
def test_a_model_average_keeps_its_half_life(make_average: Any) -> None:
    model = nn.Linear(2, 1)
    name = "multi_avg_fn" if make_average is get_ema_multi_avg_fn else "avg_fn"
    average = AveragedModel(model, **{name: make_average(0.99)})
    average.update_parameters(model)
    with torch.no_grad():
        model.weight.fill_(1.0)
    start = average.module.weight.detach().clone()
    report = rb.scale_hyperparameters(two_groups("SGD"), 64, 256, model_ema=average)
    average.update_parameters(model)
    expected = 0.99**4 * start + (1 - 0.99**4)
    torch.testing.assert_close(average.module.weight.detach(), expected, rtol=1e-12, atol=0)
    assert report.model_ema == pytest.approx(0.99**4)


def test_a_decay_or_an_object_with_one_works_too() -> None:
    class Average:
        decay = 0.5

    average = Average()
    assert rb.scale_hyperparameters(two_groups("SGD"), 8, 24, model_ema=average).model_ema == 0.125
    assert average.decay == 0.125
    assert rb.scale_hyperparameters(two_groups("SGD"), 8, 24, model_ema=0.5).model_ema == 0.125
    assert rb.scale_hyperparameters(two_groups("SGD"), 8, 24).model_ema is None


@pytest.mark.parametrize(
    ("average", "match"),
    [
        (AveragedModel(nn.Linear(1, 1)), "AveragedModel with another function"),
        (1.5, r"decay in \[0, 1\], got 1.5"),
        (object(), "got object"),
    ],
)
def test_an_average_without_a_decay_is_refused_before_anything_changes(
    average: Any, match: str
) -> None:
    optimizer = two_groups("SGD")
    before = settings(optimizer)
    with pytest.raises(ValueError, match=match):
        rb.scale_hyperparameters(optimizer, 8, 16, model_ema=average)
    assert settings(optimizer) == before


def test_batch_norm_moves_on_request_and_comes_back() -> None:
    model = nn.Sequential(
        nn.BatchNorm1d(2, momentum=0.1), nn.BatchNorm2d(2, momentum=None), nn.GroupNorm(1, 2)
    )
    optimizer = two_groups("SGD")
    rb.scale_hyperparameters(optimizer, 64, 256)
    assert model[0].momentum == 0.1
    rb.scale_hyperparameters(optimizer, 256, 64)
    report = rb.scale_hyperparameters(optimizer, 64, 256, model=model)
    assert model[0].momentum == pytest.approx(1 - 0.9**4)
    assert model[1].momentum is None
    assert report.after("batch_norm_momentum") == model[0].momentum
    rb.scale_hyperparameters(optimizer, 256, 64, model=model)
    assert model[0].momentum == pytest.approx(0.1, rel=1e-12)


def test_memories_of_one_step_are_valid_where_the_size_stays() -> None:
    model = nn.BatchNorm1d(2, momentum=1.0)
    report = rb.scale_hyperparameters(two_groups("SGD"), 64, 64, model=model, model_ema=0.0)
    rows = {change.parameter: change.validity for change in report.changes}
    assert rows["batch_norm_momentum"] is rows["model_ema"] is Validity.HOLDS


def test_a_memory_that_a_huge_batch_took_does_not_come_back_and_is_not_called_valid() -> None:
    model = nn.BatchNorm1d(2, momentum=0.1)
    optimizer = two_groups("SGD")
    report = rb.scale_hyperparameters(optimizer, 1, 8192, model=model, model_ema=0.9)
    assert (model.momentum, report.model_ema) == (1.0, 0.0)
    report = rb.scale_hyperparameters(optimizer, 8192, 1, model=model, model_ema=0.0)
    rows = {change.parameter: (change.after, change.validity) for change in report.changes}
    assert rows["batch_norm_momentum"] == (1.0, Validity.OUTSIDE)
    assert rows["model_ema"] == (0.0, Validity.OUTSIDE)


def test_the_warm_up_is_counted_in_steps_of_the_new_size() -> None:
    report = rb.scale_hyperparameters(two_groups("SGD"), 64, 256, warmup_examples=10_000)
    row = next(c for c in report.changes if c.parameter == "warmup_steps")
    assert (row.before, row.after) == (157, 40)
    with pytest.raises(ValueError, match="got warmup_examples=-1"):
        rb.scale_hyperparameters(two_groups("SGD"), 64, 256, warmup_examples=-1)


@pytest.mark.parametrize("name", NAMES)
def test_a_dry_run_reports_the_same_and_changes_nothing(name: str) -> None:
    optimizer, reference = two_groups(name), two_groups(name)
    model = nn.BatchNorm1d(2)
    scheduler = schedulers(optimizer, "lambda")
    schedulers(reference, "lambda")
    options: dict[str, Any] = {"model": model, "model_ema": 0.9, "scheduler": scheduler}
    before = copy.deepcopy((optimizer.state_dict(), scheduler.base_lrs, model.momentum))
    dry = rb.scale_hyperparameters(optimizer, 64, 8, dry_run=True, **options)
    after = (optimizer.state_dict(), scheduler.base_lrs, model.momentum)
    assert str(after) == str(before)
    assert rb.scale_hyperparameters(optimizer, 64, 8, **options) == dry
    assert settings(optimizer) != settings(reference)


def test_groups_that_differ_have_a_row_each_and_equal_ones_share_it() -> None:
    report = rb.scale_hyperparameters(two_groups("AdamW"), 64, 128)
    rows = [(c.parameter, c.group) for c in report.changes]
    assert rows[:2] == [("lr", 0), ("lr", 1)]
    assert ("beta2", None) in rows
    assert "lr[1]" in str(report)


def test_torchs_own_flag_decides_what_weight_decay_is() -> None:
    coupled, decoupled = two_groups("Adam"), two_groups("Adam")
    for group in decoupled.param_groups:
        group["decoupled_weight_decay"] = True
    rb.scale_hyperparameters(coupled, 64, 256)
    rb.scale_hyperparameters(decoupled, 64, 256)
    assert coupled.param_groups[0]["weight_decay"] == 0.01
    assert decoupled.param_groups[0]["weight_decay"] == pytest.approx(0.02)


def test_a_subclass_counts_as_its_parent_and_an_unknown_kind_is_said_to_be() -> None:
    class Mine(torch.optim.AdamW):
        pass

    class Unknown(Optimizer):
        def __init__(self, params: Any) -> None:
            super().__init__(params, {"lr": 0.1, "nu": 0.7})

    weight = nn.Parameter(torch.ones(1))
    assert not rb.scale_hyperparameters(Mine([weight]), 8, 16).not_scaled
    report = rb.scale_hyperparameters(Unknown([weight]), 8, 32)
    assert report.not_scaled == ("nu", "the optimizer's state")
    assert report.changes[0].validity is Validity.UNCHECKED
    assert report.after("lr") == pytest.approx(0.2)


def test_a_registered_kind_is_scaled_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    class Own(Optimizer):
        def __init__(self, params: Any) -> None:
            super().__init__(params, {"lr": 0.1, "mu": 0.9, "weight_decay": 0.1})

    monkeypatch.setattr("rightbatch.scaling.families._families", {})
    family = OptimizerFamily(step="normalised", second_beta="mu", decoupled=True)
    register_optimizer("Own", family)
    optimizer = Own([nn.Parameter(torch.ones(1))])
    assert not rb.scale_hyperparameters(optimizer, 8, 32).not_scaled
    group = optimizer.param_groups[0]
    assert (group["lr"], group["mu"]) == pytest.approx((0.2, 0.6561))
    assert group["weight_decay"] == pytest.approx(0.2)
    with pytest.raises(ValueError, match="got name=''"):
        register_optimizer("", family)


@pytest.mark.parametrize("rate", [None, float("nan"), -0.1])
def test_an_optimizer_without_a_rate_is_refused(rate: float | None) -> None:
    optimizer = two_groups("SGD")
    optimizer.param_groups[1]["lr"] = rate
    with pytest.raises(ValueError, match="group 1 of the optimizer must have a finite"):
        rb.scale_hyperparameters(optimizer, 8, 16)


def test_a_given_rate_is_set_and_the_next_move_starts_from_it() -> None:
    """The race's rate at 32 examples is right there; 128 by the square-root rule is twice that."""
    optimizer = torch.optim.AdamW(
        [{"params": [torch.ones(1, requires_grad=True)], "lr": lr} for lr in (0.01, 0.03)],
        weight_decay=0.1,
    )
    report = rb.scale_hyperparameters(optimizer, 8, 32, learning_rate=0.05, noise_scale=1e4)
    first, second = optimizer.param_groups
    assert (first["lr"], second["lr"]) == (pytest.approx(0.05), pytest.approx(0.15))
    assert first["weight_decay"] == pytest.approx(0.2)  # as by the rule, whose rate is twice 0.01
    rate = next(c for c in report.changes if c.parameter == "lr" and c.group == 0)
    assert (rate.why, rate.validity.value) == ("given, not by a rule", "yes")
    rb.scale_hyperparameters(optimizer, 32, 128, noise_scale=1e4)
    assert (first["lr"], second["lr"]) == (pytest.approx(0.1), pytest.approx(0.3))
    assert first["betas"][1] == pytest.approx(0.999**16)
    rb.scale_hyperparameters(optimizer, 128, 32, noise_scale=1e4)
    assert first["lr"] == pytest.approx(0.05)


def test_a_given_rate_moves_a_scheduler_too_and_is_cut_by_the_edge() -> None:
    optimizer = torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=0.01)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    optimizer.step()
    scheduler.step()
    move = {"learning_rate": 0.4, "edge": 0.3, "scheduler": scheduler}
    report = rb.scale_hyperparameters(optimizer, 8, 32, **move)
    assert scheduler.base_lrs == [pytest.approx(0.3)]
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.15)
    assert not report.valid
    assert "the given rate is 0.4, above the measured edge of 0.3" in report.warnings[0]


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan")])
def test_a_given_rate_that_is_none_is_refused(rate: float) -> None:
    optimizer = torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=0.01)
    with pytest.raises(ValueError, match="`learning_rate` must be positive, got"):
        rb.scale_hyperparameters(optimizer, 8, 32, learning_rate=rate)
    assert optimizer.param_groups[0]["lr"] == 0.01
