"""What holds for every built-in task. Oracle: the rows themselves, and bits that must agree."""

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from rightbatch.errors import DataUnavailable
from rightbatch.task import Task
from rightbatch.tasks import BUILT_IN
from tests.tasks.small_files import write_bikes, write_mnist, write_shakespeare

NAMES = list(BUILT_IN)
Make = Callable[..., Task]


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small data files in place of the public ones."""
    for write in (write_mnist, write_bikes, write_shakespeare):
        write(tmp_path)
    monkeypatch.setenv("RIGHTBATCH_DATA", str(tmp_path))


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest, small: None) -> str:
    return request.param


@pytest.fixture
def task(name: str) -> Task:
    return BUILT_IN[name].factory(device="cpu")


def test_one_seed_gives_one_model_bit_for_bit_and_leaves_the_random_state(name: str) -> None:
    make = BUILT_IN[name].factory
    before = torch.get_rng_state()
    first = make(seed=5, device="cpu")
    torch.testing.assert_close(torch.get_rng_state(), before, rtol=0, atol=0)
    torch.rand(3)
    second, other = make(seed=5, device="cpu"), make(seed=6, device="cpu")
    pairs = list(zip(first.parameters, second.parameters, strict=True))
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not all(
        torch.equal(a, b) for a, b in zip(first.parameters, other.parameters, strict=True)
    )
    assert torch.get_default_dtype() == torch.float64


def test_the_seed_does_not_change_the_examples(name: str) -> None:
    make = BUILT_IN[name].factory
    first, second = make(seed=5, device="cpu"), make(seed=6, device="cpu")
    columns = zip(first.source.dataset.columns, second.source.dataset.columns, strict=True)
    assert all(torch.equal(a, b) for a, b in columns)


def test_everything_computes_in_float32_whatever_the_default(task: Task) -> None:
    assert {p.dtype for p in task.parameters} == {torch.float32}
    batch = next(task.batches(8))
    assert {part.dtype for part in batch} <= {torch.float32, torch.int64}
    assert task.loss(batch)[0].dtype == torch.float32


def test_an_epoch_of_batches_is_the_rows_of_the_data_set(task: Task) -> None:
    def rows(columns: tuple[torch.Tensor, ...]) -> Counter[bytes]:
        parts = [column.reshape(len(column), -1).numpy() for column in columns]
        return Counter(
            b"|".join(part.tobytes() for part in row) for row in zip(*parts, strict=True)
        )

    drawn: Counter[bytes] = Counter()
    for batch in task.batches(33, seed=1, epochs=1):
        drawn += rows(batch)
    assert drawn == rows(task.source.dataset.columns)
    assert drawn.total() == task.num_examples


def test_registry_says_what_the_task_says(name: str, task: Task) -> None:
    entry = BUILT_IN[name]
    assert (task.name, task.batch_size) == (name, entry.batch_size)
    assert task.evaluate is not None
    assert not entry.reached(task.evaluate(task.model))
    assert entry.description.count(". ") == 0
    assert entry.description.endswith(".")


def test_a_target_is_reached_from_its_good_side() -> None:
    assert BUILT_IN["digits"].reached(0.96)
    assert not BUILT_IN["digits"].reached(0.95)
    assert BUILT_IN["bikes"].reached(0.32)
    assert not BUILT_IN["bikes"].reached(0.33)


def test_preflight_finds_nothing_to_say(task: Task) -> None:
    assert task.check() == ()


def test_a_few_steps_lower_the_loss_of_their_batch(task: Task) -> None:
    batch = next(task.batches(6))
    before = task.loss(batch)[0].item()
    for _ in range(6):
        task.step(batch)
    assert task.loss(batch)[0].item() < 0.999 * before


def test_evaluating_leaves_mode_and_random_state_alone(task: Task) -> None:
    first = next(m for m in task.model.modules() if m is not task.model)
    task.model.train()
    first.eval()
    flags = [m.training for m in task.model.modules()]
    before = torch.get_rng_state()
    assert task.evaluate is not None
    assert task.evaluate(task.model) == task.evaluate(task.model)
    assert [m.training for m in task.model.modules()] == flags
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", [name for name in NAMES if BUILT_IN[name].data_file])
def test_a_missing_file_says_which_and_where(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = BUILT_IN[name].data_file
    assert file is not None
    monkeypatch.setenv("RIGHTBATCH_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nobody listens there
    with pytest.raises(DataUnavailable, match=f"{file.name!r} is not here.*put .* in '"):
        BUILT_IN[name].factory()


def test_public_digests_are_sha256() -> None:
    digests = [entry.data_file.sha256 for entry in BUILT_IN.values() if entry.data_file]
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in digests)
    assert len(set(digests)) == 3


def documented(make: Make) -> set[str]:
    return set(re.findall(r"\d[\d,]*", make.__doc__ or ""))


@pytest.mark.data
@pytest.mark.parametrize("name", NAMES)
def test_numbers_in_docstring_and_description_are_those_of_the_real_task(name: str) -> None:
    entry = BUILT_IN[name]
    task = entry.factory(device="cpu")
    parameters = sum(p.numel() for p in task.parameters)
    assert {f"{parameters:,}", f"{task.num_examples:,}", str(task.batch_size)} <= documented(
        entry.factory
    )
    assert entry.description.startswith(f"{task.num_examples:,} ")
    assert task.check() == ()
