"""All uses of one parameter together."""

from collections.abc import Sequence

import torch
from torch import Tensor

from rightbatch.noise.geometry import Preconditioner
from rightbatch.noise.per_example.outer import Outer, joined
from rightbatch.noise.per_example.tables import Rows, tied_squares
from rightbatch.noise.per_example.uses import Use, disjoint, one_at_a_time
from rightbatch.noise.squares import inner_products


def combined_squares(uses: Sequence[Use], examples: int) -> tuple[Tensor, str]:
    """Square the sum of all uses' gradients, for each example.

    Returns:
        [examples], and the path taken.
    """
    if len(uses) == 1:
        return uses[0].squares(), uses[0].path
    if disjoint(uses):
        return torch.stack([use.squares() for use in uses]).sum(0), uses[0].path
    outers = [use for use in uses if isinstance(use, Outer)]
    tables = [use for use in uses if isinstance(use, Rows)]
    alike = len({(use.shape, use.transposed, use.inputs.shape[1]) for use in outers}) == 1
    if alike and len(outers) == len(uses):
        whole = joined(outers)
        return whole.squares(), whole.path
    plain = alike and not outers[0].transposed and outers[0].inputs.shape[1] == 1
    if plain and len(tables) == 1 and len(outers) == len(uses) - 1:
        return tied_squares(tables[0], joined(outers)), "tied"
    return one_at_a_time([use.gradient for use in uses], examples), "one at a time"


def combined_inner_products(
    uses: Sequence[Use], examples: int, metric: Preconditioner | None
) -> Tensor:
    """Square in every metric, building one example's gradient at a time: [metrics, examples]."""
    found = []
    for index in range(examples):
        gradient = uses[0].gradient(index)
        for use in uses[1:]:
            gradient = gradient + use.gradient(index)
        found.append(inner_products(gradient, gradient, metric))
    return torch.stack(found, dim=1)
