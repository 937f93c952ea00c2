"""Coupled losses. Oracle: the identity that gradients of parts average to that of the whole."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rightbatch.errors import CoupledLoss
from rightbatch.noise import measure_noise
from rightbatch.noise.couplings import check_coupling
from rightbatch.task import Task, supervised
from rightbatch.task.task import Loss
from rightbatch.tasks import load_task
from rightbatch.testing import QuadraticTask
from tests import zoo
from tests.laws import assert_same_world, snapshot
from tests.zoo import WORKING, Specimen


class Routed(nn.Module):
    """A router's choice of two experts, and how evenly it chose."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.first, self.second = nn.Linear(3, 2), nn.Linear(3, 4), nn.Linear(3, 4)
        self.dropout = nn.Dropout(0.2)

    def forward(self, inputs: Tensor) -> Tensor:
        shares = self.gate(inputs).softmax(1)
        chosen = F.one_hot(shares.argmax(1), 2).to(inputs)
        self.balance = 2 * (chosen.mean(0) * shares.mean(0)).sum()
        experts = torch.stack([self.first(inputs), self.second(inputs)], 1)
        return self.dropout((experts * (shares * chosen)[:, :, None]).sum(1))


def net(dropout: float = 0.0) -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 4))


def task(loss: Loss, model: nn.Module | None = None, **options: Any) -> Task:
    torch.manual_seed(0)
    model = net() if model is None else model
    settings = {"batch_size": 32, **options}
    return Task(model, zoo.sgd(model), zoo.rows(200), loss, **settings)


def classes(batch: Any) -> Tensor:
    return (batch[1][:, 0] > 0).long()


def plain(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), classes(batch))


# Coupled.


def contrastive(model: nn.Module, batch: Any) -> Tensor:
    left = F.normalize(model(batch[0]), dim=1)
    right = F.normalize(model(batch[0] + 0.1), dim=1)
    return F.cross_entropy(left @ right.T / 0.1, torch.arange(len(left)))


def centred(model: nn.Module, batch: Any) -> Tensor:
    outputs = model(batch[0])
    return F.cross_entropy(outputs - outputs.mean(0), classes(batch))


def decorrelated(model: nn.Module, batch: Any) -> Tensor:
    outputs = model(batch[0])
    return plain(model, batch) + 0.1 * (outputs.T @ outputs / len(outputs)).square().sum()


def ranked(model: nn.Module, batch: Any) -> Tensor:
    scores, targets = model(batch[0])[:, 0], batch[1][:, 0]
    order = torch.sign(targets[:, None] - targets)
    return F.softplus(-order * (scores[:, None] - scores)).mean()


def balanced(model: Any, batch: Any) -> Tensor:
    return plain(model, batch) + 0.1 * model.balance


def spread(model: nn.Module, batch: Any) -> Tensor:
    """Undefined in batches of up to eight: a square root below zero."""
    excess = (len(batch[0]) - 8.5) * model(batch[0]).square().mean()
    return plain(model, batch) + 1e-6 * excess.sqrt()


COUPLED = [contrastive, centred, decorrelated, ranked, balanced, spread]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("loss", COUPLED, ids=lambda loss: loss.__name__)
def test_coupled_losses_are_refused(loss: Loss, dropout: float, seed: int) -> None:
    model = Routed() if "balanced" in loss.__name__ else net(dropout)
    with pytest.raises(CoupledLoss, match=r"got one of 16 that differs .* couples examples"):
        check_coupling(task(loss, model), seed=seed)


def test_a_coupling_is_refused_in_low_precision(float32: None) -> None:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            outputs = model(batch[0])
        return centred(nn.Identity(), (outputs.float(), batch[1]))

    with pytest.raises(CoupledLoss, match="couples examples"):
        check_coupling(task(loss))


def test_a_strong_coupling_is_seen_through_random_draws() -> None:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        return contrastive(model, (batch[0] + 0.02 * torch.randn_like(batch[0]), batch[1]))

    with pytest.raises(CoupledLoss, match="couples examples"):
        check_coupling(task(loss))


# Independent.


@pytest.mark.parametrize("specimen", WORKING, ids=str)
def test_the_zoo_is_never_refused(specimen: Specimen) -> None:
    for seed in range(2):
        torch.manual_seed(seed)
        made = specimen.make()
        before = snapshot(made)
        found = check_coupling(made, seed=seed)
        assert_same_world(before, snapshot(made))
        if specimen.name in {"batch_norm", "two_examples", "stream"}:
            assert (found.tested, found.deviation) == (False, None)
        elif specimen.mean_loss:
            assert found.tested
            assert found.deviation == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_random_draws_raise_no_alarm(seed: int) -> None:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        return plain(model, (batch[0] + torch.randn_like(batch[0]), batch[1]))

    found = check_coupling(task(loss, net(0.5)), seed=seed)
    assert found.tested
    assert "draws" in found.note


DRAWS: list[Callable[[nn.Module, Any], Tensor]] = [
    lambda model, batch: plain(model, batch) * (1 + torch.rand(())),
    lambda model, batch: plain(model, (batch[0] + (torch.rand(()) < 0.15), batch[1])),
    lambda model, batch: plain(model, (batch[0] + 0.02 * torch.randn(()), batch[1])),
    lambda model, batch: plain(model, (batch[0] * torch.rand(1, 3), batch[1])) * len(batch[0]),
    lambda model, batch: weighted(model, (batch[0] + 0.1 * torch.randn(()), batch[1])),
]
DRAW_NAMES = ["factor", "rare shift", "shift", "sum", "units not named"]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("loss", DRAWS, ids=DRAW_NAMES)
def test_a_draw_for_the_whole_batch_raises_no_alarm(loss: Loss, seed: int) -> None:
    assert check_coupling(task(loss), seed=seed).tested


def test_low_precision_raises_no_alarm(float32: None) -> None:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return plain(model, batch)

    found = check_coupling(task(loss))
    assert found.deviation is not None
    assert 0 < found.deviation < 0.005


def test_a_loss_that_runs_in_train_mode_only_raises_no_alarm() -> None:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        if not model.training:
            raise RuntimeError("no loss in eval mode")
        return plain(model, batch)

    made = task(loss, net(0.3))
    before = snapshot(made)
    assert "draws" in check_coupling(made).note
    assert_same_world(before, snapshot(made))


def test_what_a_module_remembers_raises_no_alarm() -> None:
    class Drifting(nn.Linear):
        passes: Tensor

        def __init__(self) -> None:
            super().__init__(3, 4)
            self.register_buffer("passes", torch.zeros(()))

        def forward(self, input: Tensor) -> Tensor:
            self.passes += 1
            return super().forward(input + self.passes)

    found = check_coupling(task(plain, Drifting()))
    assert found.deviation == pytest.approx(0.0, abs=1e-6)
    assert "draws" not in found.note


def test_augmentation_is_drawn_once_for_all_sizes() -> None:
    class Noisy(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return 96

        def __getitem__(self, index: int) -> Any:
            inputs, targets = zoo.rows(96)[index]
            return inputs + torch.randn(3), targets

    model = net()
    found = check_coupling(Task(model, zoo.sgd(model), Noisy(), plain, batch_size=16))
    assert found.tested
    assert found.deviation == pytest.approx(0.0, abs=1e-6)


def by_class(batch: Any) -> float:
    return float(torch.tensor([1.0, 9.0])[classes(batch)].sum())


def weighted(model: nn.Module, batch: Any) -> Tensor:
    weight = torch.tensor([1.0, 9.0, 1.0, 1.0])
    return F.cross_entropy(model(batch[0]), classes(batch), weight=weight)


@pytest.mark.parametrize(
    ("loss", "weight", "named"),
    [
        (weighted, by_class, True),
        (weighted, None, False),
        (lambda model, batch: plain(model, batch) * len(batch[0]), None, False),
    ],
    ids=["units named", "units not named", "sum"],
)
def test_other_units_are_told_and_no_coupling(
    loss: Loss, weight: Callable[[Any], float] | None, named: bool
) -> None:
    found = check_coupling(task(loss, weight=weight))
    assert found.tested
    assert found.deviation is not None
    assert (found.deviation < 1e-6) == named
    assert ("`weight` does not count" in found.note) != named


# What is looked at.


@pytest.mark.parametrize(
    ("examples", "batch_size", "sizes"),
    [(200, 32, (4, 8, 16)), (200, 5, (1, 2, 4)), (200, 1, (1, 2)), (11, 8, (1, 2)), (5, 4, ())],
)
def test_sizes_stay_within_data_and_batch(
    examples: int, batch_size: int, sizes: tuple[int, ...]
) -> None:
    seen: list[int] = []

    def loss(model: nn.Module, batch: Any) -> Tensor:
        seen.append(len(batch[0]))
        return F.mse_loss(model(batch[0]), batch[1])

    model = zoo.small_net()
    made = Task(model, zoo.sgd(model), zoo.rows(examples), loss, batch_size=batch_size)
    found = check_coupling(made)
    assert found.sizes == sizes
    assert found.tested == bool(sizes)
    assert sorted(set(seen)) == list(sizes)
    assert found.examples <= min(256, examples)


def test_no_batch_exceeds_the_cap() -> None:
    found = check_coupling(task(plain, batch_size=1, max_batch_size=1))
    assert (found.tested, found.sizes) == (False, ())


def test_gradients_that_are_not_finite_are_left_to_what_measures() -> None:
    found = check_coupling(task(lambda model, batch: plain(model, batch) * torch.nan))
    assert found.deviation == 0.0


def test_a_stream_is_looked_at() -> None:
    model = zoo.small_net()
    loss = supervised(F.mse_loss)
    made = Task(model, zoo.sgd(model), zoo.Stream(), loss, batch_size=2)
    assert check_coupling(made).sizes == (1, 2)


def test_a_refusal_leaves_the_world_as_it_was() -> None:
    made = task(contrastive, net(0.2))
    made.step(next(made.batches(4)))
    before = snapshot(made)
    with pytest.raises(CoupledLoss, match="couples examples"):
        check_coupling(made)
    assert_same_world(before, snapshot(made))


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize("name", ["digits", "mnist", "bikes", "shakespeare"])
def test_the_built_in_tasks_pass(name: str, float32: None) -> None:
    loaded = load_task(name)
    for seed in range(2):
        found = check_coupling(loaded, seed=seed)
        assert found.tested
        assert found.deviation is not None
        assert found.deviation < 1e-3


def test_supervised_losses_pass() -> None:
    found = check_coupling(task(supervised(lambda outputs, y: F.mse_loss(outputs[:, :1], y))))
    assert found.note == "The gradient of a batch is the mean of its parts' gradients."


def test_units_that_are_not_counted_become_a_warning_of_the_task() -> None:
    task = QuadraticTask(examples=64).task
    own = task._loss
    task._loss = lambda model, batch: own(model, batch) * len(batch)  # a sum, not a mean
    measure_noise(task)
    assert any("the loss sums" in warning for warning in task.facts().warnings)
    before = task.facts().warnings
    measure_noise(task)
    assert task.facts().warnings == before
