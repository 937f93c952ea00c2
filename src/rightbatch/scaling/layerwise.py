"""Does a LARS or LAMB do what its paper says? Invariants on a problem of two small layers.

Both take the size of the gradient out, layer by layer: at ``weight_decay=0`` the first step
moves every layer by ``|change| = lr * trust * |weights|``, whatever the gradients are. Several
implementations do not, and nothing says so: they train, only at another rate than asked for.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from torch import Tensor
from torch.optim import Optimizer

Kind = Literal["lars", "lamb"]
Make = Callable[..., Optimizer]

_RATE = 1e-3  # small, so that a layer's norm hardly moves along a few steps
_DECAY = 0.1
_TOLERANCE = 0.01  # eps and the moving norms stay far below, every known fault far above
_WEIGHT_NORMS = (0.5, 4.0)  # below 10, at which the LAMB paper may clip
_GRAD_NORMS = (10.0, 0.2)
_NUM_STEPS = 5
_TRUST = ("trust_coefficient", "trust_coeff", "trust")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Invariant:
    """One law of layer-wise steps, and whether it holds."""

    name: str
    holds: bool
    found: str  # a sentence: what was expected, what was found, and the likely cause


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class LayerwiseReport:
    """Every invariant of a layer-wise optimizer, one line each when printed."""

    optimizer: str  # class name
    kind: Kind
    invariants: tuple[Invariant, ...]

    @property
    def valid(self) -> bool:
        """Whether all invariants hold."""
        return all(invariant.holds for invariant in self.invariants)

    @property
    def failures(self) -> tuple[str, ...]:
        """Names of the invariants that do not hold."""
        return tuple(i.name for i in self.invariants if not i.holds)

    def __str__(self) -> str:
        """Say in the first line whether it can be used, then what each invariant found."""
        verdict = "all hold" if self.valid else f"{len(self.failures)} FAIL"
        lines = [f"{self.optimizer} as {self.kind.upper()}: {len(self.invariants)} laws, {verdict}"]
        for invariant in self.invariants:
            mark = "ok  " if invariant.holds else "FAIL"
            lines.append(f"{mark}  {invariant.name}: {invariant.found}")
        return "\n".join(lines)


def check_layerwise_optimizer(
    make: Make, *, kind: str | None = None, trust: float | None = None
) -> LayerwiseReport:
    """Test a LARS or LAMB against the laws of its paper, on two layers of a few numbers.

    The trap: an optimizer can pass with one set of options and fail with another. Pass a
    function that makes it with the options that you train with.

    Args:
        make: Its class, or a function, called as ``make(parameters, lr=..., weight_decay=...)``.
        kind: "lars" (momentum over scaled gradients) or "lamb" (scaled steps of Adam), in small
            or capital letters; by default "lamb" where a parameter group has ``betas``.
        trust: The factor of the ratio of norms. By default the group's ``trust_coefficient``,
            ``trust_coeff`` or ``trust``; else 1 for LAMB, and for LARS the size of the first step
            is then not checked.

    Returns:
        Every law, whether it holds, and what was found.

    Raises:
        ValueError: If ``make`` cannot be called so, ``kind`` is neither of the two, or ``trust`` is
            not positive.

    Example:
        >>> import torch
        >>> print(check_layerwise_optimizer(torch.optim.Adam).failures[0])
        layer-wise without weight decay

    References:
        You et al. (2017), Large Batch Training of Convolutional Networks,
        https://arxiv.org/abs/1708.03888. You et al. (2020), Large Batch Optimization for Deep
        Learning: Training BERT in 76 minutes, https://arxiv.org/abs/1904.00962.
    """
    if trust is not None and not trust > 0:
        raise ValueError(
            f"`trust` must be positive, got trust={trust!r}. "
            "It multiplies the ratio of the norms of weights and gradients."
        )
    optimizer = _Trial(make).optimizer
    group = optimizer.param_groups[0]
    kind = _checked_kind(kind, group)
    if trust is None:
        named = (float(group[name]) for name in _TRUST if name in group)
        trust = next(named, 1.0 if kind == "lamb" else None)
    laws = _laws(make, kind, trust, group)
    return LayerwiseReport(optimizer=type(optimizer).__name__, kind=kind, invariants=tuple(laws))


def _checked_kind(kind: str | None, group: Mapping[str, Any]) -> Kind:
    if kind is None:
        return "lamb" if "betas" in group else "lars"
    named: dict[str, Kind] = {"lars": "lars", "lamb": "lamb"}
    if kind.lower() not in named:
        raise ValueError(
            f"`kind` must be 'lars' or 'lamb', got kind={kind!r}. "
            "Each has laws of its own: leave it out to have the settings tell."
        )
    return named[kind.lower()]


def _laws(
    make: Make, kind: Kind, trust: float | None, group: Mapping[str, Any]
) -> Iterator[Invariant]:
    plain = _shares(make)
    decayed = _shares(make, weight_decay=_DECAY)
    yield _layerwise_without_decay(plain[0], decayed[0])
    yield _scale_invariant(make)
    if trust is not None:
        yield _requested_rate(plain[0], trust, kind, group)
    if kind == "lamb":
        yield _steady_length(plain, group)
        yield _decay_inside(decayed[0], plain[0])
    else:
        yield _seeded_momentum(plain, group)
        yield _decay_of_lars(make, plain[0])
    yield _proportional(make)
    yield _finite(make)


class _Trial:
    """Two layers with known norms, and an optimizer of both."""

    def __init__(
        self,
        make: Make,
        *,
        rate: float = _RATE,
        weight_decay: float = 0.0,
        weight_norms: Sequence[float] = _WEIGHT_NORMS,
    ) -> None:
        shapes = ((3, 4), (5, 2))
        pairs = zip(shapes, weight_norms, strict=True)
        self.weights = [
            torch.nn.Parameter(_pattern(shape, norm, phase=1.0)) for shape, norm in pairs
        ]
        try:
            self.optimizer = make(self.weights, lr=rate, weight_decay=weight_decay)
        except TypeError as error:
            raise ValueError(
                "`make` must be callable as make(parameters, lr=..., weight_decay=...), and "
                f"{getattr(make, '__name__', make)!r} is not: {error}. Pass a function that "
                "makes the optimizer from these."
            ) from error

    def step(self, grad_norms: Sequence[float] = _GRAD_NORMS) -> list[Tensor]:
        """Take one step with gradients of a fixed direction; return each layer's change."""
        before = [weight.detach().clone() for weight in self.weights]
        for weight, norm in zip(self.weights, grad_norms, strict=True):
            weight.grad = _pattern(tuple(weight.shape), norm, phase=2.0)
        self.optimizer.step()
        return [w.detach() - old for w, old in zip(self.weights, before, strict=True)]


def _pattern(shape: tuple[int, ...], norm: float, *, phase: float) -> Tensor:
    """Numbers of both signs and a given norm, without a random state."""
    waves = torch.sin(phase * torch.arange(1, math.prod(shape) + 1, dtype=torch.float64)) + 0.1
    return (waves * (norm / waves.norm())).reshape(shape)


def _shares(make: Make, *, weight_decay: float = 0.0) -> list[list[float]]:
    """``|change| / (lr |weights|)`` of each layer at each of the first steps."""
    trial = _Trial(make, weight_decay=weight_decay)
    shares = []
    for _ in range(_NUM_STEPS):
        norms = [float(weight.detach().norm()) for weight in trial.weights]
        changes = trial.step()
        shares.append(
            [float(c.norm()) / (_RATE * norm) for c, norm in zip(changes, norms, strict=True)]
        )
    return shares


def _ratio(value: float, reference: float) -> float:
    return value / reference if reference else math.nan


def _near(value: float, expected: float) -> bool:
    return math.isfinite(value) and math.isclose(value, expected, rel_tol=_TOLERANCE)


def _all_near(values: Sequence[float], expected: float) -> bool:
    return all(_near(value, expected) for value in values)


def _norm_ratios(changes: Sequence[Tensor], reference: Sequence[Tensor]) -> list[float]:
    return [float(a.norm() / b.norm()) for a, b in zip(changes, reference, strict=True)]


def _layerwise_without_decay(plain: Sequence[float], decayed: Sequence[float]) -> Invariant:
    holds = _near(plain[0], plain[1])
    found = (
        f"at weight_decay=0 the first step moves two layers by {plain[0]:.4g} and {plain[1]:.4g} "
        "times lr * |weights|, and they must be equal"
    )
    if not holds:
        only_here = math.isclose(decayed[0], decayed[1], rel_tol=0.5)
        found += (
            f". At weight_decay={_DECAY} they are {decayed[0]:.4g} and {decayed[1]:.4g}: "
            "layer-wise adaptation is dropped at weight_decay=0. Look for an option such as "
            "always_adapt"
            if only_here
            else ". The step does not follow the norm of the weights: there is no layer-wise "
            "adaptation, or a momentum starts as the raw gradient"
        )
    return Invariant(name="layer-wise without weight decay", holds=holds, found=f"{found}.")


def _scale_invariant(make: Make) -> Invariant:
    once = _Trial(make).step()
    larger = _Trial(make).step([1000 * norm for norm in _GRAD_NORMS])
    ratios = _norm_ratios(larger, once)
    return Invariant(
        name="scale invariance",
        holds=_all_near(ratios, 1.0),
        found=f"gradients 1000 times larger make a first step {max(ratios):.4g} times larger, "
        "and it must stay.",
    )


def _requested_rate(
    first: Sequence[float], trust: float, kind: Kind, group: Mapping[str, Any]
) -> Invariant:
    # Nesterov looks one step of momentum ahead.
    ahead = 1 + float(group["momentum"]) if kind == "lars" and group.get("nesterov") else 1.0
    ratios = [share / (trust * ahead) for share in first]
    worst = max(ratios, key=lambda ratio: abs(math.log(ratio)) if ratio > 0 else math.inf)
    found = f"the first step is {worst:.4g} times lr * {trust:g} * |weights|, and must be 1 times"
    beta = _first_beta(group)
    if kind == "lamb" and beta > 0 and _near(worst, 1 / (1 - beta)):
        found += ". That is 1 / (1 - beta1): the rate was divided by the correction for bias"
    return Invariant(
        name="first step at the requested rate",
        holds=_all_near(ratios, 1.0),
        found=f"{found}.",
    )


def _first_beta(group: Mapping[str, Any]) -> float:
    """What a correction for bias would be computed from; 0 where there is nothing to correct."""
    betas = group.get("betas") or (0.0,)
    return float(betas[0])


def _steady_length(shares: Sequence[Sequence[float]], group: Mapping[str, Any]) -> Invariant:
    """At one gradient Adam's step is one step, and LAMB gives it the length lr |weights|."""
    relative = [_ratio(step[0], shares[-1][0]) for step in shares]
    beta = _first_beta(group)
    expected_of_fault = [
        (1 - beta**_NUM_STEPS) / (1 - beta ** (index + 1)) for index in range(_NUM_STEPS)
    ]
    listed = ", ".join(f"{ratio:.3g}" for ratio in relative)
    found = (
        f"under one constant gradient the first {_NUM_STEPS} steps are {listed} times the last, "
        "and all must be equal"
    )
    if beta > 0 and all(_near(a, b) for a, b in zip(relative, expected_of_fault, strict=True)):
        found += ". They follow 1 / (1 - beta1^t): the rate was divided by the correction for bias"
    return Invariant(
        name="steady length",
        holds=_all_near(relative, 1.0),
        found=f"{found}.",
    )


def _decay_inside(decayed: Sequence[float], plain: Sequence[float]) -> Invariant:
    ratios = [_ratio(a, b) for a, b in zip(decayed, plain, strict=True)]
    return Invariant(
        name="weight decay inside the ratio of norms",
        holds=_all_near(ratios, 1.0),
        found=f"with weight_decay={_DECAY} the first step has {ratios[0]:.4g} and "
        f"{ratios[1]:.4g} times the length without, and must keep it: decay turns a step of LAMB "
        "and does not lengthen it.",
    )


def _seeded_momentum(shares: Sequence[Sequence[float]], group: Mapping[str, Any]) -> Invariant:
    momentum = float(group.get("momentum", 0.0))
    dampening = float(group.get("dampening", 0.0))
    sums = [1.0, momentum + (1 - dampening)]
    if group.get("nesterov"):
        sums = [1 + momentum * total for total in sums]
    expected = sums[1] / sums[0]
    ratios = [_ratio(later, first) for first, later in zip(shares[0], shares[1], strict=True)]
    found = (
        "under one constant gradient the second step is "
        f"{ratios[0]:.4g} and {ratios[1]:.4g} times the first, and must be {expected:.4g} times"
    )
    holds = _all_near(ratios, expected)
    if not holds and all(ratio < expected for ratio in ratios):
        found += ": the momentum starts too large, as when it is seeded with the raw gradient"
    return Invariant(name="seeded momentum", holds=holds, found=f"{found}.")


def _decay_of_lars(make: Make, plain: Sequence[float]) -> Invariant:
    """Compare the whole first step with the paper's, its size taken from the one without decay."""
    trial = _Trial(make, weight_decay=_DECAY)
    weights = [weight.detach().clone() for weight in trial.weights]
    worst = 0.0
    for weight, norm, change, share in zip(weights, _GRAD_NORMS, trial.step(), plain, strict=True):
        grad = _pattern(tuple(weight.shape), norm, phase=2.0)
        local = share * weight.norm() / (norm + _DECAY * weight.norm())
        expected = -_RATE * local * (grad + _DECAY * weight)
        worst = max(worst, float((change - expected).norm() / expected.norm()))
    return Invariant(
        name="weight decay inside the ratio of norms",
        holds=worst < _TOLERANCE,
        found=f"with weight_decay={_DECAY} the first step differs by {worst:.2g} of its length "
        "from |weights| / (|gradient| + decay |weights|) times gradient + decay * weights.",
    )


def _proportional(make: Make) -> Invariant:
    once, twice = _Trial(make).step(), _Trial(make, rate=2 * _RATE).step()
    ratios = _norm_ratios(twice, once)
    return Invariant(
        name="proportional to the rate",
        holds=_all_near(ratios, 2.0),
        found=f"twice the rate makes the first step {ratios[0]:.4g} and {ratios[1]:.4g} times as "
        "long, and it must be 2 times.",
    )


def _finite(make: Make) -> Invariant:
    found = []
    for name, weight_norms, grad_norms in (
        ("weights", (0.0, 1.0), _GRAD_NORMS),
        ("gradients", _WEIGHT_NORMS, (0.0, 1.0)),
    ):
        trial = _Trial(make, weight_norms=weight_norms)
        changes = trial.step(grad_norms)
        if not all(bool(change.isfinite().all()) for change in changes):
            found.append(name)
    return Invariant(
        name="finite at zero",
        holds=not found,
        found=f"a layer of zero {' and of zero '.join(found)} becomes infinite or NaN."
        if found
        else "layers of zero weights or zero gradients stay finite.",
    )
