"""The code to paste. Oracle: run it, and read the optimizer back."""

from dataclasses import replace

import pytest
import torch

from rightbatch.plan import plan
from rightbatch.report.snippet import next_steps
from rightbatch.results import Results
from tests.report import samples


def _paste(results: Results, optimizer: torch.optim.Optimizer) -> None:
    """Run the line that changes the optimizer, as a user would."""
    (line,) = (line for line in next_steps(results) if "optimizer" in line)
    exec(line, {"optimizer": optimizer})


def test_the_pasted_line_changes_the_rate_and_nothing_else():
    layers = torch.nn.Linear(2, 1), torch.nn.Linear(1, 1)
    groups = [{"params": layers[0].parameters(), "lr": 0.02}, {"params": layers[1].parameters()}]
    optimizer = torch.optim.SGD(groups, lr=0.2, momentum=0.9, nesterov=True)
    _paste(samples.FULL, optimizer)
    assert samples.TASK.learning_rate == 0.02
    assert samples.PLAN.learning_rate == 0.06
    first, second = optimizer.param_groups
    assert first["lr"] == pytest.approx(0.06)
    assert second["lr"] == pytest.approx(0.6)  # the ratio of the groups stays
    assert first["nesterov"]
    assert first["momentum"] == 0.9


def test_a_rate_that_stays_is_not_touched():
    results = replace(samples.FULL, plan=replace(samples.PLAN, learning_rate=0.02))
    assert not any("optimizer" in line for line in next_steps(results))


def test_without_todays_rate_the_optimizer_is_built_anew():
    task = replace(samples.TASK, optimizer="Lion", learning_rate=None)
    results = replace(samples.FULL, task=task)
    assert next_steps(results)[-1] == "optimizer = Lion(model.parameters(), lr=0.06)"


def test_loader_gets_micro_batches_and_the_loop_the_rest():
    lines = next_steps(samples.FOUR_DEVICES)
    assert "# on each of 4 devices:" in lines
    assert any("batch_size=128, sampler=DistributedSampler(dataset)" in line for line in lines)
    assert any("if i % 2 < 1 else nullcontext()" in line for line in lines)


def test_on_one_device_accumulation_is_a_word():
    made = replace(samples.PLAN, micro_batch_size=256, accumulation_steps=2, devices=1)
    lines = next_steps(replace(samples.FULL, plan=made))
    assert lines[-1].startswith("# (loss / 2).backward() on 2 batches")
    assert not any("no_sync" in line for line in lines)


def test_there_is_no_code_without_a_plan():
    assert next_steps(samples.ONLY_MEMORY) == ()


def test_the_pasted_lines_set_what_the_plan_says_of_adamw():
    hyperparameters = {"lr": 0.02, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.1}
    task = replace(samples.TASK, optimizer="AdamW", hyperparameters=hyperparameters, batch_size=64)
    made = plan(replace(samples.FULL, task=task))
    assert made.batch_size == 256
    lines = next_steps(replace(samples.FULL, task=task, plan=made))
    begin = next(i for i, line in enumerate(lines) if line.startswith("for group"))
    end = next(
        i for i in range(begin + 1, len(lines) + 1) if not lines[i : i + 1] or lines[i][0] != " "
    )
    optimizer = torch.optim.AdamW(
        [torch.ones(1, requires_grad=True)], lr=0.02, betas=(0.9, 0.99), weight_decay=0.1
    )
    exec("\n".join(lines[begin:end]), {"optimizer": optimizer})
    group = optimizer.param_groups[0]
    first, second = group["betas"]
    pasted = {"lr": group["lr"], "beta1": first, "beta2": second}
    pasted |= {name: group[name] for name in ("eps", "weight_decay")}
    assert pasted == pytest.approx(made.hyperparameters, rel=1e-3)
    assert pasted["beta2"] == pytest.approx(0.99**4, rel=1e-5)
