"""What is said about each layer. Oracle: models small enough to count by hand."""

import pytest
import torch
from torch import Tensor, nn

from rightbatch.errors import TaskError
from rightbatch.noise.per_example import explain
from tests.noise.per_example.definition import loss_of


def model() -> nn.Module:
    """Weights of 3 * 2 + 3, and a cell of 12."""
    return nn.Sequential(nn.Linear(2, 3), nn.GRU(3, 1, bias=False))


def loss(trained: nn.Module, batch: Tensor) -> Tensor:
    layer, cell = trained
    return loss_of(cell(layer(batch).transpose(0, 1))[0], len(batch))


def test_a_pass_tells_what_really_happens() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = model()

        def forward(self, batch: Tensor) -> Tensor:
            return self.parts[1](self.parts[0](batch).transpose(0, 1))[0]

    net, batch = Net(), torch.randn(4, 9, 2)
    before = [p.detach().clone() for p in net.parameters()]
    state = torch.get_rng_state()
    told = explain(net, loss=lambda m, x: loss_of(m(x), len(x)), batch=batch)
    paths = {p.name: p.path for p in told.parameters}
    assert paths == {
        "parts.0.weight": "explicit",
        "parts.0.bias": "direct",
        "parts.1.weight_ih_l0": "definition",
        "parts.1.weight_hh_l0": "definition",
    }
    assert told.covered_share == pytest.approx(9 / 21)
    assert "definition: gru has no rule" in str(told)
    assert all(p.grad is None for p in net.parameters())
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), before, strict=True))
    assert torch.equal(torch.get_rng_state(), state)


def test_types_tell_what_to_expect() -> None:
    own = nn.ParameterList([nn.Parameter(torch.zeros(5))])
    told = explain(nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2).eval(), model(), own))
    paths = [(p.path, p.elements) for p in told.parameters]
    assert paths[:4] == [("definition", 2)] * 2 + [("direct", 2)] * 2
    assert paths[-1] == ("told by a pass only", 5)
    assert told.covered_share == pytest.approx((4 + 9) / (8 + 21 + 5))


def test_frozen_and_tied_parameters_are_not_counted_twice() -> None:
    layer = nn.Linear(2, 3)
    twin = nn.Linear(2, 3)
    twin.weight = layer.weight
    twin.bias.requires_grad_(False)
    told = explain(nn.Sequential(layer, twin))
    assert [p.name for p in told.parameters] == ["0.weight", "0.bias"]


def test_loss_and_batch_come_together() -> None:
    with pytest.raises(TaskError, match="got loss=None"):
        explain(model(), batch=torch.zeros(2, 2))
    with pytest.raises(TaskError, match="got list without any"):
        explain(model(), loss=loss, batch=[])
