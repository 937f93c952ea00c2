"""Which way each parameter takes, and what share of the model is covered by fast rules."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from rightbatch._format import format_count
from rightbatch.errors import TaskError
from rightbatch.noise.per_example.watch import example_squares
from rightbatch.task.data import examples_in
from rightbatch.task.preflight import mixes_examples

DEFINITION, UNKNOWN = "definition", "told by a pass only"

_BY_TYPE: tuple[tuple[tuple[type[nn.Module], ...], str], ...] = (
    ((nn.Linear,), "one, gram or explicit, by length"),
    ((nn.Conv1d, nn.Conv2d, nn.Conv3d), "gram or explicit, by shape"),
    ((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), "gram or explicit, by shape"),
    ((nn.Embedding,), "gathered"),
    ((nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.PReLU), "direct"),
    ((nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d), "direct"),
    ((nn.MultiheadAttention,), "gram or explicit, by length"),
    ((nn.RNNBase, nn.RNNCellBase, nn.Bilinear), DEFINITION),
)


@final
@dataclass(frozen=True, slots=True)
class ParameterPath:
    """The way of one parameter."""

    name: str
    elements: int
    path: str  # "definition": no rule
    reason: str = ""  # why there is none


@final
@dataclass(frozen=True, slots=True)
class Explanation:
    """The ways of all trainable parameters."""

    parameters: tuple[ParameterPath, ...]
    seen: bool  # in a real pass, rather than told by the layers' types

    @property
    def covered_share(self) -> float:
        """Elements with a fast rule, over all."""
        total = sum(p.elements for p in self.parameters)
        covered = sum(p.elements for p in self.parameters if p.path not in (DEFINITION, UNKNOWN))
        return covered / total if total else 1.0

    def __str__(self) -> str:
        width = max((len(p.name) for p in self.parameters), default=0)
        lines = [
            f"{p.name:<{width}}  {format_count(p.elements):>8}  {p.path}"
            + (f": {p.reason}" if p.reason else "")
            for p in self.parameters
        ]
        how = "in a pass" if self.seen else "by the types of layers, without a pass"
        share = f"{100 * self.covered_share:.4g} % of the parameters have a fast rule ({how})."
        return "\n".join([*lines, share])


def explain(
    model: nn.Module,
    *,
    loss: Callable[[nn.Module, Any], Tensor] | None = None,
    batch: Any = None,
) -> Explanation:
    """Say which way each parameter's per-example squares are computed.

    Args:
        model: Stays as it is: a pass runs on a copy.
        loss: ``loss(model, batch)``; with it and a batch, what really happens is told.
            Otherwise it is guessed from the types of layers.
        batch: Examples along the first dimension of its tensors.

    Returns:
        A table, readable as text.

    Raises:
        TaskError: If only one of ``loss`` and ``batch`` is given, or the batch has no examples.

    Example:
        >>> print(explain(nn.Sequential(nn.Linear(2, 3), nn.GRU(3, 1, bias=False))))
        0.weight               6  one, gram or explicit, by length
        0.bias                 3  direct
        1.weight_ih_l0         9  definition: GRU
        1.weight_hh_l0         3  definition: GRU
        42.86 % of the parameters have a fast rule (by the types of layers, without a pass).
    """
    if (loss is None) != (batch is None):
        raise TaskError(
            f"`loss` and `batch` must be given together, got loss={loss!r}. A pass needs "
            "both: pass both, or neither."
        )
    if loss is None:
        return _by_types(model)
    size = examples_in(batch)
    if not size:
        raise TaskError(
            f"`batch` must hold examples along the first dimension of its tensors, got "
            f"{type(batch).__name__} without any. One pass over it shows each layer's way."
        )
    twin = copy.deepcopy(model)
    named = [(name, p) for name, p in twin.named_parameters() if p.requires_grad]
    parameters = [p for _, p in named]
    with (
        torch.random.fork_rng(),
        torch.enable_grad(),
        example_squares(twin, parameters, examples=min(2, size), batch_size=size) as watched,
    ):
        loss(twin, batch).backward()
    uncovered = watched.uncovered()
    return Explanation(
        tuple(
            ParameterPath(name, p.numel(), DEFINITION, watched.reasons[index])
            if index in uncovered
            else ParameterPath(name, p.numel(), watched.paths.get(index, "unused"))
            for index, (name, p) in enumerate(named)
        ),
        seen=True,
    )


def _by_types(model: nn.Module) -> Explanation:
    rows: dict[nn.Parameter, ParameterPath] = {}
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad and parameter not in rows:
                full = f"{prefix}.{name}" if prefix else name
                path = _path_of(module, name)
                reason = type(module).__name__ if path == DEFINITION else ""
                rows[parameter] = ParameterPath(full, parameter.numel(), path, reason)
    return Explanation(tuple(rows.values()), seen=False)


def _path_of(module: nn.Module, name: str) -> str:
    found = next((path for types, path in _BY_TYPE if isinstance(module, types)), None)
    if isinstance(module, nn.modules.batchnorm._NormBase) and found is None:
        return DEFINITION if mixes_examples(module) else "direct"
    if found is None:
        return UNKNOWN
    return "direct" if name.endswith("bias") and found != DEFINITION else found
