"""The results file: `Results` to JSON and back, checked key by key.

The file nests two results that belong to one subject: the noise track lies inside
``noise`` and the race inside ``learning_rate``. Everything else is one dataclass per key.
Floats are never NaN or infinite, neither on the way out nor on the way in.
"""

import dataclasses
import json
import math
import types
import typing
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

from rightbatch.errors import ResultsError
from rightbatch.results import LRCurve, LRRace, NoiseScale, NoiseTrack, Results

SCHEMA = "rightbatch/1"
R = TypeVar("R", bound=Results)

# (the section's own result, the key of the nested points, the key of the nested rest, ...)
_NESTED = {
    "noise": (NoiseScale, "track", "points", "run", NoiseTrack, "track"),
    "learning_rate": (LRCurve, "race", "entries", "race_result", LRRace, "race"),
}


def to_json(results: Results) -> dict[str, Any]:
    """Translate results into the plain dictionary of the results file.

    Args:
        results: Any `Results`.

    Returns:
        A dictionary of JSON types only, ``"schema"`` first; unmeasured parts are absent.

    Raises:
        ResultsError: If a number is NaN or infinite; the message names its key.
    """
    plain: dict[str, Any] = {"schema": SCHEMA}
    for field in dataclasses.fields(results):
        value = getattr(results, field.name)
        if value is not None:
            plain[field.name] = _encode(value, field.name)
    for section, (_, points_key, points_field, rest_key, _, attribute) in _NESTED.items():
        nested = plain.pop(attribute, None) if attribute != section else None
        if nested is not None:
            home = plain.setdefault(section, {})
            home[points_key] = nested.pop(points_field)
            home[rest_key] = nested
    return plain


def from_json(plain: Any, kind: type[R]) -> R:
    """Rebuild results from a results file's dictionary.

    Args:
        plain: What `json.loads` gave.
        kind: The class to build, a `Results`.

    Returns:
        The same results that were saved.

    Raises:
        ResultsError: If the schema is another one, a key is missing, or a value has
            the wrong type; the message names the key.
    """
    if not isinstance(plain, dict) or "schema" not in plain:
        raise ResultsError(
            "this is not a rightbatch results file: it has no `schema` key. "
            "Pass the results.json that `rightbatch find --output DIR` wrote."
        )
    if plain["schema"] != SCHEMA:
        raise ResultsError(
            f"the results file must have schema {SCHEMA!r}, got {plain['schema']!r}. "
            "It comes from another version: measure again, or install the version that wrote it."
        )
    plain = {key: value for key, value in plain.items() if key != "schema"}
    for section, (kind_own, points_key, points_field, rest_key, _, attribute) in _NESTED.items():
        home = plain.get(section)
        if not isinstance(home, dict):
            continue
        home = dict(home)
        if rest_key in home:
            rest = _expect(home.pop(rest_key), dict, f"{section}.{rest_key}")
            points = home.pop(points_key, None)
            plain[attribute] = {**rest, points_field: points}
        own_keys = {field.name for field in dataclasses.fields(kind_own)}
        if own_keys & home.keys():
            plain[section] = home
        else:
            del plain[section]
    return _decode(plain, kind, "")


def dumps(results: Results) -> str:
    """Return the results file as text: two-space indented JSON with a final newline."""
    return json.dumps(to_json(results), indent=2, allow_nan=False) + "\n"


def read(path: str | Path, kind: type[R]) -> R:
    """Read a results file.

    Args:
        path: The file.
        kind: The class to build, a `Results`.

    Returns:
        The results that were saved there.

    Raises:
        ResultsError: If the file is missing, truncated, of another schema, or holds NaN.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ResultsError(
            f"no results file at {str(path)!r}. "
            "Write one with `rightbatch find TASK --output DIR`; it is DIR/results.json."
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ResultsError(f"cannot read {str(path)!r}: {error}. Check the path.") from error
    try:
        plain = json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise ResultsError(
            f"{str(path)!r} is not complete JSON (line {error.lineno}: {error.msg}). "
            "It was cut off or edited: measure again."
        ) from error
    return from_json(plain, kind)


def write(results: Results, path: str | Path) -> None:
    """Write a results file, whole or not at all.

    Args:
        results: What to save.
        path: The file; its folder must exist.

    Raises:
        ResultsError: If the file cannot be written.
    """
    path = Path(path)
    text = dumps(results)
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise ResultsError(
            f"cannot write {str(path)!r}: {error.strerror}. Name a folder that you may write to."
        ) from error


def _refuse_constant(name: str) -> float:
    raise ResultsError(
        f"a results file holds finite numbers only, got {name}. "
        "It was edited or written by something else: measure again."
    )


def _encode(value: Any, key: str) -> Any:
    if isinstance(value, StrEnum):
        return value.value
    if isinstance(value, float) and not math.isfinite(value):
        raise ResultsError(
            f"`{key}` must be finite to be saved, got {value!r}. Report this: it is a bug."
        )
    if dataclasses.is_dataclass(value):
        return {
            field.name: _encode(getattr(value, field.name), f"{key}.{field.name}")
            for field in dataclasses.fields(value)
        }
    if isinstance(value, dict):
        return {name: _encode(item, f"{key}.{name}") for name, item in value.items()}
    if isinstance(value, tuple | list):
        return [_encode(item, f"{key}[{i}]") for i, item in enumerate(value)]
    return value


def _expect(value: Any, kind: type | tuple[type, ...], key: str) -> Any:
    names = kind.__name__ if isinstance(kind, type) else " or ".join(k.__name__ for k in kind)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ResultsError(
            f"`{key}` must be {names} in a results file, got {value!r}. "
            "It was edited or written by something else: measure again."
        )
    return value


def _decode(value: Any, kind: Any, key: str) -> Any:
    if isinstance(kind, types.UnionType):
        if value is None:
            return None
        (kind,) = (part for part in typing.get_args(kind) if part is not type(None))
    if dataclasses.is_dataclass(kind):
        return _decode_dataclass(_expect(value, dict, key), typing.cast(type, kind), key)
    origin = typing.get_origin(kind)
    if origin is tuple:
        items = _expect(value, list, key)
        return tuple(
            _decode(item, typing.get_args(kind)[0], f"{key}[{i}]") for i, item in enumerate(items)
        )
    if origin is dict:
        items = _expect(value, dict, key)
        return {
            name: _decode(item, typing.get_args(kind)[1], f"{key}.{name}")
            for name, item in items.items()
        }
    if issubclass(kind, StrEnum):
        allowed = [member.value for member in kind]
        if value not in allowed:
            raise ResultsError(f"`{key}` must be one of {', '.join(allowed)}, got {value!r}.")
        return kind(value)
    if kind is float:
        return float(_expect(value, (int, float), key))
    return _expect(value, kind, key)


def _decode_dataclass(value: dict[str, Any], kind: type, key: str) -> Any:
    hints = typing.get_type_hints(kind)
    arguments: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        name = f"{key}.{field.name}".lstrip(".")
        if field.name in value:
            arguments[field.name] = _decode(value[field.name], hints[field.name], name)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ResultsError(
                f"the results file lacks `{name}`. "
                "It was edited or written by another version: measure again."
            )
    return kind(**arguments)
