"""No tensor without numbers outlives a prediction. Oracle: what was there before, by identity."""

from collections import deque
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from rightbatch.hardware.fake import fakes_of
from rightbatch.hardware.leftovers import no_fakes_left
from rightbatch.hardware.workload import host_batches
from rightbatch.task import Task, supervised

LAST = torch.zeros(())
SEEN: list[Tensor] = []


class Centred(nn.Module):
    """Keeps a running mean and the last loss, as a criterion of self-distillation does."""

    def __init__(self) -> None:
        super().__init__()
        self.centre = torch.zeros(3)
        self.register_buffer("scale", torch.ones(()))
        self.record = SimpleNamespace(last=None)
        self.temperature = nn.Parameter(torch.ones(()))  # trained by nobody
        self.history: list[dict[str, Tensor]] = []

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        self.centre = 0.9 * self.centre + 0.1 * output.detach().mean(0)
        self.scale = self.scale + output.detach().std()
        loss = (self.temperature * (output - self.centre) - target).square().mean() * self.scale
        self.history.append({"loss": loss.detach()})
        self.record.last = loss.detach()
        return loss


def in_criterion():
    criterion = Centred()
    return supervised(criterion), criterion


def in_closure():
    seen, ring, table, last = [], deque([1], maxlen=4), {}, None

    def loss(model, batch):
        nonlocal last
        value = model(batch[0]).square().mean()
        last = value.detach()
        seen.append((len(seen), last))
        ring.append(last)
        table["last"] = last
        return value

    return loss, (seen, ring, table, lambda: last)


def global_loss(model, batch):
    global LAST
    value = model(batch[0]).square().mean()
    LAST = value.detach()
    SEEN.append(LAST)
    return value


class Loss:
    last: Tensor | None = None

    def __call__(self, model, batch):
        return self.of(model, batch, scale=1.0)

    def of(self, model, batch, *, scale):
        value = scale * model(batch[0]).square().mean()
        self.last = value.detach()
        return value


def in_partial():
    loss = Loss()
    return partial(loss.of, scale=2.0), loss


class Recording:
    """Its method names globals; its function keeps attributes."""

    def __call__(self, model, batch):
        return global_loss(model, batch)


def in_function():
    def loss(model, batch):
        value = model(batch[0]).square().mean()
        vars(loss)["last"] = value.detach()
        return value

    return loss, vars(loss)


def fakes_in(*things):
    """Find what is fake, however deep; by pickling rules, not by those of the code."""
    found, waiting, seen = [], list(things), set()
    while waiting:
        part = waiting.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        if isinstance(part, FakeTensor):
            found.append(part)
        elif isinstance(part, Tensor):
            waiting.append(part.grad)
        elif isinstance(part, dict):
            waiting += part.values()
        elif isinstance(part, list | tuple | deque):
            waiting += part
        elif callable(part) and hasattr(part, "__closure__"):
            waiting += [cell.cell_contents for cell in part.__closure__ or ()]
        elif hasattr(part, "__dict__"):
            waiting.append(vars(part))
    return found


def task_of(loss) -> Task:
    model = nn.Linear(4, 3)
    data = [(torch.randn(4), torch.randn(3)) for _ in range(16)]
    return Task(model, torch.optim.SGD(model.parameters(), lr=0.1), data, loss)


def predict(task: Task) -> None:
    with fakes_of(task, lambda size: next(host_batches(task, size, seed=0))) as fakes:
        assert fakes.peak_bytes(8) < fakes.peak_bytes(999)


@pytest.mark.parametrize(
    "make",
    [
        in_criterion,
        in_closure,
        in_partial,
        in_function,
        lambda: (global_loss, (LAST, SEEN)),
        lambda: (Recording(), (LAST, SEEN)),
    ],
)
def test_what_a_loss_keeps_holds_no_fake_after_measuring(make) -> None:
    loss, holder = make()
    task = task_of(loss)
    predict(task)
    assert not fakes_in(loss, holder, LAST, SEEN)
    value = task.step(next(task.batches(4)))
    assert type(value) is Tensor
    assert value.isfinite()


def test_what_a_hook_of_the_model_records_holds_no_fake() -> None:
    seen, last = [], {}

    def record(module, inputs, output):
        seen.append(output.detach())
        last[module] = output.detach()

    task = task_of(lambda model, batch: model(batch[0]).square().mean())
    task.model.register_forward_hook(record)
    task.step(next(task.batches(4)))
    predict(task)
    assert len(seen) == 1  # of the real step
    assert not fakes_in(seen, last)


def test_what_holds_no_fake_keeps_what_changed_meanwhile() -> None:
    counts: dict[str, int] = {"calls": 0}
    values: list[object] = [1]

    def loss():
        counts["calls"] += 1
        values.append(torch.zeros(2))

    with no_fakes_left([loss]):
        with FakeTensorMode():
            loss()
        assert type(values[1]) is FakeTensor
    assert (counts, values) == ({"calls": 1}, [1])


def test_it_cleans_up_after_an_error_too() -> None:
    values = []

    def loss():
        values.append(torch.zeros(2))
        raise ZeroDivisionError("user's own")

    with pytest.raises(ZeroDivisionError, match="own"), no_fakes_left([loss]), FakeTensorMode():
        loss()
    assert values == []


def test_an_object_that_raises_at_every_question_is_left_alone() -> None:
    class Proxy:
        def __getattribute__(self, name):
            raise RuntimeError("nothing is bound here")

    values, proxy = [], Proxy()
    with no_fakes_left([[proxy, values]]), FakeTensorMode():
        values.append(torch.zeros(2))
    assert values == []
