"""The results file. Oracle: there and back is the identity, and the design's list of keys."""

import dataclasses
import json
import math
import types
import typing
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rightbatch import _codec
from rightbatch.errors import ResultsError
from rightbatch.results import Results
from tests.results_samples import full, least


def values_of(kind: Any) -> st.SearchStrategy[Any]:
    """Every value that a field of this type may hold."""
    if isinstance(kind, types.UnionType):
        return st.one_of(*(values_of(part) for part in typing.get_args(kind)))
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return st.builds(kind, **{name: values_of(hint) for name, hint in hints.items()})
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        return st.lists(values_of(arguments[0]), max_size=2).map(tuple)
    if origin is dict:
        return st.dictionaries(st.text(max_size=5), values_of(arguments[1]), max_size=2)
    if issubclass(kind, StrEnum):
        return st.sampled_from(list(kind))
    return {
        float: st.floats(allow_nan=False, allow_infinity=False),
        bool: st.booleans(),
        int: st.integers(-(2**63), 2**63),
        str: st.text(max_size=8),
        types.NoneType: st.none(),
    }[kind]


# There and back.


@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=60)
@given(values_of(Results))
def test_there_and_back_is_the_identity(results: Results) -> None:
    assert _codec.from_json(json.loads(_codec.dumps(results)), Results) == results


PARTS = [field.name for field in dataclasses.fields(Results) if field.default is None]


@given(st.sets(st.sampled_from(PARTS)))
def test_any_choice_of_parts_comes_back(absent: set[str]) -> None:
    results = dataclasses.replace(full(), **dict.fromkeys(absent))
    assert _codec.from_json(_codec.to_json(results), Results) == results


def test_a_file_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    _codec.write(full(), path)
    assert _codec.read(path, Results) == full()
    assert _codec.read(str(path), Results) == full()


def test_the_class_that_is_asked_for_is_built() -> None:
    @dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
    class More(Results):
        pass

    assert type(_codec.from_json(_codec.to_json(least()), More)) is More


def test_whole_numbers_serve_as_floats() -> None:
    """Other writers of JSON drop the ``.0``."""
    plain = _codec.to_json(full())
    plain["noise"]["loss"] = 2
    noise = _codec.from_json(plain, Results).noise
    assert noise is not None
    assert (noise.loss, type(noise.loss)) == (2.0, float)


def test_extra_keys_are_passed_over() -> None:
    plain = _codec.to_json(full())
    plain["later"] = plain["noise"]["later"] = plain["noise"]["run"]["later"] = {"a": [1]}
    assert _codec.from_json(plain, Results) == full()


# The layout of the design.

DESIGN = {  # section: its keys
    "": "schema task environment memory throughput learning_rate noise critical_batch_size plan",
    "task": "name parameters examples batch_size optimizer",
    "environment": "",
    "memory": "max_verified_batch_size upper_bound budget_bytes points status",
    "memory.points": "batch_size peak_bytes source outcome",
    "throughput": "points alpha_seconds beta_seconds_per_example half_batch_size bottleneck status",
    "throughput.points": "batch_size step_seconds low high load_seconds",
    "learning_rate": "edge suggestion low high batch_size race status",
    "noise": "noise_scale low high grad_sq trace_cov examples_used geometry track status",
    "noise.track": "examples_seen loss noise_scale low high",
    "critical_batch_size": "value low high source status",
    "plan": "batch_size micro_batch_size accumulation_steps devices learning_rate hyperparameters "
    "low high objective candidates current speedup speedup_low speedup_high reasons status",
    "plan.candidates": "batch_size step_seconds relative_steps relative_time relative_cost fits",
    "plan.current": "batch_size relative_time",
}


@pytest.mark.parametrize("section", DESIGN)
def test_the_file_has_the_keys_of_the_design(section: str) -> None:
    part: Any = _codec.to_json(full())
    for key in filter(None, section.split(".")):
        part = part[key]
    part = part[0] if isinstance(part, list) else part
    assert set(DESIGN[section].split()) <= part.keys()


def test_nothing_nested_lies_at_the_top() -> None:
    plain = _codec.to_json(full())
    assert next(iter(plain)) == "schema"
    assert plain["schema"] == "rightbatch/1"
    assert plain.keys() == {*DESIGN[""].split(), "communication", "energy", "seconds"}


def test_parts_not_measured_are_absent() -> None:
    assert _codec.to_json(least()).keys() == {"schema", "task", "environment", "seconds"}
    only_track = dataclasses.replace(least(), track=full().track)
    assert _codec.to_json(only_track)["noise"].keys() == {"track", "run"}
    only_race = dataclasses.replace(least(), race=full().race)
    assert _codec.to_json(only_race)["learning_rate"].keys() == {"race", "race_result"}


def test_an_open_interval_is_null() -> None:
    plain = json.loads(_codec.dumps(full()))
    assert plain["noise"]["high"] is None
    assert plain["plan"]["high"] is None


def test_the_text_is_for_people_too() -> None:
    text = _codec.dumps(least())
    assert text.startswith('{\n  "schema": "rightbatch/1",\n')
    assert text.endswith("}\n")


# What cannot be saved.


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_refused_by_key(value: float) -> None:
    results = full()
    assert results.track is not None
    assert results.race is not None
    points = (dataclasses.replace(results.track.points[0], loss=value),)
    track = dataclasses.replace(results.track, points=points)
    with pytest.raises(ResultsError, match=rf"`noise\.track\[0\]\.loss` .* got {value}"):
        _codec.dumps(dataclasses.replace(results, track=track))
    race = dataclasses.replace(results.race, low=value)
    with pytest.raises(ResultsError, match=rf"`learning_rate\.race_result\.low` .* got {value}"):
        _codec.dumps(dataclasses.replace(results, race=race))
    with pytest.raises(ResultsError, match=rf"`seconds\.memory` .* got {value}"):
        _codec.dumps(dataclasses.replace(results, seconds={"memory": value}))


def test_what_json_does_not_know_is_refused_by_key() -> None:
    facts = dataclasses.replace(full().task, parameters=np.int64(3))
    with pytest.raises(ResultsError, match=r"`task\.parameters` .* got .*3.* of type int64"):
        _codec.dumps(dataclasses.replace(least(), task=facts))


def test_numpy_floats_are_floats() -> None:
    results = dataclasses.replace(least(), seconds={"memory": np.float64(1.5)})
    assert json.loads(_codec.dumps(results))["seconds"] == {"memory": 1.5}


# Whole or not at all.


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    """The folder is a file, since to root nothing is read-only."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultsError, match=r"cannot write .*file/results\.json.*Not a directory"):
        _codec.write(full(), tmp_path / "file" / "results.json")


def test_a_folder_that_is_absent_is_named(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match=r"absent/results\.json.*No such file or directory"):
        _codec.write(full(), tmp_path / "absent" / "results.json")


@pytest.mark.parametrize("path", ["", "a\0b"])
def test_a_path_that_names_no_file_is_refused(path: str, tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="cannot write"):
        _codec.write(full(), path)


def test_a_folder_in_the_files_place_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.mkdir()
    with pytest.raises(ResultsError, match=r"cannot write .*Is a directory"):
        _codec.write(full(), path)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_interrupted_write_leaves_the_old_file(
    error: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "results.json"
    _codec.write(least(), path)
    write_text = Path.write_text

    def write_half(self: Path, text: str, **options: Any) -> int:
        write_text(self, text[: len(text) // 2], **options)
        raise error("the disk is full")

    monkeypatch.setattr(Path, "write_text", write_half)
    with pytest.raises((error, ResultsError), match="the disk is full"):
        _codec.write(full(), path)
    assert _codec.read(path, Results) == least()
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_saved_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    _codec.write(least(), path)
    with pytest.raises(ResultsError, match="got nan"):
        _codec.write(dataclasses.replace(full(), seconds={"memory": math.nan}), path)
    assert _codec.read(path, Results) == least()
