"""Ghost batch normalisation by its definition: ordinary BatchNorm on each ghost, in a loop."""

import torch
from torch import Tensor, nn

from rightbatch.norm.ghost import GhostBatchNorm1d, GhostBatchNorm2d, GhostBatchNorm3d

GHOST_FORMS = {1: GhostBatchNorm1d, 2: GhostBatchNorm2d, 3: GhostBatchNorm3d}
ORDINARY_FORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


def ghosts_of(batch_size: int, sizes: list[int]) -> list[list[int]]:
    """Which examples make up each ghost: those of one size share a run of examples by turns."""
    ghosts: list[list[int]] = []
    start = 0
    for size in sorted(set(sizes), reverse=True):
        number = sizes.count(size)
        end = start + number * size
        ghosts += [list(range(start + first, end, number)) for first in range(number)]
        start = end
    assert sorted(example for ghost in ghosts for example in ghost) == list(range(batch_size))
    return ghosts


def normalised_in_a_loop(norm: nn.Module, batch: Tensor, ghosts: list[list[int]]) -> Tensor:
    """Normalise each ghost with a BatchNorm that has the layer's parameters and options."""
    output = torch.empty_like(batch)
    for ghost in ghosts:
        output[ghost] = nn.functional.batch_norm(
            batch[ghost], None, None, norm.weight, norm.bias, training=True, eps=norm.eps
        )
    return output


def batch_of(dims: int, batch_size: int, *, channels: int = 3, seed: int = 0) -> Tensor:
    """Random examples with ``dims`` - 1 spatial axes of lengths 2, 3, ..., off centre."""
    spatial = [2 + axis for axis in range(dims)] if dims > 1 else []
    generator = torch.Generator().manual_seed(seed)
    shape = (batch_size, channels, *spatial)
    scale = torch.arange(1, channels + 1, dtype=torch.get_default_dtype())
    shift = scale.view(-1, *[1] * len(spatial))
    return torch.randn(shape, generator=generator) * shift + 5 * shift


def randomised(norm: nn.Module) -> nn.Module:
    """Give a layer parameters and statistics that are not the ones it starts with."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in [*norm.parameters(), *norm.buffers()]:
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return norm
