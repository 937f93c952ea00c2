"""Per-example rules, one operation at a time. Oracle: autograd on one example after another."""

# ruff: noqa: E741, N806 (sizes are written in capitals)

import functools
from collections.abc import Callable
from typing import final

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from rightbatch.noise.per_example import embedding, linear

Op = Callable[..., Tensor]


def definition(op: Op, inputs: Tensor, grads: Tensor, *weights: Tensor) -> list[Tensor]:
    """Gradients of ``sum(grad * op(input))`` per weight, [N, *weight], one example at a time."""
    weights = tuple(w.detach().requires_grad_() for w in weights)
    rows = []
    for x, grad in zip(inputs, grads, strict=True):
        output = op(x[None], *weights)
        rows.append(torch.autograd.grad((output * grad[None]).sum(), weights))
    return [torch.stack(column) for column in zip(*rows, strict=True)]


def squares(gradients: Tensor) -> Tensor:
    return gradients.flatten(1).square().sum(1)


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12 * (1 + float(wanted.norm())))


# Linear layers

LINEAR = [(3, 1, 4, 5), (1, 1, 1, 1), (2, 7, 1, 3), (2, 3, 6, 1), (5, 2, 9, 8), (4, 40, 3, 2)]


@pytest.mark.parametrize("scratch", [1 << 25, 70, 1])
@pytest.mark.parametrize("shape", LINEAR)
def test_linear_layer_is_the_definition_on_every_path(
    shape: tuple[int, ...], scratch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear, "SCRATCH", scratch)
    N, T, I, O = shape
    inputs, grads = torch.randn(N, T, I), torch.randn(N, T, O)
    weight, bias = definition(F.linear, inputs, grads, torch.randn(O, I), torch.randn(O))
    close(linear.linear_gradients(inputs, grads), weight)
    close(linear.linear_squares(inputs, grads), squares(weight))
    close(linear.bias_gradients(grads), bias)
    close(linear.bias_squares(grads), squares(bias))


@pytest.mark.parametrize(
    ("shape", "path"),
    [
        ((8, 0, 4, 4), "gram"),
        ((8, 1, 10**5, 10**5), "rank_one"),
        # T^2 (I + O + 1) against (T + 1) I O with I = O = 8: 17 T^2 < 64 (T + 1) up to T = 4.
        ((8, 4, 8, 8), "gram"),
        ((8, 5, 8, 8), "explicit"),
        # The bound is 2^25 elements: N I O against it, and 3 N T^2.
        ((8, 4096, 2048, 2048), "explicit"),
        ((9, 4096, 2048, 2048), "tiled"),
        ((10, 1024, 4096, 4096), "gram"),
        ((11, 1024, 4096, 4096), "tiled"),
    ],
)
def test_path_follows_operations_and_memory(shape: tuple[int, ...], path: str) -> None:
    assert linear.choose_linear_path(*shape) == path


@final
class LargestProduct(TorchDispatchMode):
    """Notes how many elements the largest matrix product held."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.bmm.default:
            self.elements = max(self.elements, result.numel())
        return result


@pytest.mark.parametrize(("num_tokens", "plain"), [(10, 3 * 10 * 10), (300, 3 * 40 * 50)])
def test_tiles_stay_within_the_bound(
    num_tokens: int, plain: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs, grads = torch.randn(3, num_tokens, 40), torch.randn(3, num_tokens, 50)
    with LargestProduct() as meter:
        linear.linear_squares(inputs, grads)
    assert meter.elements == plain
    monkeypatch.setattr(linear, "SCRATCH", 150)
    with LargestProduct() as meter:
        linear.linear_squares(inputs, grads)
    assert 0 < meter.elements <= 150


def test_tokens_flatten_what_lies_between() -> None:
    assert linear.tokens(torch.zeros(3, 4)).shape == (3, 1, 4)
    assert linear.tokens(torch.zeros(3, 0, 4)).shape == (3, 0, 4)
    assert linear.tokens(torch.zeros(3, 2, 0, 4)).shape == (3, 0, 4)
    kept = torch.arange(24).view(2, 2, 2, 3)
    assert linear.tokens(kept).tolist() == kept.reshape(2, 4, 3).tolist()


def test_no_tokens_give_no_gradient() -> None:
    inputs, grads = torch.zeros(3, 0, 4), torch.zeros(3, 0, 2)
    assert linear.linear_squares(inputs, grads).tolist() == [0, 0, 0]
    assert linear.linear_gradients(inputs, grads).tolist() == torch.zeros(3, 2, 4).tolist()
    assert linear.bias_squares(grads).tolist() == [0, 0, 0]


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
def test_low_precision_is_summed_in_float32(low: torch.dtype) -> None:
    """Cancelling to rounding, too: squares are never negative."""
    inputs, grads = torch.randn(2, 5, 30).to(low), torch.randn(2, 5, 40).to(low)
    found = linear.linear_squares(inputs, grads)
    assert found.dtype == torch.float32
    exact = linear.linear_squares(inputs.double(), grads.double())
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=0)
    assert linear.bias_gradients(grads).dtype == torch.float32
    assert linear.linear_squares(inputs, grads.double()).dtype == torch.float64


@pytest.mark.parametrize("scratch", [1 << 25, 16])
def test_cancelling_tokens_never_give_a_negative_square(
    scratch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear, "SCRATCH", scratch)
    inputs = torch.randn(200, 2, 30, dtype=torch.float32)
    inputs = torch.cat([inputs, inputs], dim=1)
    grads = torch.randn(200, 2, 30, dtype=torch.float32)
    found = linear.linear_squares(inputs, torch.cat([grads, -grads], dim=1))
    assert 0 <= found.min() <= found.max() < 1e-2


def test_large_gradients_lose_no_precision() -> None:
    """In one run, float32 loses 5e-5 here."""
    gradient = torch.rand(1, 1 << 21, dtype=torch.float32)
    exact = gradient.double().square().sum()
    assert linear.squared_norms(gradient).item() == pytest.approx(exact.item(), rel=3e-6)
    assert linear.squared_norms(torch.zeros(2, 0)).tolist() == [0, 0]
    assert linear.squared_norms(torch.zeros(0, 2)).tolist() == []


# Embeddings

IDS = [(3, 5, 4), (1, 1, 1), (2, 9, 2), (4, 3, 50), (3, 0, 2), (0, 3, 2)]


@pytest.mark.parametrize("padding_idx", [None, -1, 0, 1])
@pytest.mark.parametrize("shape", IDS)
def test_embedding_is_the_definition(shape: tuple[int, ...], padding_idx: int | None) -> None:
    N, T, V = shape
    ids, grads = torch.randint(V, (N, T)), torch.randn(N, T, 3)
    known = None if padding_idx is None or not 0 <= padding_idx < V else padding_idx
    weight = torch.zeros(N, V, 3)
    if N:
        op = functools.partial(F.embedding, padding_idx=known)
        (weight,) = definition(op, ids, grads, torch.randn(V, 3))
    close(embedding.embedding_gradients(ids, grads, V, padding_idx), weight)
    close(embedding.embedding_squares(ids, grads, padding_idx), squares(weight))


def test_embedding_takes_int32_and_low_precision() -> None:
    ids, grads = torch.randint(3, (2, 5)), torch.randn(2, 5, 4)
    wanted = embedding.embedding_squares(ids, grads.bfloat16().double(), None)
    found = embedding.embedding_squares(ids.int(), grads.bfloat16(), None)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=0)
    whole = embedding.embedding_gradients(ids.int(), grads.bfloat16(), 3, None)
    torch.testing.assert_close(squares(whole), found)


@pytest.mark.parametrize("scratch", [1 << 25, 60, 1])
@pytest.mark.parametrize("padding_idx", [None, 0, 2])
@pytest.mark.parametrize("shape", [(3, 5, 4, 3), (1, 1, 1, 3), (2, 0, 3, 3), (2, 3, 0, 3)])
def test_tied_weight_is_the_square_of_both_uses(
    shape: tuple[int, ...],
    padding_idx: int | None,
    scratch: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(linear, "SCRATCH", scratch)
    (N, T, S, V), D = shape, 4
    ids, grads = torch.randint(V, (N, T)), torch.randn(N, T, D)
    inputs, head_grads = torch.randn(N, S, D), torch.randn(N, S, V)
    weight = torch.randn(V, D)
    (found,) = definition(
        functools.partial(F.embedding, padding_idx=padding_idx), ids, grads, weight
    )
    (head,) = definition(F.linear, inputs, head_grads, weight)
    close(
        embedding.tied_squares(ids, grads, inputs, head_grads, padding_idx), squares(found + head)
    )


def test_tied_weight_in_mixed_precision_is_never_negative() -> None:
    """The head takes back what the embedding gives, up to rounding."""
    ids, grads = torch.arange(4).expand(9, 4), torch.randn(9, 4, 30, dtype=torch.float32)
    head_grads = -torch.eye(4, dtype=torch.bfloat16).expand(9, 4, 4)
    found = embedding.tied_squares(ids, grads, grads, head_grads, None)
    assert found.dtype == torch.float32
    assert 0 <= found.min() <= found.max() < 1e-3
    ids = ids.new_tensor([[0, 1, 1, 0]])
    assert embedding.tied_squares(ids, grads[:1].bfloat16(), grads[:1], head_grads[:1], 1) > 0
