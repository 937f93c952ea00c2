"""Building a model the same way every time, wherever it then runs."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded_float32(seed: int) -> Iterator[None]:
    """Build a model reproducibly: seeded, in float32, on the host; leave no trace of it.

    Not ``torch.manual_seed``, which would seed every accelerator too.

    Args:
        seed: Of PyTorch's generator of the host, whose state is put back afterwards.

    Example:
        >>> with seeded_float32(0):
        ...     first = torch.nn.Linear(2, 2)
        >>> with seeded_float32(0):
        ...     second = torch.nn.Linear(2, 2)
        >>> torch.equal(first.weight, second.weight)
        True
    """
    generator, dtype = torch.default_generator, torch.get_default_dtype()
    state = generator.get_state()
    try:
        generator.manual_seed(seed)
        torch.set_default_dtype(torch.float32)
        with torch.device("cpu"):
            yield
    finally:
        torch.set_default_dtype(dtype)
        generator.set_state(state)


def default_device() -> torch.device:
    """Return the accelerator if there is one, else the CPU."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found or torch.device("cpu")


def split_rows(count: int, train: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Split ``count`` rows at random, the same way every time.

    Returns:
        The indices of ``train`` rows to train on, and those of the rest.

    Example:
        >>> train, test = split_rows(5, 3)
        >>> len(train), sorted([*train.tolist(), *test.tolist()])
        (3, [0, 1, 2, 3, 4])
    """
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0), device="cpu")
    return order[:train], order[train:]
