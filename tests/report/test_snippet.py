"""The code to paste. Oracle: run it, and read the optimizer back."""

from dataclasses import replace

import pytest
import torch

from rightbatch.report.snippet import next_steps
from tests.report import samples


def _pasted(results):
    """Run the optimizer's line on a model, as a user would."""
    (line,) = (line for line in next_steps(results) if line.startswith("optimizer"))
    names = {**vars(torch.optim), "model": torch.nn.Linear(2, 1)}
    exec(line, names)
    group = names["optimizer"].param_groups[0]
    betas = group.get("betas", ())
    numbers = {k: v for k, v in group.items() if isinstance(v, int | float)}
    return numbers | {f"beta{i}": beta for i, beta in enumerate(betas, start=1)}


@pytest.mark.parametrize(
    ("optimizer", "settings"),
    [
        ("SGD", {"momentum": 0.9, "weight_decay": 5e-4, "dampening": 0.0}),
        ("SGD", {"momentum": 0.0, "weight_decay": 0.0, "dampening": 0.0}),
        ("AdamW", {"beta1": 0.81, "beta2": 0.998, "eps": 1e-8, "weight_decay": 0.0}),
        ("Adam", {"beta1": 0.9, "beta2": 0.999, "eps": 1e-6, "weight_decay": 0.0}),
        ("RMSprop", {"alpha": 0.95, "momentum": 0.3, "eps": 1e-8, "weight_decay": 0.0}),
    ],
)
def test_the_pasted_optimizer_has_the_planned_settings(optimizer, settings):
    planned = {"lr": 0.0123, **settings}
    results = replace(
        samples.FULL,
        task=replace(samples.TASK, optimizer=optimizer),
        plan=replace(samples.PLAN, learning_rate=0.0123, hyperparameters=planned),
    )
    assert {k: v for k, v in _pasted(results).items() if k in planned} == pytest.approx(planned)


def test_defaults_are_not_spelled_out():
    results = replace(
        samples.FULL,
        plan=replace(samples.PLAN, hyperparameters={"lr": 0.06, "momentum": 0.0}),
    )
    assert next_steps(results)[-1] == "optimizer = SGD(model.parameters(), lr=0.06)"


def test_betas_are_a_pair_and_only_there_where_they_are_unusual():
    usual = {"lr": 0.06, "beta1": 0.9, "beta2": 0.999}
    for planned, words in ((usual, "lr=0.06)"), (usual | {"beta1": 0.8}, "betas=(0.8, 0.999))")):
        results = replace(
            samples.FULL,
            task=replace(samples.TASK, optimizer="Adam"),
            plan=replace(samples.PLAN, hyperparameters=planned),
        )
        assert next_steps(results)[-1].endswith(f", {words}")


def test_an_optimizer_from_elsewhere_gets_what_changed():
    results = replace(
        samples.FULL,
        task=replace(samples.TASK, optimizer="Lion", hyperparameters={"lr": 0.02, "rho": 0.1}),
        plan=replace(samples.PLAN, hyperparameters={"lr": 0.06, "rho": 0.2}),
    )
    assert next_steps(results)[-1] == "optimizer = Lion(model.parameters(), lr=0.06, rho=0.2)"


def test_loader_gets_micro_batches_and_the_loop_the_rest():
    lines = next_steps(samples.FOUR_DEVICES)
    assert "# on each of 4 devices:" in lines
    assert any("batch_size=128, sampler=DistributedSampler(dataset)" in line for line in lines)
    assert lines[-1].startswith("# (loss / 2).backward() on 2 batches")


def test_there_is_no_code_without_a_plan():
    assert next_steps(samples.ONLY_MEMORY) == ()
