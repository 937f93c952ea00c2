"""The code for several devices, run as printed. Oracle: one process on the union (rung 4).

A hook on the wrapper counts how often gradients are averaged: the plan reckons with once a step.
"""

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from rightbatch.report.snippet import next_steps
from tests.ranks import on_two_ranks
from tests.report import samples

MICRO, PASSES, EXAMPLES = 2, 3, 41  # 10.5 batches on each rank: 3 steps, and some left over


def printed() -> str:
    made = replace(
        samples.FOUR_DEVICES.plan,  # type: ignore[type-var]
        batch_size=2 * MICRO * PASSES,
        micro_batch_size=MICRO,
        accumulation_steps=PASSES,
        devices=2,
    )
    return "\n".join(next_steps(replace(samples.FOUR_DEVICES, plan=made)))


def problem() -> tuple[nn.Linear, TensorDataset]:
    torch.manual_seed(0)
    return nn.Linear(3, 2), TensorDataset(torch.randn(EXAMPLES, 3), torch.randint(2, (EXAMPLES,)))


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.999), eps=1e-8)


def paste_both(rank: int, *codes: str) -> list[dict[str, Any]]:
    return [paste(code) for code in codes]


def paste(code: str) -> dict[str, Any]:
    """Run the code for two epochs; say how often gradients were averaged, and what was learnt."""
    plain, dataset = problem()
    model = DistributedDataParallel(plain)
    averaged: list[int] = []

    def count(state: Any, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:  # type: ignore
        averaged.append(1)
        return allreduce_hook(state, bucket)

    model.register_comm_hook(dist.group.WORLD, count)
    names: dict[str, Any] = {
        "DataLoader": DataLoader,
        "DistributedSampler": DistributedSampler,
        "dataset": dataset,
        "nullcontext": nullcontext,
        "model": model,
        "optimizer": adam(model),
        "loss_of": lambda batch: F.cross_entropy(model(batch[0]), batch[1]),
    }
    exec(code, names)
    exec("\n".join(code.splitlines()[-3:]), names)  # the loop again: what is left over is not added
    return {"averaged": len(averaged), "weight": plain.weight.flatten().tolist()}


def alone() -> list[float]:
    """The same steps in one process: each on the union of the ranks' micro-batches."""
    model, dataset = problem()
    optimizer = adam(model)
    lines = printed().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("for group"))
    exec("\n".join(lines[start : start + 4]), {"optimizer": optimizer})
    shards = [list(DistributedSampler(dataset, num_replicas=2, rank=rank)) for rank in range(2)]
    size = MICRO * PASSES
    for step in [*range(len(shards[0]) // size)] * 2:
        chosen = [i for shard in shards for i in shard[step * size : (step + 1) * size]]
        inputs, labels = dataset[torch.tensor(chosen)]
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    return model.weight.flatten().tolist()


def test_pasted_code_averages_once_a_step_and_trains_as_one_process_would() -> None:
    bare = printed().replace("model.no_sync()", "nullcontext()")
    first, second = on_two_ranks(paste_both, printed(), bare)
    assert first[0]["averaged"] == second[0]["averaged"] == 2 * 3
    assert first[1]["averaged"] == 2 * 3 * PASSES  # the meter moves
    assert first[0]["weight"] == pytest.approx(second[0]["weight"], rel=1e-12)
    assert first[0]["weight"] == pytest.approx(alone(), rel=1e-9)
