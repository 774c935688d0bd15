"""Dataclasses as closed schemas: nested mappings in, checked values out, errors that name the key."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any

WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false", dict: "a mapping"}


def limited(default: Any, *, least: float | None = None, below: float | None = None, choices: tuple = ()):
    """A dataclass field whose value must be at least `least`, below `below`, or one of `choices`."""
    limits = {"least": least, "below": below, "choices": choices}
    return dataclasses.field(default=default, metadata=limits)


def build(cls: type, values: Any, prefix: str = "") -> Any:
    """An instance of a dataclass whose fields are plain types, "type or None", or dataclasses.

    Raises:
        ValueError: an unknown key, with near ones, or a value of the wrong type or out of its limits.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"`{prefix[:-1]}` must be a mapping of keys to values. Received: {values!r}")
    fields = {field.name: field for field in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    arguments = {}
    for key, value in values.items():
        if key not in fields:
            raise ValueError(f"Unknown recipe key {prefix + str(key)!r}.{near(key, fields)} Keys: {', '.join(fields)}")
        if dataclasses.is_dataclass(hints[key]):
            arguments[key] = build(hints[key], value, f"{prefix}{key}.")
        else:
            arguments[key] = _checked(prefix + key, value, hints[key], fields[key].metadata)
    return cls(**arguments)


def _checked(key: str, value: Any, hint: Any, limits: Mapping[str, Any]) -> Any:
    """The value, if it has the type and lies within the limits."""
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (typing.get_origin(hint) or hint,)
    if value is None and types.NoneType in kinds:
        return None
    kind = kinds[0]
    if kind is float and not isinstance(value, bool):
        # YAML reads 1e-3, which lacks a dot, as a string.
        value = _number(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        null = " or null" if types.NoneType in kinds else ""
        raise ValueError(f"`{key}` must be {WORDS[kind]}{null}. Received: {value!r}")
    least, below, choices = (limits.get(name) for name in ("least", "below", "choices"))
    if least is not None and not value >= least:
        raise ValueError(f"`{key}` must be at least {least}. Received: {value!r}")
    if below is not None and not value < below:
        raise ValueError(f"`{key}` must be below {below}. Received: {value!r}")
    if choices and value not in choices:
        raise ValueError(f"`{key}` must be one of {', '.join(choices)}.{near(value, choices)} Received: {value!r}")
    return value


def _number(value: Any) -> Any:
    try:
        return float(value) if isinstance(value, int | str) else value
    except ValueError:
        return value


def near(name: Any, names: Iterable[str]) -> str:
    """A question that names those like `name`, or nothing."""
    found = difflib.get_close_matches(str(name), list(names), n=3)
    return f" Did you mean {' or '.join(repr(n) for n in found)}?" if found else ""
