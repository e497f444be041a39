"""How much the weights of a module take in their formats, for reports of what a pass bought."""

from __future__ import annotations

from typing import Any

import tvm

from .dialect import attrs_of
from .formats import WeightFormat
from .invariants import calls


def stored_size(module: tvm.IRModule) -> dict[str, int]:
    """{"weights": number, "bytes": of them} of the matrices of dialect ops, each counted once.

    Weights that generic ops read (before `normalize` recognizes them) are not among them.
    """
    found: dict[str, tuple[int, int]] = {}
    for _, call in calls(module):
        attrs = attrs_of(call)
        for name, rows, columns in _matrices(attrs):
            size = WeightFormat.parse(attrs["format"]).nbytes(rows, columns)
            found[name] = rows * columns, size
    return {
        "weights": sum(weights for weights, _ in found.values()),
        "bytes": sum(size for _, size in found.values()),
    }


def _matrices(attrs: dict[str, Any]) -> list[tuple[str, int, int]]:
    """(name, rows, columns) of what an op stores in a format."""
    if "format" not in attrs:
        return []
    if "rows" in attrs:
        return [(attrs["weight"], attrs["rows"], attrs["features"])]
    if "weights" in attrs:
        rows = zip(attrs["weights"], attrs["out_features"], strict=True)
        return [(name, count, attrs["in_features"]) for name, count in rows]
    return [(attrs["weight"], attrs["out_features"], attrs["in_features"])]
