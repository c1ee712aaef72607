"""Plain dictionaries to frozen config dataclasses and back, with errors that name the key."""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union

from lotlip.errors import ConfigError, UnknownKeyError

T = TypeVar("T")


def from_dict(cls: type[T], values: Any, path: str = "") -> T:
    """Build a config dataclass, and those inside it.

    `path` is the dotted key of `values` in the whole config, for the messages.
    Raises: ConfigError for an unknown key (with the nearest known one), a wrong type, a missing
    value, and whatever the dataclasses themselves refuse.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{path or 'the config'} must be a group of keys, got {values!r}")
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(cls)
    for name in values:
        if name not in fields:
            raise UnknownKeyError(unknown_key(path, name, list(fields)))
    arguments = {
        name: _value(hints[name], value, _join(path, name)) for name, value in values.items()
    }
    for name, field in fields.items():
        required = field.default is field.default_factory is dataclasses.MISSING
        if required and name not in arguments:
            raise ConfigError(f"{_join(path, name)} is missing: set it in the file or as key=value")
    return cls(**arguments)


def to_dict(config: Any) -> dict[str, Any]:
    """The config as JSON and YAML can hold it."""
    return {field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


def unknown_key(path: str, name: str, known: list[str]) -> str:
    """The message for a key that doesn't exist."""
    nearest = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    hint = f"did you mean {_join(path, nearest[0])}?" if nearest else f"known: {', '.join(known)}"
    return f"unknown key {_join(path, name)}; {hint}"


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _join(path: str, name: Any) -> str:
    return f"{path}.{name}" if path else str(name)


def _value(hint: Any, value: Any, path: str) -> Any:
    origin = typing.get_origin(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return from_dict(hint, value, path)
    if origin is Literal:
        return _choice(typing.get_args(hint), value, path)
    if origin in (Union, types.UnionType):
        return _one_of(typing.get_args(hint), value, path)
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{path} must be a group of keys, got {value!r}")
        item = typing.get_args(hint)[1]
        return {str(name): _value(item, each, _join(path, name)) for name, each in value.items()}
    if origin is tuple:
        if isinstance(value, str) or not isinstance(value, list | tuple):
            raise ConfigError(f"{path} must be a list such as [a, b], got {value!r}")
        item = typing.get_args(hint)[0]
        return tuple(_value(item, each, f"{path}[{i}]") for i, each in enumerate(value))
    return _scalar(hint, value, path)


def _choice(choices: tuple[Any, ...], value: Any, path: str) -> Any:
    if value not in choices:
        raise ConfigError(f"{path}={value!r} must be one of {', '.join(map(str, choices))}")
    return value


def _one_of(hints: tuple[Any, ...], value: Any, path: str) -> Any:
    """A union here is `X | None`, or of a scalar and a tuple."""
    if value is None and type(None) in hints:
        return None
    is_list = isinstance(value, list | tuple)
    fitting = [hint for hint in hints if (typing.get_origin(hint) is tuple) == is_list]
    return _value(next(hint for hint in [*fitting, *hints] if hint is not type(None)), value, path)


def _scalar(hint: Any, value: Any, path: str) -> Any:
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return _finite(value, path)
    if hint is str and value is None:
        return ""  # `key:` and `key=` without a value
    if hint is str and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)  # a name such as 2024 needs no quotes
    if hint is not Any and (
        not isinstance(value, hint) or isinstance(value, bool) != (hint is bool)
    ):
        name = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
        raise ConfigError(f"{path} must be {name.get(hint, hint)}, got {value!r}")
    return value


def _finite(value: float, path: str) -> float:
    try:
        number = float(value)
    except OverflowError:  # a whole number with hundreds of digits
        number = math.inf
    if not math.isfinite(number):
        raise ConfigError(f"{path}={number} must be a finite number")
    return number
