"""What `preserved` puts back. Oracle: the law that nothing changes, bit for bit.

Each change below has two tests: the snapshot of the laws sees it (the meter moves), and
`preserved` undoes it.
"""

import random
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rightbatch.task import Task
from rightbatch.task.world import _interrupts_held_back, preserved
from tests.laws import assert_same_world, snapshot
from tests.zoo import regression, sparse_gradients


class Hoarder(nn.Module):
    """Keeps a thing of every kind in its attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.out = nn.Linear(3, 3), nn.Linear(3, 1)
        self.register_buffer("buffer", torch.arange(3.0))
        self.register_buffer("absent", None)
        self.calls = 0
        self.plain = torch.arange(3.0)
        self.array = np.arange(3.0)
        self.generator = torch.Generator().manual_seed(5)
        self.numbers = [1, 2]
        self.tags = {"a"}
        self.nested = {"tensors": (torch.arange(2.0), [torch.arange(2.0)])}

    def forward(self, inputs: Tensor) -> Tensor:
        return self.out(torch.tanh(self.layer(inputs)))


@pytest.fixture
def hoard(device: torch.device) -> Task:
    """A task with every kind of state there already: gradients, moments, a tensor setting."""
    model = Hoarder().to(device)
    optimizer = torch.optim.Adam(
        [{"params": list(model.layer.parameters())}, {"params": list(model.out.parameters())}],
        lr=0.01,
    )
    task = regression(model, optimizer)
    for batch in islice(task.batches(4), 2):
        task.step(batch)
    model.out.bias.grad = None
    del optimizer.state[model.out.bias]
    optimizer.param_groups[1]["betas"] = (torch.tensor(0.9), torch.tensor(0.99))
    optimizer.param_groups[1]["weight_decay"] = torch.tensor(0.1)
    return task


def _first_state(task: Task) -> dict[str, Any]:
    return task.optimizer.state[task.model.layer.weight]


def _assign_data(task: Task) -> None:
    task.model.layer.weight.data = torch.zeros(3, 3)


def _replace_parameter(task: Task) -> None:
    task.model.layer.weight = nn.Parameter(torch.zeros(3, 3))


def _give_gradient(task: Task) -> None:
    task.model.out.bias.grad = torch.ones_like(task.model.out.bias)


def _draw_from_numpy(task: Task) -> None:
    np.random.rand()


def _set_settings(task: Task, **settings: Any) -> None:
    task.optimizer.param_groups[1].update(settings)


def _add_group(task: Task) -> None:
    task.optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))]})


def _in_place(pick: Callable[[Task], Tensor]) -> Callable[[Task], Any]:
    def change(task: Task) -> None:
        with torch.no_grad():
            pick(task).add_(1)

    return change


CHANGES: dict[str, Callable[[Task], Any]] = {
    "a parameter": _in_place(lambda task: task.model.layer.weight),
    "a parameter's memory": _assign_data,
    "a parameter's type": lambda task: task.model.to(torch.float16),
    "which parameter": _replace_parameter,
    "a gradient": _in_place(lambda task: task.model.layer.weight.grad),
    "gradients gone": lambda task: task.optimizer.zero_grad(set_to_none=True),
    "gradients zero": lambda task: task.optimizer.zero_grad(set_to_none=False),
    "a gradient where none was": lambda task: _give_gradient(task),
    "requires_grad": lambda task: task.model.layer.requires_grad_(False),
    "a buffer": _in_place(lambda task: task.model.buffer),
    "which buffer": lambda task: setattr(task.model, "buffer", torch.arange(3.0)),
    "a buffer where none was": lambda task: setattr(task.model, "absent", torch.ones(1)),
    "one buffer more": lambda task: task.model.register_buffer("late", torch.ones(1)),
    "one buffer less": lambda task: delattr(task.model, "buffer"),
    "train and eval": lambda task: task.model.layer.eval(),
    "which layer": lambda task: setattr(task.model, "out", nn.Linear(3, 1)),
    "a counter": lambda task: setattr(task.model, "calls", 1),
    "one attribute more": lambda task: setattr(task.model, "cache", torch.ones(1)),
    "a plain tensor": _in_place(lambda task: task.model.plain),
    "an array": lambda task: task.model.array.fill(7),
    "a generator": lambda task: torch.rand(1, generator=task.model.generator),
    "a list": lambda task: task.model.numbers.append(3),
    "a set": lambda task: task.model.tags.add("b"),
    "a tensor in a tuple": _in_place(lambda task: task.model.nested["tensors"][0]),
    "a tensor in a list in a tuple": _in_place(lambda task: task.model.nested["tensors"][1][0]),
    "one forward hook more": lambda task: task.model.layer.register_forward_hook(print),
    "one pre-hook more": lambda task: task.model.layer.register_forward_pre_hook(print),
    "one backward hook more": lambda task: task.model.layer.register_full_backward_hook(print),
    "one step hook more": lambda task: task.optimizer.register_step_post_hook(print),
    "a moment": _in_place(lambda task: _first_state(task)["exp_avg"]),
    "a step count": _in_place(lambda task: _first_state(task)["step"]),
    "one state entry more": lambda task: _first_state(task).update(extra=1),
    "which moment": lambda task: _first_state(task).update(exp_avg=torch.zeros(3, 3)),
    "all state gone": lambda task: task.optimizer.state.clear(),
    "state where none was": lambda task: task.optimizer.state[task.model.out.bias].update(step=1),
    "a learning rate": lambda task: _set_settings(task, lr=1.0),
    "a tensor setting": _in_place(lambda task: task.optimizer.param_groups[1]["weight_decay"]),
    "tensor betas": _in_place(lambda task: task.optimizer.param_groups[1]["betas"][0]),
    "one setting more": lambda task: _set_settings(task, initial_lr=1.0),
    "one setting less": lambda task: task.optimizer.param_groups[1].pop("eps"),
    "one group more": _add_group,
    "one group less": lambda task: task.optimizer.param_groups.pop(),
    "the order of a group": lambda task: task.optimizer.param_groups[0]["params"].reverse(),
    "an optimizer's attribute": lambda task: setattr(task.optimizer, "extra", 1),
    "python's random state": lambda task: random.random(),
    "numpy's random state": _draw_from_numpy,
    "torch's random state": lambda task: torch.rand(1),
    "the device's random state": lambda task: torch.rand(1, device=task.device),
}
# What a pass without a step may not change either, though weights are not copied for it.
PASSES = [
    "a gradient",
    "gradients gone",
    "gradients zero",
    "a gradient where none was",
    "requires_grad",
    "a buffer",
    "one buffer more",
    "train and eval",
    "a counter",
    "a plain tensor",
    "a list",
    "one forward hook more",
    "python's random state",
    "numpy's random state",
    "the device's random state",
]


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_the_snapshot_sees(change: Callable[[Task], Any], hoard: Task) -> None:
    before = snapshot(hoard)
    change(hoard)
    with pytest.raises(AssertionError, match="changed behind the user's back"):
        assert_same_world(before, snapshot(hoard))


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_puts_back(change: Callable[[Task], Any], hoard: Task) -> None:
    before = snapshot(hoard)
    with hoard.preserved():
        change(hoard)
    assert_same_world(before, snapshot(hoard))


@pytest.mark.parametrize("name", PASSES)
def test_puts_back_all_but_weights_where_no_step_is_taken(name: str, hoard: Task) -> None:
    before = snapshot(hoard)
    with hoard.preserved(weights=False):
        CHANGES[name](hoard)
    assert_same_world(before, snapshot(hoard))


@pytest.mark.parametrize("name", ["a parameter", "a moment", "a learning rate"])
def test_no_copy_of_weights_is_made_where_no_step_is_taken(name: str, hoard: Task) -> None:
    """A copy would show: the change would be undone."""
    before = snapshot(hoard)
    with hoard.preserved(weights=False):
        CHANGES[name](hoard)
    with pytest.raises(AssertionError, match="changed behind the user's back"):
        assert_same_world(before, snapshot(hoard))


def test_puts_everything_back_together(hoard: Task) -> None:
    before = snapshot(hoard)
    with hoard.preserved():
        for change in CHANGES.values():
            # An earlier change may have taken away what this one needs.
            with suppress(AttributeError, KeyError, IndexError, TypeError, RuntimeError):
                change(hoard)
    assert_same_world(before, snapshot(hoard))


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_puts_back_whatever_is_raised_and_lets_it_through(
    error: type[BaseException], hoard: Task
) -> None:
    before = snapshot(hoard)
    with pytest.raises(error, match="half-way"), hoard.preserved():  # noqa: PT012
        hoard.step(next(hoard.batches(4)))
        raise error("half-way")
    assert_same_world(before, snapshot(hoard))


def test_puts_back_when_a_generator_is_abandoned_inside(hoard: Task) -> None:
    before = snapshot(hoard)

    def steps() -> Iterator[Tensor]:
        with hoard.preserved():
            for batch in hoard.batches(4):
                yield hoard.step(batch)

    running = steps()
    next(running)
    running.close()
    assert_same_world(before, snapshot(hoard))


def test_inner_use_goes_back_to_the_inner_beginning(hoard: Task) -> None:
    outermost = snapshot(hoard)
    with hoard.preserved():
        hoard.step(next(hoard.batches(4)))
        middle = snapshot(hoard)
        with hoard.preserved():
            hoard.step(next(hoard.batches(4)))
        assert_same_world(middle, snapshot(hoard))
    assert_same_world(outermost, snapshot(hoard))


def test_twice_the_same_steps_give_the_same_losses() -> None:
    """The random states are not only put back: they drive the same draws."""
    model = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 1))
    task = regression(model)

    def losses() -> list[float]:
        with task.preserved():
            return [task.step(batch).item() for batch in islice(task.batches(4), 5)]

    assert losses() == losses()


@pytest.mark.parametrize("change", [Tensor.zero_, lambda grad: grad.add_(grad)])
def test_a_sparse_gradient_is_put_back(change: Callable[[Tensor], Tensor]) -> None:
    task = sparse_gradients()
    task.step(next(task.batches(4)))
    grad = task.model[0].weight.grad
    assert grad is not None
    assert grad.is_sparse
    before = grad.to_dense()
    with task.preserved():
        change(grad)
        assert not torch.equal(grad.to_dense(), before)
    assert task.model[0].weight.grad is grad
    assert torch.equal(grad.to_dense(), before)


def test_scripted_modules_are_put_back() -> None:
    with pytest.warns(DeprecationWarning, match="torch.jit"):
        model = torch.jit.script(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with preserved(model, optimizer):
        model(torch.randn(5, 3)).square().mean().backward()
        optimizer.step()
        model.eval()
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before | after)
    assert all(module.training for module in model.modules())


class Loud(dict[str, int]):
    """Makes trouble while it is put back."""

    def __init__(self, trouble: Callable[[], None]) -> None:
        super().__init__(a=1)
        self.trouble = trouble

    def clear(self) -> None:
        self.trouble()
        super().clear()


def _raise_os_error() -> None:
    raise OSError("cannot be put back")


def _press_ctrl_c() -> None:
    signal.raise_signal(signal.SIGINT)


def test_ctrl_c_while_putting_back_waits_until_all_is_back(hoard: Task) -> None:
    hoard.model.loud = Loud(_press_ctrl_c)
    before = snapshot(hoard)
    with pytest.raises(KeyboardInterrupt, match=r"^$"), hoard.preserved():  # noqa: PT012
        hoard.model.loud["b"] = 2
        hoard.step(next(hoard.batches(4)))
    assert_same_world(before, snapshot(hoard))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_what_cannot_be_put_back_does_not_keep_the_rest_from_it(hoard: Task) -> None:
    hoard.model.loud = Loud(_raise_os_error)
    before = snapshot(hoard)
    with pytest.raises(OSError, match="cannot be put back"), hoard.preserved():  # noqa: PT012
        hoard.model.loud["b"] = 2
        hoard.step(next(hoard.batches(4)))
        random.random()
    del hoard.model.loud["b"]
    assert_same_world(before, snapshot(hoard))


def test_interrupts_are_left_to_the_main_thread() -> None:
    entered = []

    def hold_back() -> None:
        with _interrupts_held_back():
            entered.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=hold_back)
    thread.start()
    thread.join()
    assert entered == [signal.default_int_handler]


@pytest.mark.parametrize("kind", ["cuda", "xpu"])
def test_the_random_states_of_all_accelerators_are_put_back(
    kind: str, hoard: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = [torch.tensor([1]), torch.tensor([2])]  # of two devices, which this machine lacks
    module = getattr(torch, kind)
    monkeypatch.setattr(module, "is_initialized", lambda: True)
    monkeypatch.setattr(module, "get_rng_state_all", lambda: list(states))
    monkeypatch.setattr(module, "set_rng_state_all", lambda given: states.extend(given))
    with hoard.preserved():
        states.clear()
    assert [state.item() for state in states] == [1, 2]


def test_attributes_that_hold_themselves_do_not_run_in_circles(hoard: Task) -> None:
    hoard.model.circle = {"numbers": [1]}
    hoard.model.circle["itself"] = hoard.model.circle
    with hoard.preserved():
        hoard.model.circle["itself"]["numbers"].append(2)
    assert hoard.model.circle["numbers"] == [1]
