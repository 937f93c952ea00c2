"""Oracle: right optimizers from the papers, and each with one known fault planted in it.

The faults are those that have been found in published implementations: LAMB's rate divided by
the correction for bias, LARS's momentum seeded with the raw gradient, and adaptation dropped
without weight decay.
"""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import Optimizer

import rightbatch as rb
from tests.scaling.optimizers import LAMB, LARS


class Faulty(Optimizer):
    """LARS or LAMB in one, with a fault by name; the right one without."""

    def __init__(
        self,
        params: Any,
        lr: float = 0.1,
        weight_decay: float = 0.0,
        *,
        fault: str = "",
        lamb: bool = False,
        nesterov: bool = False,
        dampening: float = 0.0,
    ) -> None:
        defaults: dict[str, Any] = {"lr": lr, "weight_decay": weight_decay}
        if lamb:
            defaults |= {"betas": (0.9, 0.999)}
        else:
            defaults |= {"momentum": 0.9, "trust_coefficient": 0.001}
            defaults |= {"nesterov": nesterov, "dampening": dampening}
        super().__init__(params, defaults)
        self.fault, self.lamb = fault, lamb
        self.num_steps = 0

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.num_steps += 1
        for group in self.param_groups:
            for weight in group["params"]:
                if self.lamb:
                    self._lamb(weight, weight.grad, group)
                else:
                    self._lars(weight, weight.grad, group)

    def _lars(self, weight: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        decay, momentum = group["weight_decay"], group["momentum"]
        size = grad.norm() + decay * weight.norm()
        local = group["trust_coefficient"] * weight.norm() / size if size > 0 else 0.0
        if self.fault == "dropped" and decay == 0:
            local = 1.0
        if self.fault == "zero":
            local = group["trust_coefficient"] * weight.norm() / size
        scaled = local * (grad + decay * weight)
        if self.fault == "decay outside":
            scaled = local * grad + decay * weight
        seed = grad.clone() if self.fault == "raw seed" else torch.zeros_like(grad)
        buffer = self.state[weight].setdefault("buffer", seed)
        if self.num_steps > 1 or self.fault != "raw seed":
            fresh = 1 - group["dampening"] if self.num_steps > 1 else 1.0
            kept = 2 * momentum if self.fault == "strong" else momentum
            buffer.mul_(kept).add_(fresh * scaled)
        update = scaled + momentum * buffer if group["nesterov"] else buffer
        weight.sub_(group["lr"] * update)

    def _lamb(self, weight: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state, (first, second) = self.state[weight], group["betas"]
        mean = state.setdefault("mean", torch.zeros_like(grad))
        square = state.setdefault("square", torch.zeros_like(grad))
        mean.mul_(first).add_((1 - first) * grad)
        square.mul_(second).add_((1 - second) * grad**2)
        correction = 1 - first**self.num_steps
        step = mean / correction / ((square / (1 - second**self.num_steps)).sqrt() + 1e-6)
        decayed = step + group["weight_decay"] * weight
        update = step if self.fault == "decay outside" else decayed
        size = update.norm()
        ratio = weight.norm() / size if size > 0 and weight.norm() > 0 else 1.0
        if self.fault == "dropped" and group["weight_decay"] == 0:
            ratio = 1.0
        if self.fault == "rate":
            ratio = ratio / correction
        if self.fault == "decay outside":
            weight.mul_(1 - 100 * group["lr"] * group["weight_decay"])
        weight.sub_(group["lr"] * ratio * update)


def make(fault: str = "", **options: Any) -> Any:
    def made(params: Any, lr: float, weight_decay: float) -> Optimizer:
        return Faulty(params, lr, weight_decay, fault=fault, **options)

    return made


@pytest.mark.parametrize(
    "right",
    [LARS, LAMB, make(), make(lamb=True), make(nesterov=True), make(dampening=0.5)],
    ids=["LARS", "LAMB", "lars", "lamb", "nesterov", "dampening"],
)
def test_right_implementations_pass_every_law(right: Any) -> None:
    report = rb.check_layerwise_optimizer(right)
    assert report.failures == ()
    assert report.valid
    assert len(report.invariants) == 7
    assert "all hold" in str(report)


FAULTS: list[tuple[str, bool, set[str], str]] = [
    (
        "rate",
        True,
        {"first step at the requested rate", "steady length"},
        "the first step is 10 times lr * 1 * |weights|, and must be 1 times. "
        "That is 1 / (1 - beta1): the rate was divided by the correction for bias.",
    ),
    (
        "raw seed",
        False,
        {
            "layer-wise without weight decay",
            "scale invariance",
            "first step at the requested rate",
            "seeded momentum",
            "weight decay inside the ratio of norms",
        },
        "the momentum starts too large, as when it is seeded with the raw gradient",
    ),
    (
        "dropped",
        False,
        {
            "layer-wise without weight decay",
            "scale invariance",
            "first step at the requested rate",
            "weight decay inside the ratio of norms",
        },
        "layer-wise adaptation is dropped at weight_decay=0",
    ),
    (
        "dropped",
        True,
        {
            "layer-wise without weight decay",
            "first step at the requested rate",
            "weight decay inside the ratio of norms",
        },
        "layer-wise adaptation is dropped at weight_decay=0",
    ),
    ("decay outside", True, {"weight decay inside the ratio of norms"}, "does not lengthen it"),
    ("decay outside", False, {"weight decay inside the ratio of norms"}, "the first step differs"),
    ("zero", False, {"finite at zero"}, "a layer of zero gradients becomes infinite or NaN"),
]


@pytest.mark.parametrize(("fault", "lamb", "failures", "said"), FAULTS)
def test_a_known_fault_is_found_and_said_plainly(
    fault: str, lamb: bool, failures: set[str], said: str
) -> None:
    report = rb.check_layerwise_optimizer(make(fault, lamb=lamb))
    assert set(report.failures) == failures
    assert not report.valid
    text = str(report)
    assert said in text
    assert f"{len(failures)} FAIL" in text.splitlines()[0]
    assert sum(line.startswith("FAIL") for line in text.splitlines()) == len(failures)


def test_a_momentum_that_grows_too_fast_is_not_said_to_start_too_large() -> None:
    report = rb.check_layerwise_optimizer(make("strong"))
    assert report.failures == ("seeded momentum",)
    assert "must be 1.9 times." in str(report)
    assert "starts too large" not in str(report)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
def test_optimizers_that_are_not_layer_wise_fail_the_first_law(kind: type[Optimizer]) -> None:
    report = rb.check_layerwise_optimizer(kind)
    assert report.failures[0] == "layer-wise without weight decay"
    assert "there is no layer-wise adaptation" in report.invariants[0].found


def test_the_rate_of_lars_is_checked_against_the_trust_given_or_not_at_all() -> None:
    def hidden(params: Any, lr: float, weight_decay: float) -> Optimizer:
        made = Faulty(params, lr, weight_decay)
        made.step = _without_key(made)  # type: ignore[method-assign]
        for group in made.param_groups:
            group["hidden"] = group.pop("trust_coefficient")
        return made

    name = "first step at the requested rate"
    unknown = rb.check_layerwise_optimizer(hidden)
    assert unknown.valid
    assert name not in [law.name for law in unknown.invariants]
    assert rb.check_layerwise_optimizer(hidden, trust=0.001).valid
    assert rb.check_layerwise_optimizer(hidden, trust=0.02).failures == (name,)


def _without_key(made: Faulty) -> Any:
    step = made.step

    def stepped(closure: Any = None) -> None:
        for group in made.param_groups:
            group["trust_coefficient"] = group["hidden"]
        step(closure)
        for group in made.param_groups:
            del group["trust_coefficient"]

    return stepped


def test_the_random_state_and_the_default_type_do_not_matter(float32: None) -> None:
    before = torch.get_rng_state()
    assert rb.check_layerwise_optimizer(LAMB).valid
    assert torch.equal(torch.get_rng_state(), before)


def test_what_cannot_be_made_or_trusted_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'strange' is not: .*unexpected keyword argument 'lr'"):
        rb.check_layerwise_optimizer(strange)
    with pytest.raises(ValueError, match="got trust=0"):
        rb.check_layerwise_optimizer(LARS, trust=0)


def strange(params: Any) -> Optimizer:
    return LARS(params)


def test_a_kind_may_be_written_in_capitals_and_another_is_refused() -> None:
    assert rb.check_layerwise_optimizer(LAMB, kind="LAMB").kind == "lamb"
    assert rb.check_layerwise_optimizer(LARS, kind="Lars").valid
    with pytest.raises(ValueError, match="must be 'lars' or 'lamb', got kind='foo'"):
        rb.check_layerwise_optimizer(LAMB, kind="foo")


@pytest.mark.parametrize("kind", ["lars", "lamb"])
def test_an_optimizer_that_is_neither_gets_a_verdict(kind: str) -> None:
    report = rb.check_layerwise_optimizer(torch.optim.SGD, kind=kind)
    assert "layer-wise without weight decay" in report.failures
    assert "FAIL" in str(report)
