"""What counts as the same. Oracle: a law (a thing made again is the same, a changed one is not)."""

import functools
import re
import threading
from collections import deque
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from rightbatch.hardware.identity import CannotIdentify, identify


def closing_over(value):
    return lambda: value


def defaulting_to(value):
    return lambda x=value: x


def with_setting(value):
    function = closing_over(0)
    function.__dict__["setting"] = value
    return function


def of_class(value):
    return type("Made", (), {"setting": value, "forward": closing_over(value)})


def tied(yes):
    one, other = nn.Linear(2, 2), nn.Linear(2, 2)
    if yes:
        other.weight = one.weight
    return nn.Sequential(one, other)


def scheduled(size):
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
    return torch.optim.lr_scheduler.StepLR(optimizer, size)


@pytest.mark.parametrize(
    ("make", "one", "other"),
    [
        (closing_over, 1, 2),
        (closing_over, True, 1),
        (closing_over, {"a": 1}, {"a": 2}),
        (closing_over, torch.zeros(2), torch.zeros(3)),
        (closing_over, torch.float16, torch.bfloat16),
        (defaulting_to, 1, 2),
        (with_setting, 1, 2),
        (of_class, 1, 2),
        (re.compile, "a", "b"),
        (Path, "a", "b"),
        (deque, [1], [2]),
        (lambda n: functools.partial(nn.functional.dropout, p=n), 0.1, 0.2),
        (lambda n: torch.zeros(4, 4)[:, :n].contiguous(), 2, 3),
        (lambda on: torch.zeros(1, 4, 2, 2).to(memory_format=on), torch.channels_last,
         torch.contiguous_format),
        (lambda n: np.zeros(n), 2, 3),
        (lambda n: list(range(n)), 5000, 5001),
        (lambda n: {"x": list(range(n))}, 3, 4),
        (lambda n: bytes([n]), 1, 2),
        (tied, False, True),
        (scheduled, 1, 2),
    ],
)  # fmt: skip
def test_made_again_it_is_the_same_and_changed_it_is_another(make, one, other):
    assert identify(make(one)) == identify(make(one))
    assert identify(make(one)) != identify(make(other))


@pytest.mark.parametrize("make", [threading.Lock, torch.Generator, lambda: {"a", "b"}])
def test_what_says_nothing_or_has_no_order_is_the_same(make):
    assert identify([make()]) == identify([make()])


def test_the_values_of_tensors_do_not_count():
    assert identify(torch.zeros(3)) == identify(torch.ones(3))


def test_what_holds_itself_has_an_end():
    ring: list[object] = [1]
    ring.append(ring)
    assert identify(ring) == identify(ring)


def test_comments_do_not_count():
    def made(text: str):
        names: dict[str, object] = {"__name__": "made"}
        exec(text, names)
        return names["f"]

    plain, commented = made("def f(x):\n return x"), made("# said\n\ndef f(x):\n return x  # so")
    assert identify(plain) == identify(commented)
    assert identify(plain) != identify(made("def f(x):\n return -x"))


@pytest.mark.parametrize("thing", [(i for i in range(3)), {"deep": [threading.Event, iter(())]}])
def test_what_cannot_be_taken_apart_is_said(thing):
    if isinstance(thing, dict):
        thing = functools.reduce(lambda inner, _: [inner], range(5000), thing)
    with pytest.raises(CannotIdentify, match=r"generator cannot be taken apart|nested too deeply"):
        identify(thing)
