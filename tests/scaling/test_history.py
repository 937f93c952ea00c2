"""Oracles: what was scaled once is not scaled again, and groups that join later keep up."""

import io
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import SGD, Optimizer

import rightbatch as rb
from rightbatch.scaling import batch_size_set_for
from tests.scaling.test_live import settings, two_groups


def sgd(*rates: float, **options: Any) -> Optimizer:
    groups = [{"params": [nn.Parameter(torch.ones(1))], "lr": rate} for rate in rates]
    return SGD(groups, lr=1.0, **options)


def rates_of(optimizer: Optimizer) -> list[float]:
    return [float(group["lr"]) for group in optimizer.param_groups]


def join(optimizer: Optimizer, rate: float) -> None:
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))], "lr": rate})


@pytest.mark.parametrize("from_size", [64, 128, 512])
def test_another_size_than_the_one_it_is_set_for_is_refused(from_size: int) -> None:
    optimizer = two_groups("AdamW")
    rb.scale_hyperparameters(optimizer, 64, 256)
    before = settings(optimizer)
    with pytest.raises(ValueError, match=f"got from_batch_size={from_size} and .* set for 256"):
        rb.scale_hyperparameters(optimizer, from_size, 1024)
    assert settings(optimizer) == before


def test_what_was_set_by_hand_starts_anew_without_its_memory() -> None:
    optimizer = sgd(0.1)
    rb.scale_hyperparameters(optimizer, 64, 256, rule="linear", edge=0.2)
    optimizer.param_groups[0]["lr"] = 0.1
    del optimizer.param_groups[0]["batch_size_scaling"]
    rb.scale_hyperparameters(optimizer, 64, 128, rule="linear")
    assert rates_of(optimizer) == pytest.approx([0.2])


def test_an_optimizer_knows_what_size_it_is_set_for() -> None:
    optimizer = sgd(0.01)
    assert batch_size_set_for(optimizer) is None
    rb.scale_hyperparameters(optimizer, 8, 32)
    assert batch_size_set_for(optimizer) == 32
    join(optimizer, 0.01)
    assert batch_size_set_for(optimizer) == 32
    optimizer.param_groups[1]["batch_size_scaling"] = {"batch_size": 8}
    assert batch_size_set_for(optimizer) is None


def test_a_group_that_joins_keeps_its_ratio_to_the_others_over_a_cap() -> None:
    """0.1 at 64 is cut to 0.3 at 512, where a group of 0.6 joins: twice the rate from then on."""
    optimizer = sgd(0.1)
    rb.scale_hyperparameters(optimizer, 64, 512, rule="linear", edge=0.3)
    join(optimizer, 0.6)
    rb.scale_hyperparameters(optimizer, 512, 128, rule="linear", edge=0.3)
    assert rates_of(optimizer) == pytest.approx([0.2, 0.4])
    rb.scale_hyperparameters(optimizer, 128, 512, rule="linear", edge=0.3)
    assert rates_of(optimizer) == pytest.approx([0.3, 0.6])
    rb.scale_hyperparameters(optimizer, 512, 64, rule="linear")
    assert rates_of(optimizer) == pytest.approx([0.1, 0.2])


def test_averages_of_a_group_that_joins_count_from_the_size_of_then() -> None:
    optimizer = torch.optim.AdamW([nn.Parameter(torch.ones(1))], lr=0.01, weight_decay=0.1)
    rb.scale_hyperparameters(optimizer, 64, 256)
    join(optimizer, 0.03)
    rb.scale_hyperparameters(optimizer, 256, 512)
    first, joined = optimizer.param_groups
    assert first["betas"][1] == pytest.approx(0.999**8)
    assert joined["betas"][1] == pytest.approx(0.999**2)
    assert joined["lr"] == pytest.approx(0.03 * 2**0.5)
    assert joined["weight_decay"] == pytest.approx(0.1 * 2**0.5)


@pytest.mark.parametrize("name", ["SGD", "AdamW", "RMSprop"])
def test_staying_changes_nothing_whatever_is_known_since(name: str) -> None:
    optimizer = two_groups(name)
    rb.scale_hyperparameters(optimizer, 64, 1024, noise_scale=5000.0)
    before = settings(optimizer)
    known: dict[str, Any] = {"noise_scale": 100.0, "momentum": "examples"}
    report = rb.scale_hyperparameters(optimizer, 1024, 1024, first_beta="examples", **known)
    assert settings(optimizer) == before
    assert all(change.before == change.after for change in report.changes)
    assert report.valid
    assert report.warnings == ()
    rb.scale_hyperparameters(optimizer, 1024, 64)
    assert settings(optimizer) == pytest.approx(settings(two_groups(name)), rel=1e-12)


def test_staying_is_where_a_given_rate_and_an_edge_still_count() -> None:
    optimizer = sgd(0.1)
    rb.scale_hyperparameters(optimizer, 64, 256, rule="linear")
    rb.scale_hyperparameters(optimizer, 256, 256, edge=0.3)
    assert rates_of(optimizer) == pytest.approx([0.3])
    rb.scale_hyperparameters(optimizer, 256, 256, learning_rate=0.2)
    assert rates_of(optimizer) == pytest.approx([0.2])


def test_a_momentum_that_became_0_comes_back() -> None:
    optimizer = sgd(0.1, momentum=0.9)
    options: dict[str, Any] = {"momentum": "examples", "rule": "linear"}
    rb.scale_hyperparameters(optimizer, 1, 8192, **options)
    assert optimizer.param_groups[0]["momentum"] == 0.0
    rb.scale_hyperparameters(optimizer, 8192, 1, **options)
    group = optimizer.param_groups[0]
    assert (group["momentum"], group["lr"]) == pytest.approx((0.9, 0.1), rel=1e-12)


def test_a_rate_and_an_edge_are_those_of_the_first_group_that_trains() -> None:
    frozen_first = sgd(0.0, 0.1, 0.2)
    rb.scale_hyperparameters(frozen_first, 64, 256, learning_rate=0.3)
    assert rates_of(frozen_first) == pytest.approx([0.0, 0.3, 0.6])
    rb.scale_hyperparameters(frozen_first, 256, 1024, rule="linear", edge=0.4)
    assert rates_of(frozen_first) == pytest.approx([0.0, 0.4, 0.8])
    all_frozen = sgd(0.0, 0.0)
    rb.scale_hyperparameters(all_frozen, 64, 256, learning_rate=0.3, edge=0.2)
    assert rates_of(all_frozen) == [0.0, 0.0]


def test_one_tensor_cannot_hold_two_rates() -> None:
    """With another momentum each, keeping lr / (1 - momentum) needs another rate each."""
    rate = torch.tensor(0.1)
    optimizer = SGD(
        [
            {"params": [nn.Parameter(torch.ones(1))], "momentum": momentum}
            for momentum in (0.5, 0.9)
        ],
        lr=rate,
    )
    with pytest.raises(ValueError, match="groups 0 and 1 share one tensor as 'lr', and must have"):
        rb.scale_hyperparameters(optimizer, 64, 128, momentum="examples")
    assert rate.item() == pytest.approx(0.1)
    rb.scale_hyperparameters(optimizer, 64, 128, rule="linear")
    assert rate.item() == pytest.approx(0.2)


def test_numbers_of_numpy_leave_a_state_that_can_be_loaded() -> None:
    optimizer = two_groups("AdamW")
    sizes: Any = np.int64(64), np.int64(256)
    known: Any = {"noise_scale": np.float64(1e4), "learning_rate": np.float32(0.25)}
    report = rb.scale_hyperparameters(optimizer, *sizes, **known)
    assert str(report).startswith("AdamW: batch size 64 -> 256")
    saved = io.BytesIO()
    torch.save(optimizer.state_dict(), saved)
    saved.seek(0)
    two_groups("AdamW").load_state_dict(torch.load(saved, weights_only=True))
    assert rates_of(optimizer) == [0.25, 0.75]


def test_a_rate_of_numpy_is_a_rate() -> None:
    optimizer = sgd(np.float32(0.25))  # pyright: ignore[reportArgumentType]
    rb.scale_hyperparameters(optimizer, 64, 128, rule="linear")
    assert rates_of(optimizer) == [0.5]


def test_a_rate_without_end_is_refused_and_an_edge_without_end_is_none() -> None:
    optimizer = sgd(0.1)
    with pytest.raises(ValueError, match="`learning_rate` must be finite, got learning_rate=inf"):
        rb.scale_hyperparameters(optimizer, 64, 128, learning_rate=float("inf"))
    rb.scale_hyperparameters(optimizer, 64, 128, rule="linear", edge=float("inf"))
    assert rates_of(optimizer) == [0.2]
