"""The optimizer's settings in a plan. Oracle: closed forms, by hand."""

from typing import Any

import pytest

from rightbatch.plan import plan
from rightbatch.plan.inputs import Inputs
from rightbatch.plan.settings import settings_at
from rightbatch.results import Change, Validity
from tests.plan.made_up import critical, facts, throughput

ADAMW = {"lr": 0.1, "beta1": 0.75, "beta2": 0.875, "eps": 1e-8, "weight_decay": 0.1}


def inputs(**changes: Any) -> Inputs:
    adamw = {"optimizer": "AdamW", "hyperparameters": ADAMW}
    return Inputs(throughput(), critical(), None, None, None, facts(**{**adamw, **changes}))


def change(changes: tuple[Change, ...], name: str) -> Change:
    return next(c for c in changes if c.parameter == name)


def test_every_setting_moves_from_todays_batch_size_16_to_32() -> None:
    moved = settings_at(inputs(), 32, 0.3, "won a race")
    assert moved.hyperparameters == {
        "lr": pytest.approx(0.3, rel=1e-12),
        "beta1": 0.75**2,
        "beta2": 0.875**2,
        "eps": pytest.approx(1e-8 / 2**0.5),
        # With the rule's rate r = 0.1 sqrt(2): 16 / (0.1 x 0.1) = 1600 = 32 / (r x r).
        "weight_decay": pytest.approx(0.1 * 2**0.5),
    }
    assert not moved.warnings
    rate = change(moved.changes, "lr")
    assert (rate.before, rate.why, rate.validity) == (0.1, "won a race", Validity.HOLDS)


def test_without_todays_batch_size_only_the_rate_is_set_and_that_is_said() -> None:
    moved = settings_at(inputs(batch_size=None), 64, 0.3, "won a race")
    assert moved.hyperparameters == {**ADAMW, "lr": 0.3}
    assert moved.changes == ()
    assert "all settings of AdamW but the learning rate stay" in moved.warnings[0]
    assert moved.warnings[0].endswith("Task(..., batch_size=...).")


def test_what_no_rule_covers_is_kept_and_said() -> None:
    known = {"lr": 0.1, "gamma": 0.7}
    moved = settings_at(inputs(optimizer="Zigzag", hyperparameters=known), 64, 0.3, "")
    assert moved.hyperparameters == {"lr": pytest.approx(0.3), "gamma": 0.7}
    assert "Zigzag is of unknown kind: only its rate was scaled" in moved.warnings[0]


def test_beyond_the_critical_size_eps_is_outside_validity_and_a_measured_rate_is_not() -> None:
    moved = settings_at(inputs(), 256, 0.3, "won a race")  # the critical size is 160
    assert change(moved.changes, "eps").validity is Validity.OUTSIDE
    assert change(moved.changes, "lr").validity is Validity.HOLDS
    assert not any("critical batch size" in warning for warning in moved.warnings)


def test_without_facts_or_a_rate_there_is_nothing_to_move() -> None:
    nobody = Inputs(throughput(), critical(), None, None, None, None)
    assert settings_at(nobody, 64, None, "") == settings_at(
        inputs(hyperparameters={}), 64, None, ""
    )
    assert settings_at(nobody, 64, 0.3, "").hyperparameters == {"lr": 0.3}


def test_without_a_measured_rate_the_rule_decides() -> None:
    moved = settings_at(inputs(), 64, None, "")
    assert moved.hyperparameters["lr"] == pytest.approx(0.2)  # the square root of 4
    assert change(moved.changes, "lr").why == "sqrt rule"


def test_the_plan_passes_the_warnings_on() -> None:
    made = plan(throughput(), critical(), facts(batch_size=None))
    assert any("Today's batch size is not known" in warning for warning in made.warnings)
