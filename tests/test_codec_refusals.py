"""Results files that cannot be read: each is refused by its path or its key."""

from pathlib import Path
from typing import Any

import pytest

from rightbatch import _codec
from rightbatch.errors import ResultsError
from rightbatch.results import Results
from tests.results_samples import file_of, full


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match=r"no results file at .*absent\.json"):
        _codec.read(tmp_path / "absent.json", Results)


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match=r"cannot read .*Is a directory"):
        _codec.read(tmp_path, Results)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ResultsError, match=r"cannot read .*utf-8"):
        _codec.read(path, Results)


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9])
def test_a_truncated_file_is_refused(kept: float, tmp_path: Path) -> None:
    text = _codec.dumps(full())
    path = file_of(text[: int(len(text) * kept)], tmp_path)
    with pytest.raises(ResultsError, match=r"not complete JSON \(line \d+"):
        _codec.read(path, Results)


@pytest.mark.parametrize(
    ("plain", "match"),
    [
        ([1, 2], "has no `schema` key"),
        ("3", "has no `schema` key"),
        ({}, "has no `schema` key"),
        ({"schema": "rightbatch/2"}, "schema 'rightbatch/1', got 'rightbatch/2'"),
        ({"schema": None}, "schema 'rightbatch/1', got None"),
        ({"schema": "rightbatch/1"}, "lacks `task`"),
        ('{"schema": NaN}', "finite numbers only, got NaN"),
        ('{"schema": -Infinity}', "finite numbers only, got -Infinity"),
        ("9" * 5000, "cannot read"),
        ("[" * 100_000, "cannot read"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_is_no_results_file_is_refused(plain: Any, match: str, tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match=match):
        _codec.read(file_of(plain, tmp_path), Results)


@pytest.mark.parametrize(
    ("path", "value", "match"),
    [
        ("task", None, "`task` must be dict in a results file, got None"),
        ("task.parameters", "many", r"`task\.parameters` must be int .* got 'many'"),
        ("task.parameters", 1.5, r"`task\.parameters` must be int .* got 1\.5"),
        ("task.parameters", True, r"`task\.parameters` must be int .* got True"),
        ("task.warnings", "text", r"`task\.warnings` must be list .* got 'text'"),
        ("task.warnings", [3], r"`task\.warnings\[0\]` must be str .* got 3"),
        ("task.hyperparameters.lr", "0.1", r"`task\.hyperparameters\.lr` must be int or float"),
        ("environment", [], r"`environment` must be dict .* got \[\]"),
        ("noise", [1], r"`noise` must be dict .* got \[1\]"),
        ("noise.status", "fine", r"`noise\.status` must be one of ok, .* got 'fine'"),
        ("noise.status", [], r"`noise\.status` must be one of ok, .* got \[\]"),
        ("noise.low", None, r"`noise\.low` must be int or float .* got None"),
        ("noise.run", 3, r"`noise\.run` must be dict .* got 3"),
        ("noise.run.batch_size", "64", r"`noise\.run\.batch_size` must be int .* got '64'"),
        ("noise.track", {}, r"`noise\.track` must be list .* got {}"),
        ("noise.track.0.loss", "low", r"`noise\.track\[0\]\.loss` must be int or float .* 'low'"),
        ("learning_rate.race.0.steps", 0.5, r"`learning_rate\.race\[0\]\.steps` must be int"),
        ("plan.candidates.0.fits", 1, r"`plan\.candidates\[0\]\.fits` must be bool .* got 1"),
        ("plan.current", 3, r"`plan\.current` must be dict .* got 3"),
    ],
)
def test_a_value_of_another_type_is_refused_by_key(path: str, value: Any, match: str) -> None:
    plain: Any = _codec.to_json(full())
    *parents, last = path.split(".")
    part = plain
    for key in parents:
        part = part[int(key) if key.isdigit() else key]
    part[last] = value
    with pytest.raises(ResultsError, match=match):
        _codec.from_json(plain, Results)


MISSING = (
    "task environment task.name noise.loss noise.status noise.run noise.track noise.run.status "
    "noise.track.0.low learning_rate.edge learning_rate.race_result learning_rate.race "
    "memory.points plan.reasons plan.candidates.0.fits"
)


@pytest.mark.parametrize("path", MISSING.split())
def test_a_missing_key_is_named(path: str) -> None:
    plain: Any = _codec.to_json(full())
    *parents, last = path.split(".")
    part = plain
    for key in parents:
        part = part[int(key) if key.isdigit() else key]
    del part[last]
    named = path.replace(".0.", "[0].")
    with pytest.raises(ResultsError, match=f"lacks `{named}`".replace("[0]", r"\[0\]")):
        _codec.from_json(plain, Results)


def test_a_part_without_any_of_its_keys_is_no_part() -> None:
    plain = _codec.to_json(full())
    plain["noise"] = {"nose_scale": 3.0}
    with pytest.raises(ResultsError, match=r"lacks `noise\.noise_scale`"):
        _codec.from_json(plain, Results)


def test_keys_with_a_default_may_be_absent() -> None:
    plain = _codec.to_json(full())
    del plain["task"]["warnings"], plain["seconds"]
    results = _codec.from_json(plain, Results)
    assert (results.task.warnings, results.seconds) == ((), {})


@pytest.mark.parametrize(("number", "got"), [("1e999", "inf"), ("-1e999", "-inf")])
def test_a_number_that_overflows_is_refused_by_key(number: str, got: str, tmp_path: Path) -> None:
    """JSON reads 1e999 as infinity without a word."""
    text = _codec.dumps(full()).replace('"grad_sq": -0.1', f'"grad_sq": {number}')
    with pytest.raises(ResultsError, match=rf"`noise\.grad_sq` must be finite .* got {got}"):
        _codec.read(file_of(text, tmp_path), Results)


def test_an_integer_beyond_every_float_is_refused_by_key(tmp_path: Path) -> None:
    text = _codec.dumps(full()).replace('"grad_sq": -0.1', f'"grad_sq": {"9" * 400}')
    with pytest.raises(ResultsError, match=r"`noise\.grad_sq` must be finite .* got inf"):
        _codec.read(file_of(text, tmp_path), Results)
