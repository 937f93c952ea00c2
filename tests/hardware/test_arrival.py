"""Tasks that do not arrive in another process, and what lies in its way. Oracle: known errors."""

import os
import sys

import pytest
import torch
from torch import Tensor, nn

from rightbatch.hardware import measure_memory
from rightbatch.hardware.isolation import CannotIsolate, Isolated
from rightbatch.task import Task

MIB = 2**20
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("float32")]


def mean(model, batch: Tensor) -> Tensor:
    return model(batch).square().mean()


def task_of(loss=mean, **attributes) -> Task:
    model = nn.Linear(5, 5)
    vars(model).update(attributes)
    return Task(model, torch.optim.SGD(model.parameters(), lr=0.1), torch.ones(100, 5), loss)


def outcome_of(task: Task) -> str:
    with Isolated(task) as isolated:
        return isolated.try_size(8, budget_bytes=64 * MIB).outcome


class Delegating:
    """Knows where to delegate only once it is made, and so never is."""

    def __init__(self, inner) -> None:
        self.inner = inner

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def __call__(self, model, batch):
        return self.inner(model(batch), batch)


class Made:
    """Pickled by what is to be called there."""

    def __init__(self, function, *arguments) -> None:
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def raise_oddly(words):
    raise ValueError(words)


def test_what_cannot_be_made_again_there_is_tried_here():
    profile = measure_memory(task_of(Delegating(nn.MSELoss())), budget_bytes=64 * MIB)
    assert profile.max_verified_batch_size == 100
    (note,) = (note for note in profile.notes if "Tried in this process" in note)
    assert "got RecursionError" in note


@pytest.mark.parametrize(
    ("thing", "words"),
    [
        (Made(raise_oddly, "no group"), "ready .* got ValueError: no group"),
        (Made(os._exit, 5), "exit status 5: no last words"),
    ],
    ids=["raises", "exits"],
)
def test_an_end_before_the_first_step_is_no_batch_too_large(thing, words):
    with pytest.raises(CannotIsolate, match=words):
        outcome_of(task_of(thing=thing))


def fail_below(model, batch):
    return batch.view(7, 11)


def test_an_error_tells_where_in_the_tasks_code_it_came_from():
    with pytest.raises(RuntimeError, match=r"\[7, 11\]") as caught:
        outcome_of(task_of(fail_below))
    (note,) = caught.value.__notes__
    assert "in fail_below" in note
    assert "return batch.view(7, 11)" in note


def test_modules_in_the_working_folder_shadow_none_of_the_libraries(tmp_path, monkeypatch):
    for name in ("tokenize", "json"):
        (tmp_path / f"{name}.py").write_text("SPECIALS = []\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    assert outcome_of(task_of()) == "ok"


def test_modules_are_looked_for_as_here_from_the_first_on(tmp_path, monkeypatch):
    """Before anything is imported there: this one is told of by none that comes later."""
    (tmp_path / "cloudpickle.py").write_text("raise SystemExit('mine came first')\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    with pytest.raises(CannotIsolate, match="mine came first"):
        outcome_of(task_of())
