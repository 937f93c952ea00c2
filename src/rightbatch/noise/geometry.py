r"""In which geometry noise counts: that of plain gradients, or of what the optimizer makes of them.

The noise scale is ``tr(W Sigma) / (G' W G)`` for a diagonal metric ``W``:

    euclidean    W = 1       steepest descent: SGD, with momentum or without
    adam         W = P^2     the step P g itself (Pollux' preconditioned noise scale)
    adam_sqrt    W = P       curvature taken as 1/P: each coordinate is weighted once
    sign         (sum_i sigma_i)^2 / |G|_1^2, in the dual norm of a step of signs

with ``P = 1 / (sqrt(v_hat) + eps)`` from the optimizer's live second moments. Traps: ``P`` knows
the batch size at which it was collected; and in its first few steps it is mostly noise itself.

References:
    Qiao et al. (2021), Pollux, OSDI, section 3.1 (preconditioned noise scale).
    Non-Euclidean noise scales: https://arxiv.org/abs/2602.03001.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

from torch import Tensor, nn
from torch.optim import Optimizer

from rightbatch.scaling import default_rule

EUCLIDEAN = ("euclidean",)
PRECONDITIONED = ("euclidean", "adam", "adam_sqrt")

_WARM = 5  # steps before second moments are more than the last gradient's square
_SIGN_OPTIMIZERS = ("lion", "sign")  # in the class name
_SECOND_MOMENTS = ("max_exp_avg_sq", "exp_avg_sq", "square_avg", "sum")


@final
@dataclass(frozen=True, slots=True)
class Preconditioner:
    """``P = 1 / (sqrt(v_hat) + eps)`` of one parameter, computed where it is needed, never stored.

    Example:
        >>> import torch
        >>> p = Preconditioner(torch.tensor([4.0, 0.0]), mean=None, correction=1.0, eps=0.5)
        >>> p.of(p.second_moment, None)
        tensor([0.4000, 2.0000])
    """

    second_moment: Tensor  # the optimizer's own tensor, of the parameter's shape
    mean: Tensor | None  # of a centred RMSprop: the variance is second_moment - mean^2
    correction: float  # v_hat = v / correction
    eps: float

    def of(self, second_moment: Tensor, mean: Tensor | None) -> Tensor:
        """Compute ``P`` for some of the coordinates."""
        if mean is not None:
            second_moment = second_moment - mean.square()
        return 1 / ((second_moment / self.correction).clamp_min(0).sqrt() + self.eps)


def preconditioners(
    optimizer: Optimizer, parameters: Sequence[nn.Parameter]
) -> list[Preconditioner] | None:
    """Read the live second moments of an optimizer, for each of its parameters.

    Reads the state by its customary names, so optimizers outside PyTorch are understood too.
    A common factor in ``P`` leaves every noise scale as it is, but layers with learning rates of
    their own do not share one: rates are left out.

    Args:
        optimizer: Any optimizer.
        parameters: What it trains.

    Returns:
        One per parameter; ``None`` where the optimizer keeps no second moments, or
        they have seen fewer than five steps.
    """
    groups = {p: group for group in optimizer.param_groups for p in group["params"]}
    found = [_preconditioner(optimizer.state.get(p, {}), groups[p], p) for p in parameters]
    known = [p for p in found if p is not None]
    return known if known and len(known) == len(found) else None


def _preconditioner(
    state: dict[str, Any], group: dict[str, Any], parameter: nn.Parameter
) -> Preconditioner | None:
    name = next((name for name in _SECOND_MOMENTS if isinstance(state.get(name), Tensor)), None)
    steps = float(state.get("step", _WARM))
    if name is None or steps < _WARM or state[name].shape != parameter.shape:
        return None
    corrected = "exp_avg_sq" in name and "betas" in group
    return Preconditioner(
        state[name],
        mean=state.get("grad_avg") if name == "square_avg" else None,
        correction=1 - float(group["betas"][1]) ** steps if corrected else 1.0,
        eps=float(group.get("eps", 0.0)),
    )


def fitting_geometry(optimizer: Optimizer) -> str:
    """Name the geometry that fits an optimizer's step.

    Example:
        >>> import torch
        >>> weights = [nn.Parameter(torch.zeros(1))]
        >>> fitting_geometry(torch.optim.SGD(weights, lr=0.1))
        'euclidean'
        >>> fitting_geometry(torch.optim.AdamW(weights))
        'adam'
    """
    name = type(optimizer).__name__
    if any(part in name.lower() for part in _SIGN_OPTIMIZERS):
        return "sign"
    return "euclidean" if default_rule(name) == "saturating" else "adam"
