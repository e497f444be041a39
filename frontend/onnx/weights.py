"""Weights of an ONNX graph: which stored tensors they come from, and how they are read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from morendo.frontend.weights import TensorSource

from .lengths import PROBES, Lengths, widened


class Recipe(Protocol):
    """How a weight is made of what the file holds; equal recipes are one weight."""

    @property
    def origin(self) -> str:
        """Name of the stored tensor that it mostly is."""
        ...

    def shape(self, lengths: Lengths) -> tuple[int, ...]:
        """Dimensions, without reading the data."""
        ...

    def read(self, lengths: Lengths) -> np.ndarray:
        """The data as float32."""
        ...


@dataclass(frozen=True)
class Plain:
    """A static value as it is, transposed where it is stored the other way round.

    Attributes:
        value: its name.
        transposed: the weight is its transpose.
        rank: leading dimensions of 1 are dropped down to this rank.
    """

    value: str
    transposed: bool = False
    rank: int = 0

    @property
    def origin(self) -> str:
        return self.value

    def shape(self, lengths: Lengths) -> tuple[int, ...]:
        shape = lengths.at(PROBES[0]).shape(self.value)
        while len(shape) > max(self.rank, 0) and self.rank and shape[0] == 1:
            shape = shape[1:]
        return shape[::-1] if self.transposed else shape

    def read(self, lengths: Lengths) -> np.ndarray:
        array = widened(lengths.once(PROBES[0]).value(self.value))
        array = array.T if self.transposed else array
        return np.ascontiguousarray(array.reshape(self.shape(lengths)))


@dataclass(frozen=True)
class Blocks:
    """A matrix [N, K] of 4- or 8-bit codes with a scale for each block of a row.

    Attributes:
        codes: uint8, packed with the first channel in the lowest bits; or 4-bit integers.
        scales, zeros: names; "" for zeros in the middle.
        rows, columns: N and K.
        bits: of a code.
        size: channels of a block.
    """

    codes: str
    scales: str
    zeros: str
    rows: int
    columns: int
    bits: int
    size: int

    @property
    def origin(self) -> str:
        return self.codes

    @property
    def groups(self) -> int:
        """Blocks of a row."""
        return -(-self.columns // self.size)

    def shape(self, lengths: Lengths) -> tuple[int, ...]:
        return (self.rows, self.columns)

    def is_filled(self, lengths: Lengths) -> bool:
        """Whether the stored tensors have as many numbers as the matrix needs."""
        scales = lengths.graph.initializers.shape(self.scales)
        zeros = self._count(lengths, self.zeros) if self.zeros else self.rows * self.groups
        return (
            np.prod(scales, dtype=np.int64) == self.rows * self.groups
            and zeros >= self.rows * self.groups
            and self._count(lengths, self.codes) >= self.rows * self.columns
        )

    def _count(self, lengths: Lengths, name: str) -> int:
        """Numbers that a tensor of codes holds, those that only fill up rows among them."""
        stored = lengths.graph.initializers
        packed = 8 // self.bits if stored.dtype(name) == "uint8" else 1
        return int(np.prod(stored.shape(name), dtype=np.int64)) * packed

    def read(self, lengths: Lengths) -> np.ndarray:
        codes = self._numbers(lengths, self.codes, self.groups * self.size)
        scales = widened(lengths.graph.initializers.read(self.scales))
        scales = scales.reshape(self.rows, self.groups, 1)
        blocks = codes[:, : self.columns]
        padding = self.groups * self.size - blocks.shape[1]
        blocks = np.pad(blocks, ((0, 0), (0, padding))).reshape(self.rows, self.groups, self.size)
        return ((blocks - self._zero(lengths)) * scales).reshape(self.rows, -1)[:, : self.columns]

    def _zero(self, lengths: Lengths) -> np.ndarray:
        """[N, G, 1] or a scalar, in code steps."""
        stored = lengths.graph.initializers
        if not self.zeros:
            signed = stored.dtype(self.codes) in ("int4", "int8")
            return np.array(0 if signed else 1 << (self.bits - 1), np.float32)
        if stored.is_float(self.zeros):
            return widened(stored.read(self.zeros)).reshape(self.rows, self.groups, 1)
        return self._numbers(lengths, self.zeros, self.groups)[:, : self.groups, None]

    def _numbers(self, lengths: Lengths, name: str, count: int) -> np.ndarray:
        """Codes [N, at least what is stored of count] as floats."""
        stored = lengths.graph.initializers.read(name)
        if stored.dtype == np.uint8:
            stored = stored.reshape(self.rows, -1)
            if self.bits == 4:
                stored = np.stack([stored & 15, stored >> 4], axis=-1).reshape(self.rows, -1)
        return stored.astype(np.float32).reshape(self.rows, -1)[:, :count]


class OnnxSource(TensorSource):
    """The weights of a graph under the names that the module uses.

    Args:
        lengths: of the graph.
        recipes: by name.
    """

    def __init__(self, lengths: Lengths, recipes: dict[str, Recipe]) -> None:
        self.lengths = lengths
        self.recipes = recipes

    def names(self) -> list[str]:
        return list(self.recipes)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.recipes[name].shape(self.lengths)

    def dtype(self, name: str) -> str:
        stored, origin = self.lengths.graph.initializers, self.recipes[name].origin
        return stored.dtype(origin) if origin in stored else "computed"

    def read(self, name: str) -> np.ndarray:
        return self.recipes[name].read(self.lengths)
