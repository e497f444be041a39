"""How weights are read: by name, one at a time, whole or some rows of them."""

from __future__ import annotations

from typing import Protocol

import numpy as np


class NamedWeights(Protocol):
    """Weights that are read whole, as an evaluation of a graph does."""

    def get(self, name: str) -> np.ndarray:
        """The data of a weight, floats as float32."""
        ...


class Weights(NamedWeights, Protocol):
    """Weights as a checkpoint has them: what is not asked for is not read."""

    def __contains__(self, name: str) -> bool: ...

    def shape(self, name: str) -> tuple[int, ...]:
        """Dimensions, without reading the data."""
        ...

    def rows(self, name: str, rows: slice | np.ndarray) -> np.ndarray:
        """Some rows of a matrix, a range or by their indices, floats as float32."""
        ...
