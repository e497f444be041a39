"""What JSON of a file must look like, as plain data, and the first place where it does not.

int, float, str, bool, None, object    a value of that type; no bool is an int; object is any
range(a, b)                            an integer in it
[schema]                               a list
{str: schema}                          an object with any keys
{"key": schema, "other?": schema}      an object with this and perhaps that, and with more
(schema, schema)                       one of them
"""

from __future__ import annotations

from typing import Any

COUNT = range(2**63)
"""A size or a number of things that fits 64 bits."""

_NAMES = {int: "an integer", float: "a number", str: "text", bool: "true or false", None: "null"}


def mismatch(value: Any, schema: Any, place: str = "") -> str:
    """What is wrong with the first part of `value` that does not fit; "" if all of it does."""
    if isinstance(schema, tuple):
        fits = any(not mismatch(value, each, place) for each in schema)
        return "" if fits else _wrong(value, schema, place)
    if isinstance(schema, list) and isinstance(value, list):
        inside = enumerate(value)
        found = (mismatch(item, schema[0], f"{place}[{i}]") for i, item in inside)
        return next((wrong for wrong in found if wrong), "")
    if isinstance(schema, dict) and isinstance(value, dict):
        return _object_mismatch(value, schema, place)
    return "" if _is_of(value, schema) else _wrong(value, schema, place)


def _object_mismatch(value: dict[str, Any], schema: dict[Any, Any], place: str) -> str:
    for key, part in schema.items():
        names = [key.removesuffix("?")] if isinstance(key, str) else list(value)
        optional = isinstance(key, str) and key.endswith("?")
        for name in names:
            inside = f"{place}.{name}" if place else name
            if name in value:
                wrong = mismatch(value[name], part, inside)
            else:
                wrong = "" if optional else f"{inside} is missing"
            if wrong:
                return wrong
    return ""


def _is_of(value: Any, schema: Any) -> bool:
    if schema is object:
        return True
    if isinstance(value, bool) or schema is bool:
        return isinstance(value, bool) and schema is bool
    if isinstance(schema, range):
        return isinstance(value, int) and value in schema
    if schema is None:
        return value is None
    kinds = int | float if schema is float else schema
    return isinstance(schema, type) and isinstance(value, kinds)


def _wrong(value: Any, schema: Any, place: str) -> str:
    shown = repr(value)
    shown = shown if len(shown) <= 40 else f"{shown[:37]}..."
    return f"{place or 'the whole'} must be {_name(schema)} (got {shown})"


def _name(schema: Any) -> str:
    if isinstance(schema, tuple):
        return " or ".join(map(_name, schema))
    if isinstance(schema, range):
        return "a count"
    if isinstance(schema, list | dict):
        return "a list" if isinstance(schema, list) else "an object"
    return _NAMES[schema]
