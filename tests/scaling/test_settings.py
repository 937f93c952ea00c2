"""Oracle: closed forms by hand, for the settings of every rule and optimizer."""

import math
from typing import Any

import pytest

from rightbatch.scaling import Validity, scaled_hyperparameters
from rightbatch.scaling.settings import (
    decay_over_examples,
    decoupled_weight_decay,
    eps_over_root,
    second_moment_growth,
    share_over_examples,
    steps_for_examples,
)

ADAMW = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.1}


def test_a_decay_keeps_its_half_life_in_examples() -> None:
    """beta = 2^(-B / half_life): 128 examples are 2 steps of 64, or 8 of 16."""
    at_16, at_64 = 2 ** (-16 / 128), 2 ** (-64 / 128)
    assert decay_over_examples(at_16, 4) == pytest.approx(at_64, rel=1e-15)
    assert decay_over_examples(at_64, 1 / 4) == pytest.approx(at_16, rel=1e-15)


@pytest.mark.parametrize(
    ("beta", "kappa", "expected"),
    [(0.9, 8, 0.43046721), (0.9, 16, 0.1853020188851841), (0.999, 16, math.prod([0.999] * 16))],
)
def test_powers_of_betas_stay_inside_the_unit_interval(
    beta: float, kappa: float, expected: float
) -> None:
    """1 - kappa (1 - beta) would be -0.6 at kappa = 16; the power is 0.185."""
    assert decay_over_examples(beta, kappa) == pytest.approx(expected, rel=1e-9)


def test_running_statistics_forget_as_many_examples_by_one_large_batch_as_by_small_ones() -> None:
    share = 0.1
    left_after_four = (1 - share) ** 4
    assert share_over_examples(share, 4) == pytest.approx(1 - left_after_four, rel=1e-14)
    assert share_over_examples(share, 1) == share


def test_the_closed_forms_of_eps_weight_decay_and_warm_up() -> None:
    assert eps_over_root(1e-8, 16) == 2.5e-9
    # B / (lr * decay) in examples: 64 / (0.001 * 0.1), and the same at 1024 with lr 0.004.
    assert 1024 / (0.004 * decoupled_weight_decay(0.1, 16, 4)) == pytest.approx(64 / (0.001 * 0.1))
    assert [steps_for_examples(1000, size) for size in (1, 64, 1000, 1001)] == [1000, 16, 1, 1]
    assert steps_for_examples(0, 64) == 0


def test_the_second_moment_grows_by_the_ratio_of_the_mean_squared_gradients() -> None:
    """E g^2 = |G|^2 + tr(Sigma) / B with |G|^2 = 2 and tr(Sigma) = 600."""
    at_100, at_25 = 2 + 600 / 100, 2 + 600 / 25
    assert second_moment_growth(1 / 100, 1 / 25, 300.0) == pytest.approx(at_25 / at_100)
    assert second_moment_growth(1 / 100, 1 / 25, None) == 4
    assert second_moment_growth(1 / 100, 1 / 25, math.inf) == 4
    assert second_moment_growth(1 / 25, 1 / 100, 300.0) == 1
    assert second_moment_growth(1 / 100, 1 / 25, 0.0) == 1


def test_adamw_four_times_larger_by_hand() -> None:
    report = scaled_hyperparameters("AdamW", ADAMW, 64, 256, noise_scale=1000.0)
    assert report.valid
    assert report.rule == "sqrt"
    assert report.hyperparameters == pytest.approx(
        {"lr": 2e-3, "beta1": 0.6561, "beta2": 0.996005996001, "eps": 5e-9, "weight_decay": 0.2},
        rel=1e-12,
    )


def test_the_first_beta_stays_beyond_four_times_unless_asked() -> None:
    def beta1(to: int, **options: Any) -> float:
        return scaled_hyperparameters("Adam", ADAMW, 64, to, **options).after("beta1")

    assert beta1(256) == pytest.approx(0.6561)
    assert beta1(512) == 0.9
    assert beta1(16) == pytest.approx(0.9**0.25)
    assert beta1(8) == 0.9
    assert beta1(512, first_beta="examples") == pytest.approx(0.9**8)
    assert beta1(256, first_beta="keep") == 0.9


def test_coupled_weight_decay_is_a_term_of_the_loss_and_stays() -> None:
    for name in ("Adam", "SGD", "RMSprop", "Adagrad"):
        report = scaled_hyperparameters(name, {"lr": 0.1, "weight_decay": 5e-4}, 8, 64)
        assert report.after("weight_decay") == 5e-4


@pytest.mark.parametrize("rule", ["linear", "sqrt"])
def test_decoupled_weight_decay_keeps_its_time_scale_under_any_rule(rule: Any) -> None:
    report = scaled_hyperparameters("AdamW", ADAMW, 64, 1024, rule=rule)
    shrink_per_example = report.after("lr") * report.after("weight_decay") / 1024
    assert shrink_per_example == pytest.approx(1e-3 * 0.1 / 64, rel=1e-12)


def test_momentum_in_examples_keeps_the_effective_rate_on_the_rule() -> None:
    report = scaled_hyperparameters(
        "SGD", {"lr": 0.1, "momentum": 0.9}, 64, 256, rule="linear", momentum="examples"
    )
    assert report.after("momentum") == pytest.approx(0.6561)
    assert report.after("lr") / (1 - 0.6561) == pytest.approx(4 * 0.1 / (1 - 0.9), rel=1e-12)
    kept = scaled_hyperparameters("SGD", {"lr": 0.1, "momentum": 0.9}, 64, 256, rule="linear")
    assert (kept.after("momentum"), kept.after("lr")) == (0.9, 0.4)


def test_rmsprop_scales_its_alpha_and_lion_both_betas_and_no_eps() -> None:
    rmsprop = scaled_hyperparameters(
        "RMSprop", {"lr": 0.01, "alpha": 0.99, "eps": 1e-8, "momentum": 0.5}, 8, 32
    )
    assert rmsprop.hyperparameters == pytest.approx(
        {"lr": 0.02, "alpha": 0.96059601, "eps": 5e-9, "momentum": 0.5}
    )
    lion = scaled_hyperparameters(
        "Lion", {"lr": 1e-4, "beta1": 0.9, "beta2": 0.99, "weight_decay": 1.0}, 8, 32
    )
    assert lion.hyperparameters == pytest.approx(
        {"lr": 2e-4, "beta1": 0.6561, "beta2": 0.96059601, "weight_decay": 2.0}
    )


def test_auto_follows_the_optimizer_and_the_evidence() -> None:
    def rule(name: str, **evidence: Any) -> str:
        return scaled_hyperparameters(name, {"lr": 0.1}, 8, 16, **evidence).rule

    assert rule("SGD") == "linear"
    assert rule("SGD", noise_scale=100.0) == "saturating"
    assert rule("SGD", critical_batch_size=100.0) == "saturating"
    assert rule("SGD", noise_scale=100.0, edge=0.5) == "linear"
    assert rule("SGD", noise_scale=100.0, edge=math.inf) == "saturating"
    assert rule("AdamW", edge=0.5) == "sqrt"
    assert rule("AdamW") == rule("AdamW", noise_scale=100.0) == rule("Mystery") == "sqrt"


def test_a_critical_batch_size_takes_the_place_of_the_noise_scale() -> None:
    both = scaled_hyperparameters(
        "SGD", {"lr": 0.1}, 100, 300, noise_scale=5000.0, critical_batch_size=300.0
    )
    assert both.after("lr") == pytest.approx(0.2)  # (1 + 3) / (1 + 1)


def test_no_rate_passes_the_edge_and_the_report_says_so() -> None:
    report = scaled_hyperparameters("SGD", {"lr": 0.1}, 8, 64, rule="linear", edge=0.3)
    assert report.after("lr") == pytest.approx(0.3, rel=1e-12)
    assert not report.valid
    assert any(
        "asks for a rate of 0.8, above the measured edge of 0.3" in w for w in report.warnings
    )
    below = scaled_hyperparameters("SGD", {"lr": 0.1}, 8, 16, rule="linear", edge=0.3)
    assert below.after("lr") == 0.2


def test_the_edge_holds_the_rate_that_makes_up_for_a_shorter_momentum() -> None:
    report = scaled_hyperparameters(
        "SGD", {"lr": 0.1, "momentum": 0.9}, 8, 32, rule="linear", momentum="examples", edge=0.5
    )
    assert report.after("lr") == pytest.approx(0.5, rel=1e-12)


@pytest.mark.parametrize("name", ["noise_scale", "critical_batch_size"])
def test_past_the_evidence_the_report_is_outside_validity(name: str) -> None:
    evidence: dict[str, Any] = {name: 64.0}
    inside = scaled_hyperparameters("SGD", {"lr": 0.1}, 8, 64, **evidence)
    outside = scaled_hyperparameters("SGD", {"lr": 0.1}, 8, 65, **evidence)
    back = scaled_hyperparameters("SGD", {"lr": 0.1}, 65, 8, **evidence)
    assert inside.valid
    assert inside.warnings == ()
    for report in (outside, back):
        assert not report.valid
        assert report.warnings[0].startswith("outside validity: 65 examples are above the")


def test_without_evidence_nothing_is_called_valid() -> None:
    report = scaled_hyperparameters("SGD", {"lr": 0.1}, 8, 16)
    assert not report.valid
    assert {change.validity for change in report.changes} == {Validity.UNCHECKED}
    assert report.warnings[0].startswith("not checked: pass `critical_batch_size`")


def test_a_first_beta_without_a_step_of_memory_is_outside_validity() -> None:
    """kappa (1 - beta1) = 1 at kappa = 10."""
    evidence: dict[str, Any] = {"critical_batch_size": 1e6}
    at_ten = scaled_hyperparameters("Adam", ADAMW, 8, 80, **evidence)
    at_nine = scaled_hyperparameters("Adam", ADAMW, 8, 72, **evidence)
    assert at_nine.valid
    assert not at_ten.valid
    assert at_ten.warnings[0].startswith("outside validity: beta1 would forget within one step")


@pytest.mark.parametrize(
    ("name", "rule", "advice"),
    [("AdamW", "linear", "sqrt"), ("AdamW", "adascale", "sqrt"), ("SGD", "surge", "saturating")],
)
def test_a_rule_for_other_steps_is_applied_but_not_called_valid(
    name: str, rule: Any, advice: str
) -> None:
    report = scaled_hyperparameters(name, {"lr": 0.1}, 8, 16, rule=rule, noise_scale=1e4)
    assert not report.valid
    assert f"Use rule='{advice}'" in report.warnings[0]
    assert report.after("lr") > 0.1


@pytest.mark.parametrize("name", ["Adagrad", "LARS", "LAMB"])
def test_a_rule_that_was_tried_but_not_derived_is_unchecked(name: str) -> None:
    report = scaled_hyperparameters(name, {"lr": 0.1}, 8, 16, noise_scale=1e4)
    assert report.changes[0].validity is Validity.UNCHECKED
    assert "tried but not derived" in report.changes[0].why


@pytest.mark.parametrize("name", ["SGD", "AdamW", "Adagrad", "LAMB"])
def test_staying_changes_nothing_and_is_valid(name: str) -> None:
    report = scaled_hyperparameters(name, ADAMW, 64, 64)
    assert report.valid
    assert report.warnings == ()
    assert all(change.before == change.after for change in report.changes)


def test_an_average_without_memory_is_valid_where_the_size_stays() -> None:
    assert scaled_hyperparameters("AdamW", {**ADAMW, "beta1": 0.0}, 64, 64).valid


def test_an_unknown_optimizer_says_which_parts_were_not_scaled() -> None:
    report = scaled_hyperparameters("AdamZ", {"lr": 0.1, "rho": 0.9, "off": 0.0}, 8, 32)
    assert report.after("lr") == 0.2
    assert report.not_scaled == ("rho", "the optimizer's state")
    assert not report.valid
    assert "AdamZ is of unknown kind: only its rate was scaled" in report.warnings[-1]
    assert "Adam" in report.warnings[-1]


def test_settings_that_count_steps_are_named() -> None:
    report = scaled_hyperparameters("Adagrad", {"lr": 0.1, "lr_decay": 1e-3}, 8, 16)
    assert report.not_scaled == ("lr_decay",)
    assert scaled_hyperparameters("Adagrad", {"lr": 0.1, "lr_decay": 0.0}, 8, 16).not_scaled == ()


def test_the_report_prints_one_line_for_each_setting() -> None:
    text = str(scaled_hyperparameters("AdamW", ADAMW, 64, 256, noise_scale=100.0, edge=1.5e-3))
    lines = text.splitlines()
    assert lines[0] == "AdamW: batch size 64 -> 256 (rule sqrt)"
    assert lines[1].split() == ["parameter", "from", "to", "valid", "why"]
    assert lines[2].split()[:4] == ["lr", "0.001", "0.0015", "no"]
    assert [line.split()[0] for line in lines[3:7]] == ["beta1", "beta2", "eps", "weight_decay"]
    assert sum(line.startswith("outside validity") for line in lines) == 2


@pytest.mark.parametrize(
    ("option", "value", "match"),
    [
        ("rule", "cubic", "got rule='cubic'"),
        ("momentum", "half", "got momentum='half'"),
        ("first_beta", "half", "got first_beta='half'"),
        ("noise_scale", -1.0, "got noise_scale=-1.0"),
        ("noise_scale", math.nan, "got noise_scale=nan"),
        ("critical_batch_size", 0.0, "got critical_batch_size=0.0"),
        ("edge", -0.5, "got edge=-0.5"),
    ],
)
def test_an_option_out_of_range_is_refused(option: str, value: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        scaled_hyperparameters("SGD", {"lr": 0.1}, 8, 16, **{option: value})


def test_sizes_and_rates_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="got to_batch_size=0"):
        scaled_hyperparameters("SGD", {"lr": 0.1}, 8, 0)
    with pytest.raises(ValueError, match="must have a learning rate 'lr', got momentum"):
        scaled_hyperparameters("SGD", {"momentum": 0.9}, 8, 16)
    with pytest.raises(ValueError, match="saturating rule, got noise_scale=None"):
        scaled_hyperparameters("SGD", {"lr": 0.1}, 8, 16, rule="saturating")
    with pytest.raises(KeyError, match="no 'beta1' of group 0, only lr"):
        scaled_hyperparameters("SGD", {"lr": 0.1}, 8, 16).after("beta1")
