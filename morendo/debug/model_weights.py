"""Weights for the reference: the model's own, and those that only the artifact has."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from morendo.ir.dialect import attrs_of
from morendo.ir.errors import ArtifactError, InputError
from morendo.ir.invariants import calls
from morendo.ir.weight_overlay import is_derived
from morendo.ir.weights import Weights
from morendo.runtime.artifact import WEIGHTS, read_weight_list

from .captured import Opened


class ModelWeights:
    """Weights by the names in an artifact's graph, read once and kept: 4 bytes each.

    Args:
        base: the weights of the model that it was compiled from.
        derived: what passes made: orders and factors of channels, tuned norms.
    """

    def __init__(self, base: Weights, derived: dict[str, NDArray]) -> None:
        self._base, self._values = base, dict(derived)

    @staticmethod
    def of(opened: Opened, base: Weights) -> ModelWeights:
        """The weights of a model, checked to fit the artifact.

        Raises:
            InputError: when the model has other weights than the graph asks for.
        """
        weights = ModelWeights(base, _derived(opened))
        for name, call in calls(opened.module):
            attrs = attrs_of(call)
            for weight in attrs.get("weights", [attrs.get("weight", "")]):
                if weight and weight not in weights._values and weight not in base:
                    raise InputError(
                        f"the model has no weight that the artifact's {name} reads",
                        where=weight,
                        hint="--against must be the model that was compiled",
                    )
        return weights

    def get(self, name: str) -> NDArray:
        """A weight's values."""
        if name not in self._values:
            self._values[name] = self._base.get(name)
        return self._values[name]


def _derived(opened: Opened) -> dict[str, NDArray]:
    """Vectors of weights.bin by the names that the graph has for them."""
    listed = read_weight_list(opened.directory)
    file = np.memmap(opened.directory / WEIGHTS, np.uint8, "r")
    found: dict[str, NDArray] = {}
    for entry in listed["vectors"]:
        offset = entry["offset"]
        for name, size in zip(entry["names"], entry["sizes"], strict=True):
            if is_derived(name):
                found[name] = _piece(file, offset, size, "float32")
            offset += 4 * size
    orders = {tuple(e["names"]): (e["order"], e["columns"]) for e in listed["matrices"]}
    for name, attrs in _ordered(opened):
        offset, size = orders.get(tuple(attrs["weights"]), (None, 0))
        if offset is not None:
            found[name] = _piece(file, offset, size, "uint16")
    return found


def _ordered(opened: Opened) -> list[tuple[str, dict[str, Any]]]:
    found = [attrs_of(call) for _, call in calls(opened.module)]
    return [(a["order"], a) for a in found if a.get("order") and "weights" in a]


def _piece(file: NDArray, offset: int, size: int, dtype: str) -> NDArray:
    nbytes = size * np.dtype(dtype).itemsize
    if not 0 <= offset <= len(file) - nbytes:
        raise ArtifactError(f"weights.json names a place outside {WEIGHTS} (byte {offset})")
    return np.array(file[offset : offset + nbytes].view(dtype))
