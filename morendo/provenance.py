"""From which checkpoint an artifact was compiled: digests of some of its weights."""

from __future__ import annotations

import re
from hashlib import sha256
from math import prod
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from morendo.frontend.weights import WeightStore

_LARGEST = 2**27  # elements: what a larger tensor could tell is not worth reading it


def digests(weights: WeightStore, names: list[str] | None = None) -> dict[str, str]:
    """Digests of weights, as they are read: float32, however they are stored.

    Args:
        weights: a checkpoint's.
        names: of which; by default of each kind the first layer's and the last layer's, since a
            model may be trained further in some layers or some matrices only.
    """
    return {
        name: sha256(np.ascontiguousarray(weights.get(name)).data).hexdigest()[:16]
        for name in (_sample(weights) if names is None else names)
    }


def _sample(weights: WeightStore) -> list[str]:
    kinds: dict[str, list[str]] = {}
    for name in weights.keys:
        if prod(weights.shape(name)) <= _LARGEST:
            kinds.setdefault(re.sub(r"\.\d+\.", ".*.", name), []).append(name)
    return [name for layers in kinds.values() for name in dict.fromkeys((layers[0], layers[-1]))]


def difference(recorded: dict[str, str], weights: WeightStore) -> str:
    """The first weight in which a checkpoint is not the one that was compiled; "" without any.

    Args:
        recorded: what `digests` gave at compile time.
        weights: of the checkpoint to compare.
    """
    for name, digest in recorded.items():
        if name not in weights or digests(weights, [name])[name] != digest:
            return name
    return ""
