"""Oracles: what an optimizer's next steps show of the settings and the state that it has."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

import rightbatch as rb
from rightbatch.scaling import (
    OptimizerFamily,
    Validity,
    register_optimizer,
    registered_optimizers,
    scaled_hyperparameters,
)

KNOWN: dict[str, Any] = {"noise_scale": 1e5}


@pytest.fixture(autouse=True)
def _registry(monkeypatch: pytest.MonkeyPatch) -> None:
    own = dict(registered_optimizers())
    monkeypatch.setattr("rightbatch.scaling.families._families", own)


def stepper(optimizer: Optimizer, weight: nn.Parameter) -> Callable[[], float]:
    """One step with a gradient of 1; returns its length over the rate."""

    def step() -> float:
        before = weight.detach().clone()
        weight.grad = torch.ones_like(weight)
        optimizer.step()
        change = float((weight.detach() - before).abs().max())
        return change / optimizer.param_groups[0]["lr"]

    return step


@pytest.mark.parametrize("to_size", [4, 16, 128, 256, 4096])
def test_a_move_neither_restarts_nor_ends_radams_warm_up(to_size: int) -> None:
    """Under one constant gradient its step is the rate times a rectification of the step alone."""
    steps = []
    for moves in (True, False):
        weight = nn.Parameter(torch.zeros(1))
        step = stepper(optimizer := torch.optim.RAdam([weight], lr=1e-3, eps=0.0), weight)
        for _ in range(100):
            step()
        if moves:
            report = rb.scale_hyperparameters(optimizer, 64, to_size, **KNOWN)
            assert report.not_scaled == ("beta1", "beta2")
            assert not report.valid
            assert report.after("beta2") == 0.999
            growth = report.hyperparameters.get("second_moment", 1.0)
            optimizer.state[weight]["exp_avg_sq"].div_(growth)
        steps.append(step())
    assert steps[0] == pytest.approx(steps[1], rel=1e-9)


class AdamW(Optimizer):
    """As of another library: a known name, and state of other names."""

    def __init__(self, params: Any, names: tuple[str, str]) -> None:
        super().__init__(params, {"lr": 0.1, "betas": (0.9, 0.999), "eps": 1e-8})
        self.names = names

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for weight in group["params"]:
                self.state[weight] = {name: torch.ones_like(weight) for name in self.names}
                self.state[weight]["step"] = 1


def test_state_of_unknown_names_is_said_not_to_be_scaled() -> None:
    optimizer = AdamW([nn.Parameter(torch.ones(1))], ("state1", "state2"))
    assert rb.scale_hyperparameters(optimizer, 256, 128, **KNOWN).valid  # nothing averaged yet
    optimizer.step()
    report = rb.scale_hyperparameters(optimizer, 128, 64, **KNOWN)
    assert report.not_scaled == ("the optimizer's state",)
    assert not report.valid
    assert "which has none of exp_avg, exp_avg_sq, max_exp_avg_sq" in report.warnings[-1]
    assert rb.scale_hyperparameters(optimizer, 64, 64).valid


def test_state_of_known_names_is_not_warned_of() -> None:
    optimizer = AdamW([nn.Parameter(torch.ones(1))], ("exp_avg", "exp_avg_sq"))
    optimizer.step()
    assert rb.scale_hyperparameters(optimizer, 128, 64, **KNOWN).warnings == ()


def test_a_step_of_no_known_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="one of gradient, normalised, got step='gradien'"):
        OptimizerFamily(step="gradien")  # pyright: ignore[reportArgumentType]


def test_a_named_setting_that_the_groups_do_not_have_is_warned_of() -> None:
    register_optimizer("AdamW", OptimizerFamily(step="normalised", first_beta="beta_1"))
    optimizer = AdamW([nn.Parameter(torch.ones(1))], ("m", "v"))
    report = rb.scale_hyperparameters(optimizer, 64, 128, **KNOWN)
    assert report.not_scaled == ("beta_1",)
    assert "not scaled: beta_1, which AdamW's groups do not have" in report.warnings[-1]


def test_betas_that_are_entries_of_their_own_are_written_there() -> None:
    class Own(Optimizer):
        def __init__(self, params: Any) -> None:
            super().__init__(params, {"lr": 0.1, "beta1": 0.75})

    register_optimizer("Own", OptimizerFamily(step="normalised", first_beta="beta1"))
    optimizer = Own([nn.Parameter(torch.ones(1))])
    assert rb.scale_hyperparameters(optimizer, 64, 128, **KNOWN).valid
    assert optimizer.param_groups[0]["beta1"] == 0.5625


def test_the_defaults_of_an_optimizer_are_read_with_their_betas() -> None:
    defaults = torch.optim.AdamW([nn.Parameter(torch.ones(1))], weight_decay=0.1).defaults
    report = scaled_hyperparameters("AdamW", defaults, 64, 128, **KNOWN)
    assert report.hyperparameters == pytest.approx(
        {
            "lr": 1e-3 * 2**0.5,
            "beta1": 0.9**2,
            "beta2": 0.999**2,
            "eps": 1e-8 / 2**0.5,
            "weight_decay": 0.1 * 2**0.5,
        }
    )
    assert report.valid


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lr", float("nan")),
        ("lr", float("inf")),
        ("lr", -1.0),
        ("beta1", 1.5),
        ("beta2", -0.1),
        ("eps", -1e-8),
        ("weight_decay", float("nan")),
    ],
)
def test_a_setting_that_no_optimizer_trains_with_is_refused(name: str, value: float) -> None:
    settings = {"lr": 0.1, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.0}
    with pytest.raises(ValueError, match=f"must have '{name}' .*, got {name}={value!r}"):
        scaled_hyperparameters("AdamW", {**settings, name: value}, 64, 128)


def test_what_an_unknown_optimizer_calls_a_beta_is_not_judged() -> None:
    report = scaled_hyperparameters("Mystery", {"lr": 0.1, "beta1": 7.0}, 64, 128)
    assert report.changes[0].validity is Validity.UNCHECKED
