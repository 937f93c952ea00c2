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
from typing import Any, NamedTuple, TypeVar

from rightbatch.errors import ResultsError
from rightbatch.results import LRCurve, NoiseScale, Results

SCHEMA = "rightbatch/1"
R = TypeVar("R", bound=Results)


class _Nested(NamedTuple):
    """A result that the file keeps inside another one's section, in two parts."""

    own: type  # the section's own result
    attribute: str  # of `Results`, where the nested result is
    points_field: str  # of the nested result: its points ...
    points_key: str  # ... and their key in the section
    rest_key: str  # the section's key of everything else of the nested result


_NESTED = {
    "noise": _Nested(NoiseScale, "track", "points", "track", "run"),
    "learning_rate": _Nested(LRCurve, "race", "entries", "race", "race_result"),
}
# What messages call a nested result: where it is in the file.
_FILE_KEYS = {nested.attribute: f"{s}.{nested.rest_key}" for s, nested in _NESTED.items()} | {
    f"{s}.{nested.rest_key}.{nested.points_field}": f"{s}.{nested.points_key}"
    for s, nested in _NESTED.items()
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
            plain[field.name] = _encode(value, _file_key("", field.name))
    for section, nested in _NESTED.items():
        rest = plain.pop(nested.attribute, None)
        if rest is not None:
            home = plain.setdefault(section, {})
            home[nested.points_key] = rest.pop(nested.points_field)
            home[nested.rest_key] = rest
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
    attributes = {key: value for key, value in plain.items() if key != "schema"}
    for section, nested in _NESTED.items():
        home = attributes.get(section)
        if isinstance(home, dict):
            found = _unnest(home, section, nested)
            if found and not home.keys() & {field.name for field in dataclasses.fields(nested.own)}:
                del attributes[section]  # it held nothing but the nested result
            attributes.update(found)
    return _decode(attributes, kind, "")


def _unnest(home: dict[str, Any], section: str, nested: _Nested) -> dict[str, Any]:
    """Return the nested result of a section as the attribute that it is of `Results`."""
    if not home.keys() & {nested.points_key, nested.rest_key}:
        return {}
    if nested.rest_key not in home:
        raise _lacks(f"{section}.{nested.rest_key}")
    rest = _expect(home[nested.rest_key], dict, f"{section}.{nested.rest_key}")
    points = {nested.points_field: home[nested.points_key]} if nested.points_key in home else {}
    return {nested.attribute: {**rest, **points}}


def _file_key(parent: str, name: str) -> str:
    key = f"{parent}.{name}" if parent else name
    return _FILE_KEYS.get(key, key)


def _lacks(key: str) -> ResultsError:
    return ResultsError(
        f"the results file lacks `{key}`. "
        "It was edited or written by another version: measure again."
    )


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
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, say
        raise ResultsError(f"cannot read {str(path)!r}: {error}. Measure again.") from error
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
    try:
        partial = path.with_name(path.name + ".partial")
        try:
            partial.write_text(text, encoding="utf-8")
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ResultsError(
            f"cannot write {str(path)!r}: {reason}. Name a folder that you may write to."
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
            field.name: _encode(getattr(value, field.name), _file_key(key, field.name))
            for field in dataclasses.fields(value)
        }
    if isinstance(value, dict):
        return {name: _encode(item, f"{key}.{name}") for name, item in value.items()}
    if isinstance(value, tuple | list):
        return [_encode(item, f"{key}[{i}]") for i, item in enumerate(value)]
    if not isinstance(value, str | int | float | None):
        raise ResultsError(
            f"`{key}` must be a plain number or text to be saved, got {value!r} of type "
            f"{type(value).__name__}. Report this: it is a bug."
        )
    return value


def _expect(value: Any, kind: type | tuple[type, ...], key: str) -> Any:
    names = kind.__name__ if isinstance(kind, type) else " or ".join(k.__name__ for k in kind)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ResultsError(
            f"`{key}` must be {names} in a results file, got {value!r}. "
            "It was edited or written by something else: measure again."
        )
    return value


def _finite(value: float, key: str) -> float:
    try:
        number = float(value)
    except OverflowError:  # an integer beyond the largest float
        number = math.inf
    if not math.isfinite(number):
        raise ResultsError(
            f"`{key}` must be finite in a results file, got {number!r}. "
            "It was edited or written by something else: measure again."
        )
    return number


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
            raise ResultsError(
                f"`{key}` must be one of {', '.join(allowed)}, got {value!r}. "
                "It was edited or written by another version: measure again."
            )
        return kind(value)
    if kind is float:
        return _finite(_expect(value, (int, float), key), key)
    return _expect(value, kind, key)


def _decode_dataclass(value: dict[str, Any], kind: type, key: str) -> Any:
    hints = typing.get_type_hints(kind)
    arguments: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        name = _file_key(key, field.name)
        if field.name in value:
            arguments[field.name] = _decode(value[field.name], hints[field.name], name)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise _lacks(name)
    return kind(**arguments)
