"""What of an optimizer is sent to where sizes are tried. Oracle: what it does there."""

import io
import sys

import pytest
import torch
from torch import nn

from rightbatch.hardware.isolation import CannotIsolate, Isolated, Pickling
from rightbatch.task import Task

MIB = 2**20
linux = pytest.mark.skipif(sys.platform != "linux", reason="limits are enforced on Linux")
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("float32")]


class Counting(torch.optim.SGD):
    """Remembers more than PyTorch's optimizers pickle."""

    def __init__(self, params):
        super().__init__(params, lr=0.1)
        self.steps_done = 0

    def step(self, closure=None):
        self.steps_done += 1
        return super().step(closure)


def sgd_that_counts() -> Task:
    model = nn.Linear(1, 1)
    data = torch.zeros(64, 1)
    return Task(model, Counting(model.parameters()), data, lambda m, x: m(x).mean())


@linux
def test_an_optimizers_own_attributes_and_hooks_are_sent_and_a_schedulers_wrapper_is_not():
    """The hook keeps 40 MiB, once, as an average of the model would that it makes."""
    task = sgd_that_counts()
    torch.optim.lr_scheduler.StepLR(task.optimizer, 10)
    assert "step" in vars(task.optimizer)  # it refers to the optimizer weakly: not to be pickled

    def keep(optimizer, args, kwargs):
        assert optimizer.steps_done > 0
        task.model.average = torch.ones(10 * MIB)

    task.optimizer.register_step_post_hook(keep)
    with Isolated(task) as isolated:
        answer = isolated.try_size(4, budget_bytes=400 * MIB)
    assert answer.outcome == "ok"
    assert answer.peak_bytes > 40 * MIB


def test_a_hook_that_cannot_be_sent_is_not_left_out(tmp_path):
    task = sgd_that_counts()
    with open(tmp_path / "log", "w") as handle:
        task.optimizer.register_step_post_hook(lambda *_: handle.write("step"))
        with pytest.raises(CannotIsolate, match="picklable"):
            Isolated(task)


def test_a_pickled_form_of_an_optimizers_own_stays():
    class Terse(Counting):
        def __getstate__(self):
            return super().__getstate__() | {"steps_done": 7, "terse": True}

    model = nn.Linear(1, 1)
    model.optimizer = Terse(model.parameters())
    buffer = io.BytesIO()
    torch.save(model, buffer, pickle_module=Pickling)
    buffer.seek(0)
    sent = torch.load(buffer, weights_only=False).optimizer
    assert (sent.steps_done, sent.terse) == (7, True)
