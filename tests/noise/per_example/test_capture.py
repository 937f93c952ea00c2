"""Per-example squares from the training step. Oracle: the definition, on a zoo of odd models."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from rightbatch.noise.per_example import ExampleSquares, example_squares
from tests.noise.per_example.definition import by_definition, loss_of
from tests.noise.per_example.zoo import ZOO, B, Specimen


def trained(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def watched(model: nn.Module, batch: Tensor, *, examples: int, **options: object) -> ExampleSquares:
    with example_squares(
        model, trained(model), examples=examples, batch_size=len(batch), **options
    ) as record:
        loss_of(model(batch), len(batch)).backward()
    return record


def squares_of(gradients: list[list[Tensor]]) -> Tensor:
    return torch.stack([torch.stack([g.square().sum() for g in row]) for row in gradients])


def made(specimen: Specimen) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(3)
    return specimen.make(), specimen.batch()


def names_of(model: nn.Module, indices: Sequence[int]) -> set[str]:
    names = {id(p): name for name, p in model.named_parameters()}
    return {names[id(trained(model)[i])] for i in indices}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("examples", [B, 2])
@pytest.mark.parametrize("specimen", ZOO, ids=str)
def test_equals_the_definition_or_says_that_it_cannot(specimen: Specimen, examples: int) -> None:
    model, batch = made(specimen)
    exact = squares_of(by_definition(model, trained(model), batch))[:examples]
    record = watched(model, batch, examples=examples)
    uncovered = record.uncovered()
    assert names_of(model, uncovered) == set(specimen.uncovered), record.reasons
    exact[:, uncovered] = torch.nan
    torch.testing.assert_close(record.squares()[0], exact, rtol=1e-9, atol=1e-15, equal_nan=True)
    for index, path in record.paths.items():
        (name,) = names_of(model, [index])
        assert specimen.paths.get(name, path) == path
