import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import rightbatch as rb
from rightbatch.hardware.cache import MeasurementCache, fingerprint
from rightbatch.results import MemoryPoint, MemoryProfile, Status
from rightbatch.task import Task
from rightbatch.testing import QuadraticTask
from tests.laws import assert_world_unchanged
from tests.zoo import WORKING, Specimen

PROFILE = MemoryProfile(
    max_verified_batch_size=8,
    upper_bound=9,
    budget_bytes=100,
    points=(MemoryPoint(batch_size=8, peak_bytes=90, source="real", outcome="ok"),),
    status=Status.OK,
)


def perceptron(
    width=4, *, activation=nn.ReLU, rate=0.1, momentum=0.9, batch_size=4, rows=10, **options
):
    model = nn.Sequential(nn.Linear(3, width), activation(), nn.Linear(width, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=momentum)
    return Task(
        model,
        optimizer,
        torch.zeros(rows, 3),
        lambda model, x: model(x).mean(),
        batch_size=batch_size,
        **options,
    )


@pytest.fixture
def told():
    return []


@pytest.fixture
def cache(tmp_path: Path, told):
    return MeasurementCache(tmp_path / "kept", say=told.append)


def test_what_was_kept_comes_back(cache, told):
    task = perceptron()
    assert cache.get("memory", task, seed=0) is None
    cache.put("memory", PROFILE, task, seed=0)
    assert cache.get("memory", perceptron(), seed=0) == PROFILE
    assert len(told) == 1
    assert "--fresh measures again" in told[0]


@pytest.mark.parametrize(
    "changed",
    [
        {"width": 5},
        {"activation": nn.GELU},
        {"momentum": 0.0},
        {"batch_size": 5},
        {"rows": 11},
        {"clip_grad_norm": 1.0},
        {"max_batch_size": 7},
    ],
    ids=str,
)
def test_whatever_the_answer_depends_on_makes_another_entry(cache, changed):
    cache.put("memory", PROFILE, perceptron(), seed=0)
    assert cache.get("memory", perceptron(**changed), seed=0) is None


def test_the_rate_and_the_weights_do_not_matter():
    torch.manual_seed(1)
    first = fingerprint(perceptron(rate=0.1))
    torch.manual_seed(2)
    assert fingerprint(perceptron(rate=0.7)) == first


def test_flags_and_switches_make_another_entry():
    task = perceptron()
    plain = fingerprint(task, seed=0)
    assert fingerprint(task, seed=1) != plain
    torch.use_deterministic_algorithms(True)
    try:
        assert fingerprint(task, seed=0) != plain
    finally:
        torch.use_deterministic_algorithms(False)
    task.model[1].eval()
    assert fingerprint(task, seed=0) != plain


def measured(model=None, loss=None, data=None, **options):
    model = model or nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data = torch.zeros(10, 3) if data is None else data
    return Task(model, optimizer, data, loss or (lambda model, x: model(x).mean()), **options)


def with_attribute(**attributes):
    model = nn.Linear(3, 1)
    for name, value in attributes.items():
        setattr(model, name, value)
    return measured(model)


def with_heads(heads):
    def loss(model, x):
        return model(x[:, None], x[:, None], x[:, None])[0].mean()

    return measured(nn.MultiheadAttention(4, heads), loss, torch.zeros(10, 4))


def cast_to(dtype):
    def loss(model, x):
        with torch.autocast("cpu", dtype):
            return model(x).mean()

    return measured(loss=loss)


def with_criterion(criterion):
    data = [(torch.zeros(3), 0)] * 10
    return measured(nn.Linear(3, 2), rb.supervised(criterion), data)


class Rows:
    """A data set with a setting, and with code."""

    def __init__(self, side):
        self.side = side

    def __len__(self):
        return 10

    def __getitem__(self, index):
        return torch.zeros(3)


class DoubledRows(Rows):
    def __getitem__(self, index):
        return torch.zeros(6)[:3]


def renamed(kind):
    """The same class with other code, as after an edit."""
    members = {k: v for k, v in vars(kind).items() if k not in ("__dict__", "__weakref__")}
    return type("Rows", (), {**vars(Rows), **members, "__qualname__": "Rows", "__dict__": {}})


def loaded(**options):
    return measured(data=torch.utils.data.DataLoader(torch.zeros(10, 3), batch_size=2, **options))  # pyright: ignore[reportArgumentType]


def with_hook(hooked):
    model = nn.Linear(3, 1)
    if hooked:
        model.register_forward_hook(lambda *_: None)
    return measured(model)


def weighed(scale):
    return measured(weight=lambda batch: scale * len(batch))


def worst(longest):
    return measured(worst_case=lambda size: torch.zeros(size, longest))


SIDE = 3


def reads_a_global(model, x):
    return model(x).mean() * SIDE


@pytest.mark.parametrize(
    ("make", "one", "other"),
    [
        (lambda on: with_attribute(gradient_checkpointing=on), False, True),
        (with_heads, 1, 4),
        (cast_to, torch.bfloat16, torch.float16),
        (with_criterion, nn.functional.cross_entropy, nn.CrossEntropyLoss(label_smoothing=0.1)),
        (with_criterion, nn.CrossEntropyLoss(), nn.CrossEntropyLoss(label_smoothing=0.1)),
        (with_criterion, nn.functional.cross_entropy, nn.functional.multi_margin_loss),
        (worst, 3, 300),
        (weighed, 1, 2),
        (lambda n: loaded(num_workers=1, prefetch_factor=n), 2, 8),
        (lambda side: measured(data=Rows(side)), 32, 224),
        (lambda kind: measured(data=renamed(kind)(3)), Rows, DoubledRows),
        (with_hook, False, True),
        (lambda n: with_attribute(scale=np.int64(n)), 1, 2),
    ],
    ids=[
        "checkpointing", "heads", "autocast", "criterion", "smoothing", "function", "worst case",
        "weight", "prefetch", "setting of the data", "code of the data", "hook", "number of numpy",
    ],
)  # fmt: skip
def test_settings_that_no_source_shows_make_another_entry(make, one, other):
    assert fingerprint(make(one)) == fingerprint(make(one))
    assert fingerprint(make(one)) != fingerprint(make(other))


def test_a_global_that_the_loss_reads_counts(monkeypatch):
    plain = fingerprint(measured(loss=reads_a_global))
    monkeypatch.setitem(globals(), "SIDE", 4)
    assert fingerprint(measured(loss=reads_a_global)) != plain


@pytest.mark.parametrize("name", ["MALLOC_ARENA_MAX", "OMP_WAIT_POLICY", "LD_PRELOAD"])
def test_how_the_process_allocates_and_computes_counts(monkeypatch, name):
    monkeypatch.delenv(name, raising=False)
    plain = fingerprint(perceptron())
    monkeypatch.setenv(name, "2")
    assert fingerprint(perceptron()) != plain


def test_a_launch_is_not_told_from_another(monkeypatch):
    """`torchrun` numbers its launches in the environment."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    first = fingerprint(perceptron())
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "2")
    assert fingerprint(perceptron()) == first


def test_what_cannot_be_taken_apart_is_not_kept(cache, told, tmp_path):
    with (tmp_path / "log").open("w") as file:
        task = with_attribute(log=file)
        assert cache.get("memory", task) is None
        cache.put("memory", PROFILE, task)
    assert cache.get("memory", task) is None
    (line,) = told
    assert line.startswith("memory: not kept for the next time (")
    assert "TextIOWrapper cannot be taken apart" in line
    assert not (tmp_path / "kept").exists()


def test_what_measuring_makes_is_not_part_of_the_name(cache):
    """A model that makes a table at its first step is asked for before that."""
    task = with_attribute(table=None)
    assert cache.get("memory", task) is None
    task.model.table = torch.zeros(3)
    cache.put("memory", PROFILE, task)
    assert cache.get("memory", with_attribute(table=None)) == PROFILE


def test_another_process_gives_the_same_name():
    """Neither addresses nor the order of sets, which each process salts, are part of it."""
    text = (
        "from tests.hardware.test_cache import *\n"
        "task = with_attribute(kinds={'a', 'b', 'c', 'd'}, loss=nn.functional.relu)\n"
        "names = fingerprint(task), fingerprint(measured(data=Rows(3)))\n"
        "print(*names, fingerprint(WORKING[0].make()))"
    )
    names = {
        subprocess.run(
            [sys.executable, "-c", text],
            env={**os.environ, "PYTHONHASHSEED": salt},
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for salt in ("1", "2")
    }
    (printed,) = names
    assert len(printed.split()) == 3


def test_the_code_of_the_model_and_the_loss_counts():
    def made(loss, body):
        kind = type("Net", (nn.Linear,), {"forward": body})
        model = kind(3, 1)
        return Task(model, torch.optim.SGD(model.parameters(), lr=1.0), torch.zeros(9, 3), loss)

    def once(self, x):
        return nn.Linear.forward(self, x)

    one = fingerprint(made(lambda m, x: m(x).mean(), once))
    assert fingerprint(made(lambda m, x: m(x).square().mean(), once)) != one


@pytest.mark.parametrize("text", ["", "{", '{"schema": "rightbatch/0"}', "[]"])
def test_a_damaged_entry_is_dropped_with_one_line(cache, told, tmp_path, text):
    task = perceptron()
    cache.put("memory", PROFILE, task)
    (path,) = (tmp_path / "kept").iterdir()
    path.write_text(text)
    assert cache.get("memory", task) is None
    assert not path.exists()
    assert len(told) == 1
    assert told[0].startswith("memory: an earlier measurement was dropped, it cannot be read")


def test_an_old_entry_is_dropped_with_one_line(cache, told, tmp_path):
    task = perceptron()
    cache.put("memory", PROFILE, task)
    (path,) = (tmp_path / "kept").iterdir()
    os.utime(path, (0, 0))
    assert cache.get("memory", task) is None
    assert "days old" in told[0]


def test_fresh_takes_nothing_and_keeps_what_is_measured(tmp_path):
    old, new = MeasurementCache(tmp_path), MeasurementCache(tmp_path, fresh=True)
    task = perceptron()
    old.put("memory", PROFILE, task)
    assert new.get("memory", task) is None
    assert old.get("memory", task) == PROFILE


@pytest.mark.parametrize("status", [Status.OUT_OF_TIME, Status.LEAK])
def test_what_did_not_come_to_its_end_is_not_kept(cache, status):
    task = perceptron()
    cache.put("memory", MemoryProfile(**{**vars_of(PROFILE), "status": status}), task)
    assert cache.get("memory", task) is None


def vars_of(profile):
    return {name: getattr(profile, name) for name in profile.__dataclass_fields__}


def test_a_folder_that_cannot_be_written_is_said_once(tmp_path, told):
    (tmp_path / "file").write_text("")
    cache = MeasurementCache(tmp_path / "file", say=told.append)
    cache.put("memory", PROFILE, perceptron())
    assert len(told) == 1
    assert "not kept for the next time" in told[0]


@pytest.mark.parametrize("specimen", WORKING, ids=str)
def test_naming_a_task_leaves_it_as_it_was(specimen: Specimen):
    task = specimen.make()
    name = fingerprint(task)

    def look():
        fingerprint(task)
        with task.preserved():  # the law wants to see the task at work
            for batch in itertools.islice(task.batches(2), 3):
                task.loss(batch)

    assert_world_unchanged(task, look, interrupt=False)
    assert fingerprint(task) == name


def test_find_asks_for_memory_and_throughput_and_keeps_what_it_measures():
    task, asked, kept = QuadraticTask(examples=64).task, [], []
    known = rb.measure_memory(task, isolate=False)

    class Known:
        def get(self, name, task, **flags):
            asked.append(name)
            return known if name == "memory" else None

        def put(self, name, result, task, **flags):
            kept.append((name, result))

    found = rb.find(task, time_budget_seconds=2, cache=Known())
    assert asked == ["memory", "throughput"]
    assert found.memory is known
    assert found.seconds["memory"] == 0
    assert kept == [("throughput", found.throughput)]
