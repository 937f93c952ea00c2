"""When to measure, on a device that works behind the host's back. Oracle: a queue by hand."""

import pytest
import torch

from rightbatch._comm import Alone
from rightbatch.noise.pacing import Pace


class Device:
    """Takes work at once, and does it one thing after another; a clock that the host reads."""

    def __init__(self) -> None:
        self.now = self.idle_from = 0.0
        self.waits = 0

    def launch(self, seconds: float) -> None:
        self.idle_from = max(self.now, self.idle_from) + seconds
        self.now += 0.001

    def wait(self) -> None:
        self.waits += 1
        self.now = max(self.now, self.idle_from)


def paced(device: Device, *, step_seconds: float, own_seconds: float, every: int | None) -> Pace:
    pace = Pace(every, 0.1, lambda: device.now, torch.device("cuda:1"))
    for step in range(80):
        measured = pace.due(step)
        device.launch(step_seconds)
        if measured:
            with pace.working():
                device.launch(own_seconds)
                device.wait()  # numbers are read
        pace.ended(step, Alone(), measured=measured)
    return pace


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Device:
    device = Device()

    def synchronize(of: torch.device) -> None:
        assert of == torch.device("cuda:1")
        device.wait()

    monkeypatch.setattr(torch.accelerator, "synchronize", synchronize)
    return device


@pytest.mark.parametrize(("own_seconds", "every"), [(0.45, 5), (1.95, 20)])
def test_a_measured_step_does_not_pay_for_those_before_it(
    own_seconds: float, every: int, gpu: Device
) -> None:
    """A tenth of the time: every fifth step where measuring takes somewhat less than half a one."""
    assert paced(gpu, step_seconds=1.0, own_seconds=own_seconds, every=None).every == every


def test_once_the_pace_is_known_no_step_waits(gpu: Device) -> None:
    paced(gpu, step_seconds=1.0, own_seconds=0.5, every=10)
    assert gpu.waits == 8  # only where numbers are read
