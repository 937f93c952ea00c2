"""A plan, set on the user's optimizer. Oracles: the plan's own numbers, and closed forms."""

import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import rightbatch as rb
from rightbatch.results import LRRace, RaceEntry, Status
from rightbatch.testing import QuadraticTask
from tests.clocks import TickingClock
from tests.plan.made_up import critical, facts, throughput
from tests.report.samples import NOISE

ADAMW = {"lr": 0.01, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.1}


def findings() -> rb.Findings:
    """Findings whose rate comes from a race, as no rule would have given it."""
    task = facts(optimizer="AdamW", hyperparameters=ADAMW, learning_rate=0.01)
    size = rb.plan(throughput(), critical(), task).batch_size
    assert size != task.batch_size
    entries = tuple(
        RaceEntry(learning_rate=rate, loss=1.0, low=1.0, high=1.0, steps=9)
        for rate in (0.037, 0.074)
    )
    race = LRRace(
        batch_size=size, entries=entries, suggestion=0.037, low=0.03, high=0.05, status=Status.OK
    )
    made = rb.plan(throughput(), critical(), task, race)
    assert made.learning_rate == 0.037
    return rb.Findings(task=task, environment={}, critical_batch_size=critical(), plan=made)


def adamw(*rates: float) -> torch.optim.AdamW:
    groups = [{"params": [nn.Parameter(torch.ones(2))], "lr": rate} for rate in rates]
    return torch.optim.AdamW(groups, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.1)


def settings_of(group: dict[str, Any]) -> dict[str, float]:
    first, second = group["betas"]
    names = ("lr", "eps", "weight_decay")
    return {**{name: group[name] for name in names}, "beta1": first, "beta2": second}


def test_the_optimizer_gets_what_the_plan_says() -> None:
    found, optimizer = findings(), adamw(0.01, 0.03)
    report = found.apply(optimizer)
    assert found.plan is not None
    first, second = (settings_of(group) for group in optimizer.param_groups)
    assert first == pytest.approx(found.plan.hyperparameters, rel=1e-12)
    assert first == pytest.approx(report.hyperparameters, rel=1e-12)
    assert second["lr"] == pytest.approx(3 * found.plan.learning_rate)  # the groups' ratio stays
    assert {k: v for k, v in second.items() if k != "lr"} == pytest.approx(
        {k: v for k, v in first.items() if k != "lr"}
    )


def test_applied_twice_is_applied_once() -> None:
    found, optimizer = findings(), adamw(0.01)
    found.apply(optimizer)
    once = settings_of(optimizer.param_groups[0])
    found.apply(optimizer)
    assert settings_of(optimizer.param_groups[0]) == pytest.approx(once, rel=1e-14)


def test_a_dry_run_tells_and_changes_nothing() -> None:
    found, optimizer = findings(), adamw(0.01)
    before = settings_of(optimizer.param_groups[0])
    told = found.apply(optimizer, dry_run=True).hyperparameters
    assert settings_of(optimizer.param_groups[0]) == before
    assert found.apply(optimizer).hyperparameters == told


def test_what_hangs_on_the_optimizer_moves_along() -> None:
    found, optimizer = findings(), adamw(0.01)
    assert found.plan is not None
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 10)
    model = nn.Sequential(nn.BatchNorm1d(2, momentum=0.1))
    kappa = found.plan.batch_size / 16
    report = found.apply(
        optimizer, scheduler=scheduler, model=model, model_ema=0.99, warmup_examples=1600
    )
    assert scheduler.base_lrs == pytest.approx([found.plan.learning_rate])
    assert model[0].momentum == pytest.approx(1 - 0.9**kappa)
    assert report.model_ema == pytest.approx(0.99**kappa)
    assert report.after("warmup_steps") == -(-1600 // found.plan.batch_size)


def test_a_schedule_that_has_begun_goes_on_from_the_new_rate() -> None:
    found, optimizer = findings(), adamw(0.01)
    assert found.plan is not None
    assert found.plan.learning_rate is not None
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    optimizer.step()
    scheduler.step()
    found.apply(optimizer, scheduler=scheduler)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(found.plan.learning_rate / 2)


def test_training_goes_on_from_the_state_that_there_was() -> None:
    found, optimizer = findings(), adamw(0.01)
    weight = optimizer.param_groups[0]["params"][0]
    for _ in range(50):
        weight.grad = torch.tensor([1.0, -2.0])
        optimizer.step()
    found.apply(optimizer)
    assert found.plan is not None
    before = weight.detach().clone()
    weight.grad = torch.tensor([1.0, -2.0])
    optimizer.step()
    decay = found.plan.hyperparameters["lr"] * found.plan.hyperparameters["weight_decay"]
    moved = weight.detach() - (1 - decay) * before
    # A gradient that never changes makes Adam step by its rate exactly, whatever the betas.
    assert moved.abs().tolist() == pytest.approx([found.plan.hyperparameters["lr"]] * 2, rel=1e-6)


def test_without_todays_batch_size_only_the_rate_is_set() -> None:
    task = facts(optimizer="AdamW", hyperparameters=ADAMW, batch_size=None)
    made = replace(findings().plan, learning_rate=0.05)
    optimizer = adamw(0.01)
    rb.Findings(task=task, environment={}, plan=made).apply(optimizer)
    expected = {**ADAMW, "lr": pytest.approx(0.05)}
    assert settings_of(optimizer.param_groups[0]) == expected


def test_without_a_plan_there_is_nothing_to_apply() -> None:
    without = replace(findings(), plan=None)
    with pytest.raises(rb.CannotPlan, match="`apply` needs a plan, got findings without one"):
        without.apply(adamw(0.01))
    nothing = replace(findings(), plan=replace(findings().plan, status=Status.NOTHING_FITS))
    with pytest.raises(rb.CannotPlan, match="`apply` needs a plan"):
        nothing.apply(adamw(0.01))


def test_another_kind_of_optimizer_is_refused() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    with pytest.raises(rb.CannotPlan, match="that was measured, AdamW, got SGD"):
        findings().apply(optimizer)
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_the_changes_survive_the_results_file(tmp_path: Any) -> None:
    found = findings()
    found.save(tmp_path / "results.json")
    assert rb.load(tmp_path / "results.json") == found
    assert found.plan is not None
    assert len(found.plan.changes) == 5


def test_the_rate_is_raced_with_the_settings_that_it_is_recommended_with(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Otherwise the plan would name a set of settings that never ran together."""
    task = QuadraticTask(examples=512).task
    task.optimizer = torch.optim.AdamW(task.parameters, lr=0.05, betas=(0.9, 0.99))
    task.batch_size = 2
    raced: list[tuple[int, tuple[float, float]]] = []
    finding = sys.modules["rightbatch.find"]  # the package has a function of that name
    real_race = finding.race

    def race(task: rb.Task, **options: Any) -> Any:
        raced.append((options["batch_size"], task.optimizer.param_groups[0]["betas"]))
        return real_race(task, **options)

    monkeypatch.setattr(finding, "race", race)
    found = rb.find(task, time_budget_seconds=1.0, clock=TickingClock())
    assert found.plan is not None
    ((size, betas),) = raced
    assert size != 2
    assert betas[1] == pytest.approx(0.99 ** (size / 2))
    assert task.optimizer.param_groups[0]["betas"] == (0.9, 0.99)
    assert found.task.hyperparameters["beta2"] == 0.99  # today's, not the race's
    assert found.plan.hyperparameters["beta2"] == pytest.approx(0.99 ** (found.plan.batch_size / 2))


def test_batch_norm_follows_the_micro_batch_and_only_once() -> None:
    """128 as 8 times 16 examples: a forward pass still sees the 16 of today."""
    found, model = findings(), nn.Sequential(nn.BatchNorm1d(2, momentum=0.1))
    accumulated = replace(found.plan, micro_batch_size=16, accumulation_steps=8, batch_size=128)
    replace(found, plan=accumulated).apply(adamw(0.01), model=model)
    assert model[0].momentum == pytest.approx(0.1)
    optimizer = adamw(0.01)
    doubled = replace(found, plan=replace(accumulated, micro_batch_size=32, accumulation_steps=4))
    assert doubled.apply(optimizer, model=model, dry_run=True).after(
        "batch_norm_momentum"
    ) == pytest.approx(1 - 0.9**2)
    assert model[0].momentum == pytest.approx(0.1)
    for _ in range(2):
        doubled.apply(optimizer, model=model)
        assert model[0].momentum == pytest.approx(1 - 0.9**2)


def test_a_subclass_is_the_kind_that_was_measured() -> None:
    class Renamed(torch.optim.AdamW):
        pass

    optimizer = Renamed([nn.Parameter(torch.ones(1))], lr=0.01)
    found = findings()
    found.apply(optimizer)
    assert found.plan is not None
    assert optimizer.param_groups[0]["lr"] == pytest.approx(found.plan.learning_rate)


def test_a_smaller_batch_takes_the_measured_noise_into_account() -> None:
    """E g^2 = |G|^2 + tr(Sigma) / B: with a noise scale of 3, from 16 to 4 examples 1.47 times."""
    found = findings()
    small = replace(found.plan, batch_size=4, micro_batch_size=4)
    noise = replace(NOISE, noise_scale=3.0)
    optimizer = adamw(0.01)
    weight = optimizer.param_groups[0]["params"][0]
    for _ in range(2000):
        weight.grad = torch.tensor([1.0, -2.0])
        optimizer.step()
    report = replace(found, plan=small, noise=noise).apply(optimizer)
    assert report.after("second_moment") == pytest.approx((1 + 3 / 4) / (1 + 3 / 16), rel=1e-6)


def test_a_task_is_found_a_plan_for_also_after_its_optimizer_was_moved() -> None:
    task = QuadraticTask(examples=512).task
    task.batch_size = 2
    rb.scale_hyperparameters(task.optimizer, 2, 8)
    found = rb.find(task, time_budget_seconds=1.0, clock=TickingClock())
    assert found.plan is not None
    assert found.plan.learning_rate is not None
