"""What only an accelerator can tell. Oracle: sizes that are known, and laws."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from rightbatch import measure_energy, measure_throughput
from rightbatch._comm import Group
from rightbatch._time import synchronize
from rightbatch.hardware.energy import energy_counters
from rightbatch.hardware.fake import fakes_of
from rightbatch.hardware.isolation import Isolated
from rightbatch.hardware.meters import meter_for
from rightbatch.hardware.workload import held_bytes, take_step
from rightbatch.task import Task
from tests.hardware.tasks import Hungry

MIB = 2**20
pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("float32")]


def hungry(device: torch.device, **options: object) -> Task:
    """Holds 8 MiB for each example, and needs more."""
    model = Hungry(8 * MIB).to(device)
    return Task(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        torch.arange(1024.0),
        lambda model, batch: model(batch).mean(),
        **options,  # type: ignore[arg-type]
    )


def network(device: torch.device, make: Callable[..., torch.optim.Optimizer]) -> Task:
    """Wide for its parameters: 4 MiB a layer; an example's activations are small beside them."""
    model = nn.Sequential(*(nn.Linear(1024, 1024) for _ in range(6))).to(device)

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        return model(batch).square().mean()

    return Task(model, make(model.parameters(), lr=1e-3), torch.randn(2**14, 1024), loss)


@pytest.mark.slow
@pytest.mark.parametrize("named", [True, False])
def test_a_try_on_a_device_is_refused_above_its_budget(device: torch.device, named: bool) -> None:
    """A process of its own: six tensors of 4 MiB an example at the peak, 384 MiB or 1,536."""
    task = hungry(device, **({"device": device.type} if named else {}))
    with Isolated(task) as isolated:
        fits = isolated.try_size(16, budget_bytes=640 * MIB)
        refused = isolated.try_size(64, budget_bytes=640 * MIB)
    assert fits.outcome == "ok"
    assert 128 * MIB <= (fits.peak_bytes or 0) <= 640 * MIB
    assert refused.outcome in ("oom", "thrash")


@pytest.mark.parametrize("size", [16, 4096])
@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.AdamW])
def test_a_prediction_is_what_a_device_takes(
    make: Callable[..., torch.optim.Optimizer], size: int, device: torch.device
) -> None:
    """Also where the optimizer's step is the peak: on a device it works on all tensors at once."""
    task = network(device, make)
    data = task.source.dataset
    with fakes_of(task, lambda count: data[:count].clone()) as fakes:
        predicted = fakes.peak_bytes(size)
    batch = data[:size]
    with task.preserved():
        take_step(task, lambda: batch.to(device))  # libraries take their workspaces
        task.optimizer.zero_grad()
        task.optimizer.state.clear()
        held = held_bytes(task)
        meter = meter_for(device)
        meter.reset()
        for _ in range(2):
            take_step(task, lambda: batch.to(device))
        synchronize(device)
        taken = meter.peak_bytes() + held
    assert predicted == pytest.approx(taken, rel=0.15, abs=4 * MIB)


def test_random_numbers_of_a_device_are_drawn_again(device: torch.device) -> None:
    task = hungry(device)

    def draw() -> list[float]:
        return torch.rand(8, device=device).tolist()

    with task.preserved():
        first = draw()
    assert draw() == first
    assert draw() != first


def test_a_throughput_on_a_device_has_all_its_parts(device: torch.device) -> None:
    task = network(device, torch.optim.AdamW)
    profile = measure_throughput(task, [64, 4096], time_budget_seconds=10.0)
    assert all(0 < point.step_seconds < math.inf for point in profile.points)
    assert profile.shares is None or min(profile.shares.forward, profile.shares.backward) > 0


def test_energy_of_a_device_is_counted_where_it_has_counters(device: torch.device) -> None:
    why = energy_counters(device)
    if why is not None:
        pytest.skip(why)
    task = network(device, torch.optim.SGD)
    profile = measure_energy(task, [4096])
    assert profile is not None
    seconds = measure_throughput(task, [4096], time_budget_seconds=5.0).points[0].step_seconds
    assert 10 < profile.points[0].joules_per_step / seconds < 3000  # watts


@pytest.mark.skipif(not torch.cuda.is_available(), reason="NCCL needs CUDA")
def test_host_numbers_are_added_up_over_nccl(tmp_path: object) -> None:
    torch.distributed.init_process_group(
        "nccl", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        total = Group().sum(torch.tensor([1.0, 2.0]))
        assert total.device.type == "cpu"
        assert total.tolist() == [1.0, 2.0]
    finally:
        torch.distributed.destroy_process_group()
