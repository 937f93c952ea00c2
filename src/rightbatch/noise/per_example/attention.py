"""`torch.nn.MultiheadAttention`: one function outside, several linear maps inside.

Its function is seen as one call. For the time of that call the name ``linear`` in
`torch.nn.functional` is ours, so that the maps inside are seen like any other.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from rightbatch.noise.per_example.layout import STRIPES, Layouts

Seen = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]


@contextmanager
def inner_maps_seen(query: Tensor, layouts: Layouts, see: Seen) -> Iterator[None]:
    """Send calls of ``F.linear`` to ``see`` for a moment.

    Args:
        query: The attention's, [positions, examples, width].
        layouts: The output map's input is [positions * examples, width]: noted here.
        see: Called with function, arguments and options.
    """
    original = F.linear

    def spy(*args: Any, **kwargs: Any) -> Tensor:
        inputs = args[0]
        if inputs.dim() == 2 and len(inputs) == query.shape[0] * query.shape[1]:
            layouts.set(inputs, STRIPES)
        return see(original, args, kwargs)

    F.linear = spy
    try:
        yield
    finally:
        F.linear = original
