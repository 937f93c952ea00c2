"""The forms of linear maps. Oracle: the gradient itself, an example at a time."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rightbatch.noise.per_example.outer import (
    Outer,
    cheaper_form,
    chunk_elements,
    explicit_squares,
    gram_squares,
    joined,
)


def by_definition(inputs: Tensor, grads: Tensor) -> Tensor:
    return torch.stack([(d.T @ a).square().sum() for a, d in zip(inputs, grads, strict=True)])


@pytest.mark.parametrize("form", [gram_squares, explicit_squares])
@pytest.mark.parametrize("shape", [(3, 1, 2, 4), (1, 5, 1, 1), (7, 450, 3, 2), (2, 2, 400, 700)])
def test_forms_agree(
    form: Callable[[Tensor, Tensor], Tensor], shape: tuple[int, int, int, int]
) -> None:
    """450 positions do not fit into one tile, nor 400 x 700 elements into one chunk."""
    count, positions, width_in, width_out = shape
    inputs = torch.randn(count, positions, width_in)
    grads = torch.randn(count, positions, width_out)
    torch.testing.assert_close(
        form(inputs, grads), by_definition(inputs, grads), rtol=1e-10, atol=0
    )


def test_the_sizes_above_are_beyond_the_limits() -> None:
    limit = chunk_elements(torch.device("cpu"))
    assert limit < 450**2
    assert limit < 400 * 700


@pytest.mark.parametrize(("width", "below"), [(512, 213), (64, 26)])
def test_the_forms_cross_where_operations_do(width: int, below: int) -> None:
    """1.2 T (p + q) < p q."""
    assert cheaper_form(below, width, width) == "gram"
    assert cheaper_form(below + 1, width, width) == "explicit"


def test_cancelling_positions_give_zero_not_less() -> None:
    inputs = torch.randn(4, 1, 3).repeat(1, 2, 1)
    grads = torch.randn(4, 1, 2)
    squares = gram_squares(inputs, torch.cat([grads, -grads], dim=1))
    assert (squares >= 0).all()
    assert (squares < 1e-12).all()


def test_two_uses_are_added_before_the_square() -> None:
    one = Outer(torch.randn(3, 1, 2, 4), torch.randn(3, 1, 2, 5), torch.Size([5, 4]))
    two = Outer(torch.randn(3, 1, 6, 4), torch.randn(3, 1, 6, 5), torch.Size([5, 4]))
    wanted = [(one.gradient(i) + two.gradient(i)).square().sum() for i in range(3)]
    torch.testing.assert_close(joined([one, two]).squares(), torch.stack(wanted))
