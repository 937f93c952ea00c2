"""What each optimizer's settings are: which entry is a rate, an average, a decay of weights."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal, final, get_args

from rightbatch.scaling.learning_rate import ScalingRule

Step = Literal["gradient", "normalised"]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerFamily:
    """How an optimizer's settings and state depend on the batch size.

    A setting is named as in its parameter groups, a beta by its place: "beta1", "beta2".
    State is named as in ``optimizer.state[parameter]``.
    """

    step: Step  # proportional to the gradient, or to the gradient over its own size
    momentum: str | None = None  # decay of a sum of gradients: torch's SGD, RMSprop
    first_beta: str | None = None  # decay of a mean of gradients
    second_beta: str | None = None  # decay of a mean of squared gradients
    eps: str | None = None  # beside the root of the second moment
    decoupled: bool = False  # weight decay outside the gradient, times the learning rate
    first_moment: str | None = None  # state, divided by 1 - first_beta^step when used
    second_moments: tuple[str, ...] = ()  # state that follows second_beta
    bias_corrected: bool = False  # second moments are divided by 1 - second_beta^step when used
    momentum_buffer: str | None = None  # state: the sum that `momentum` decays
    unscaled: tuple[str, ...] = ()  # settings that count steps, which no rule covers: kept
    is_derived: bool = True  # the rule of the rate was derived for this step, not only tried

    def __post_init__(self) -> None:
        """Refuse a step that no rule is known for.

        Raises:
            ValueError: If ``step`` is neither of the two.
        """
        steps = get_args(Step)
        if self.step not in steps:
            raise ValueError(
                f"`step` must be one of {', '.join(steps)}, got step={self.step!r}. "
                "It decides which rule the rate follows."
            )

    @property
    def settings(self) -> tuple[str, ...]:
        """Names of the settings that it says the groups have."""
        named = (self.momentum, self.first_beta, self.second_beta, self.eps)
        return tuple(name for name in named if name is not None)

    @property
    def state(self) -> tuple[str, ...]:
        """Names of the averages that it says the state has."""
        named = (self.first_moment, *self.second_moments, self.momentum_buffer)
        return tuple(name for name in named if name is not None)

    @property
    def rule(self) -> ScalingRule:
        """The rule of the rate that suits the step."""
        return "saturating" if self.step == "gradient" else "sqrt"


_ADAM = OptimizerFamily(
    step="normalised",
    first_beta="beta1",
    second_beta="beta2",
    eps="eps",
    first_moment="exp_avg",
    second_moments=("exp_avg_sq", "max_exp_avg_sq"),
    bias_corrected=True,
)
_ADAMW = replace(_ADAM, decoupled=True)
_NADAM = replace(
    _ADAM,
    first_moment=None,  # corrected by a product of past betas that its own state keeps
    second_moments=("exp_avg_sq",),
    unscaled=("momentum_decay",),
)
# Its rectification is a warm-up in steps, whose length is set by beta2: another beta would start it
# again, or end it at once.
_RADAM = replace(_ADAM, unscaled=("beta1", "beta2"))
_SGD = OptimizerFamily(step="gradient", momentum="momentum", momentum_buffer="momentum_buffer")
_RMSPROP = OptimizerFamily(
    step="normalised",
    momentum="momentum",
    second_beta="alpha",
    eps="eps",
    second_moments=("square_avg",),
    momentum_buffer="momentum_buffer",
)
# Its sum of squares only grows, so a smaller batch adds to it and cannot make a step spike.
_ADAGRAD = OptimizerFamily(step="normalised", unscaled=("lr_decay",), is_derived=False)
_LION = OptimizerFamily(
    step="normalised", first_beta="beta1", second_beta="beta2", decoupled=True
)  # both betas decay one mean of gradients, whose sign is the step

# Layer-wise rates: the ratio of norms takes the gradient's size out, which no derivation covers.
_LARS = replace(_SGD, is_derived=False)
_LAMB = replace(_ADAMW, is_derived=False)

_families: dict[str, OptimizerFamily] = {
    "SGD": _SGD,
    "LARS": _LARS,
    "Lars": _LARS,
    "Adam": _ADAM,
    "RAdam": _RADAM,
    "LAMB": _LAMB,
    "Lamb": _LAMB,
    "AdamW": _ADAMW,
    "NAdam": _NADAM,
    "RMSprop": _RMSPROP,
    "Adagrad": _ADAGRAD,
    "Lion": _LION,
}


def register_optimizer(name: str, family: OptimizerFamily) -> None:
    """Say how an optimizer's settings depend on the batch size.

    The trap: a subclass of a registered class counts as that class until it is registered
    itself, and the last registration of a name stands.

    Args:
        name: The class name, ``type(optimizer).__name__``.
        family: What its settings and state are.

    Raises:
        ValueError: If ``name`` is empty.

    Example:
        >>> register_optimizer("MyMomentum", OptimizerFamily(step="gradient", momentum="mu"))
        >>> family_of("MyMomentum").momentum
        'mu'
    """
    if not name:
        raise ValueError(
            f"`name` must be the class name of an optimizer, got name={name!r}. "
            "Pass type(optimizer).__name__."
        )
    _families[name] = family


def registered_optimizers() -> Mapping[str, OptimizerFamily]:
    """Return every registered family by class name; a view that cannot be changed."""
    return MappingProxyType(_families)


def family_of(name: str) -> OptimizerFamily | None:
    """Look an optimizer's family up by class name; ``None`` for an unknown one."""
    return _families.get(name)


def similar_names(name: str) -> list[str]:
    """Name registered optimizers that are spelled like an unknown one."""
    return difflib.get_close_matches(name, _families, n=3)


def is_decoupled(family: OptimizerFamily, group: Mapping[str, Any]) -> bool:
    """Ask a group itself first: torch's Adam decides between the two decays by a flag."""
    return bool(group.get("decoupled_weight_decay", family.decoupled))
