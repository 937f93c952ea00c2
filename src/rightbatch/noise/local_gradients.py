"""See each parameter's own gradient of one backward pass, before it is accumulated or reduced."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


@contextmanager
def hooked_gradients(
    model: nn.Module, parameters: Sequence[nn.Parameter], hook: Callable[[int, Tensor], None]
) -> Iterator[None]:
    """Call ``hook(index, gradient)`` once per backward pass for each parameter.

    A hook on a leaf fires once per backward pass, with the sum over all its uses: tied weights
    are one parameter and need no care.
    """
    handles: list[RemovableHandle] = []

    def hook_for(index: int) -> None:
        handles.append(parameters[index].register_hook(lambda gradient: hook(index, gradient)))

    try:
        for index in range(len(parameters)):
            hook_for(index)
        yield
    finally:
        for handle in handles:
            handle.remove()
