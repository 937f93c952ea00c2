"""Every registered optimizer for the tests: torch's, and small right ones of our own.

LAMB, LARS and Lion are written from their papers, with the state names that their families expect.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from rightbatch.scaling import registered_optimizers

Parameters = Iterable[Tensor] | Iterable[dict[str, Any]]


class LARS(Optimizer):
    """You et al. (2017): the rate of a layer is ``trust |w| / (|g| + decay |w|)``."""

    def __init__(
        self,
        params: Parameters,
        lr: float = 0.1,
        momentum: float = 0.9,
        trust: float = 0.001,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "trust": trust,
            "weight_decay": weight_decay,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for weight in group["params"]:
                grad = weight.grad
                if grad is None:
                    continue
                decay = group["weight_decay"]
                size = grad.norm() + decay * weight.norm()
                local = group["trust"] * weight.norm() / size if size > 0 else 0.0
                scaled = local * (grad + decay * weight)
                state = self.state[weight]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(weight)
                buffer = state["momentum_buffer"].mul_(group["momentum"]).add_(scaled)
                weight.sub_(group["lr"] * buffer)


class LAMB(Optimizer):
    """You et al. (2020): Adam's step, its length the rate times that of the layer's weights."""

    def __init__(
        self,
        params: Parameters,
        lr: float = 0.01,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            first, second = group["betas"]
            for weight in group["params"]:
                grad = weight.grad
                if grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["step"] = 0
                    state["exp_avg"] = torch.zeros_like(weight)
                    state["exp_avg_sq"] = torch.zeros_like(weight)
                state["step"] += 1
                mean = state["exp_avg"].mul_(first).add_((1 - first) * grad)
                square = state["exp_avg_sq"].mul_(second).add_((1 - second) * grad**2)
                mean = mean / (1 - first ** state["step"])
                square = square / (1 - second ** state["step"])
                update = mean / (square.sqrt() + group["eps"]) + group["weight_decay"] * weight
                ratio = weight.norm() / update.norm() if update.norm() > 0 else 1.0
                weight.sub_(group["lr"] * ratio * update)


class Lion(Optimizer):
    """Chen et al. (2023): the sign of a mean of gradients, weight decay outside it."""

    def __init__(
        self,
        params: Parameters,
        lr: float = 0.001,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            first, second = group["betas"]
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["exp_avg"] = torch.zeros_like(weight)
                mean = state["exp_avg"]
                update = (first * mean + (1 - first) * weight.grad).sign()
                weight.mul_(1 - group["lr"] * group["weight_decay"]).sub_(group["lr"] * update)
                mean.mul_(second).add_((1 - second) * weight.grad)


OWN: dict[str, type[Optimizer]] = {
    "LARS": LARS,
    "Lars": type("Lars", (LARS,), {}),
    "LAMB": LAMB,
    "Lamb": type("Lamb", (LAMB,), {}),
    "Lion": Lion,
}

# What each is made with beside its parameters: rates that suit weights of size 1.
OPTIONS: dict[str, dict[str, Any]] = {
    "SGD": {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.01},
    "LARS": {"lr": 2.0, "weight_decay": 0.01},
    "Lars": {"lr": 2.0, "weight_decay": 0.01},
    "Adam": {"lr": 0.01, "weight_decay": 0.01},
    "AdamW": {"lr": 0.01, "weight_decay": 0.01},
    "NAdam": {"lr": 0.01, "weight_decay": 0.01},
    "RAdam": {"lr": 0.01, "weight_decay": 0.01},
    "RMSprop": {"lr": 0.01, "momentum": 0.5, "weight_decay": 0.01},
    "Adagrad": {"lr": 0.05, "weight_decay": 0.01},
    "LAMB": {"lr": 0.01, "weight_decay": 0.01},
    "Lamb": {"lr": 0.01, "weight_decay": 0.01},
    "Lion": {"lr": 0.003, "weight_decay": 0.01},
}
NAMES = sorted(OPTIONS)


def make(name: str, params: Parameters, **options: Any) -> Optimizer:
    """Make a registered optimizer by name, with other options where some are given."""
    kind = OWN.get(name) or getattr(torch.optim, name)
    return kind(params, **{**OPTIONS[name], **options})


def every_registered_name() -> list[str]:
    """Return the names that the package registers itself; those of doctests are lower down."""
    return sorted(name for name in registered_optimizers() if not name.startswith("My"))
