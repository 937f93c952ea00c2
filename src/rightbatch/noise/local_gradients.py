"""See each parameter's own gradient of one backward pass, before it is accumulated or reduced.

In a plain or a ``DistributedDataParallel`` model the parameter is the leaf, and a hook on it sees
this rank's gradient. Under ``fully_shard`` the leaf is the gathered parameter, which a module
holds from its forward pass on: hooked then, it sees this rank's whole gradient.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from rightbatch._comm import is_sharded

Hook = Callable[[int, Tensor], None]


@contextmanager
def hooked_gradients(
    model: nn.Module, parameters: Sequence[nn.Parameter], hook: Hook
) -> Iterator[None]:
    """Call ``hook(index, gradient)`` for each parameter's gradient, until the block is left.

    A hook on a leaf fires once per backward pass, with the sum over all its uses: tied weights
    are one parameter and need no care. Only reentrant checkpointing of a shared parameter, which
    runs backward passes inside backward passes, calls it in several parts.

    Args:
        model: The module whose forward pass is called.
        parameters: Of the model or not; sharded ones must be its own.
        hook: Gets the parameter's index and this rank's whole gradient.
    """
    indices = {id(parameter): index for index, parameter in enumerate(parameters)}
    hooked: dict[int, Tensor] = {}  # gathered parameters; modules may share one
    with ExitStack() as stack:
        for index, parameter in enumerate(parameters):
            if not is_sharded(parameter):
                handle = parameter.register_hook(_bound(hook, index))
                stack.callback(handle.remove)
        for module in model.modules():
            owned = {
                name: indices[id(parameter)]
                for name, parameter in module._parameters.items()
                if parameter is not None and is_sharded(parameter) and id(parameter) in indices
            }
            if owned:
                _hook_when_gathered(module, owned, hook, hooked, stack)
        yield


def _hook_when_gathered(
    module: nn.Module,
    owned: dict[str, int],
    hook: Hook,
    hooked: dict[int, Tensor],
    stack: ExitStack,
) -> None:
    """Hook the gathered parameters of a module in its forward passes, each of them once.

    Args:
        module: It holds the parameters.
        owned: Their names in it, and their indices.
        hook: As in `hooked_gradients`.
        hooked: By identity, those that have a hook; kept, so that no identity is used twice.
        stack: Removes the hooks.
    """

    def before_forward(module: nn.Module, _: Any) -> None:
        for name, index in owned.items():
            gathered = module._parameters[name]
            if gathered is not None and id(gathered) not in hooked and gathered.requires_grad:
                hooked[id(gathered)] = gathered
                stack.callback(gathered.register_hook(_bound(hook, index)).remove)

    stack.callback(module.register_forward_pre_hook(before_forward).remove)


def _bound(hook: Hook, index: int) -> Callable[[Tensor], None]:
    return lambda gradient: hook(index, gradient)
