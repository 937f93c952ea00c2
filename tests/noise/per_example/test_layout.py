"""Where examples are after an operation. Oracle: tensors that hold their example's number."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from rightbatch.noise.per_example.layout import CONSTANT, FIRST, LOST, Layouts
from rightbatch.noise.per_example.weights import tensors_in

B = 3


class Following(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.layouts = Layouts(B)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        name = getattr(func.__self__, "__name__", name) if name == "__get__" else name
        for tensor in tensors_in(output):
            self.layouts.follow(name, args, kwargs or {}, tensors_in((args, kwargs)), tensor)
        return output


def followed(op: Callable[[Tensor], Tensor]) -> tuple[Tensor, Layouts]:
    """As many positions as examples, and as many features: shapes cannot tell."""
    inputs = torch.arange(B)[:, None, None].expand(B, B, B).clone().double()
    with Following() as mode:
        output = op(inputs)
    return output, mode.layouts


@pytest.mark.parametrize(
    "op",
    [
        lambda x: x + 0,
        lambda x: x.transpose(0, 1),
        lambda x: x.transpose(0, 1) * 1,
        lambda x: x.transpose(0, 2).transpose(0, 1),
        lambda x: x.permute(2, 0, 1),
        lambda x: torch.permute(x, (1, 2, 0)),
        lambda x: x.mT,
        lambda x: x.transpose(0, 1).mT,
        lambda x: x[:, 0].T,
        lambda x: x.flatten(0, 1),
        lambda x: x.reshape(-1, B) * 1,
        lambda x: x.reshape(-1),
        lambda x: x.flatten(0, 1).view(B, B, B),
        lambda x: x.flatten(1),
        lambda x: x.transpose(0, 1).flatten(0, 1),
        lambda x: x.transpose(0, 1).reshape(-1, B).view(B, B, B),
        lambda x: x.transpose(0, 1)[1],
        lambda x: x[:, 1],
        lambda x: x[..., 0],
        lambda x: x[:, None, 1:, 0],
        lambda x: x.unflatten(-1, (3, 1)).permute(2, 0, 1, 3).unbind(0)[1],
        lambda x: x.select(1, 0),
        lambda x: torch.stack([x, x]),
        lambda x: torch.stack([x, x], dim=1),
        lambda x: torch.cat([x, x], dim=1).transpose(0, 1),
        lambda x: x.amax(1),
        lambda x: torch.einsum("bij->jib", x),
        lambda x: torch.maximum(x.transpose(0, 1), x.amax(1)),
        lambda x: x.max(-1, keepdim=True)[0],
        lambda x: torch.arange(B)[:, None] * 0 + x,
    ],
)
def test_rows_are_those_of_their_example(op: Callable[[Tensor], Tensor]) -> None:
    output, layouts = followed(op)
    rows = layouts.of(output).rows(output, B, 2)
    assert rows is not None
    assert rows.shape[0] == 2
    assert rows.numel() * B == output.numel() * 2
    for example, row in enumerate(rows):
        assert (row == example).all()


@pytest.mark.parametrize(
    "op",
    [
        lambda x: x[0],
        lambda x: x[0] + 1,
        lambda x: x[torch.tensor([2, 0, 1])],
        lambda x: x[[0, 1, 2], :, [0, 1, 2]],
        lambda x: x[1:],
        lambda x: x.sum(0),
        lambda x: x.flip(0),
        lambda x: torch.stack([x[0], x[1], x[2]]),
        lambda x: x.transpose(0, 1) + x,
        lambda x: x.transpose(0, 1).sum(0),
        lambda x: x.transpose(0, 2).reshape(B, -1),
        lambda x: x.movedim(0, 1),
        lambda x: x.select(0, 1),
        lambda x: x.roll(1),
        lambda x: x.norm(2, 0),
        lambda x: x.topk(B, 0)[0],
        lambda x: torch.einsum("bij->ij", x),
        lambda x: x.transpose(0, 1) + x[:, 0, 0],
    ],
)
def test_what_looks_like_a_batch_is_lost(op: Callable[[Tensor], Tensor]) -> None:
    output, layouts = followed(op)
    found = layouts.of(output)
    if found == LOST:
        assert found.rows(output, B, 2) is None
    else:  # told, and rightly so
        rows = found.rows(output, B, 2)
        assert rows is not None
        assert all((row == i).all() for i, row in enumerate(rows))


def test_what_no_example_went_into_is_constant() -> None:
    output, layouts = followed(lambda x: torch.arange(x.shape[1])[None] + 1)
    assert layouts.of(output) == CONSTANT
    assert CONSTANT.rows(output, 1, 1) is None


def test_a_tensor_at_the_same_address_is_another_one() -> None:
    layouts = Layouts(B)
    tensor = torch.zeros(B, B)
    layouts.set(tensor, LOST)
    layouts._known[id(other := torch.zeros(B, B))] = layouts._known[id(tensor)]
    assert layouts.of(tensor) == LOST
    assert layouts.of(other) == FIRST
