"""Matrices as kernels read them: several weights in one, rounded and packed from the checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from morendo.ir.errors import CompileError
from morendo.ir.formats import Array, WeightFormat
from morendo.ir.outliers import Outliers
from morendo.ir.reference import (
    ROWS,
    Arrays,
    Quantized,
    check_finite,
    pack,
    pack_quantized,
    quantize,
)
from morendo.ir.weight_overlay import WeightOverlay
from morendo.ir.weights import NamedWeights


@dataclass(frozen=True)
class ChannelOrder:
    """A uint16 vector: which channel of the model is stored k-th."""

    name: str
    size: int

    def load(self, store: NamedWeights) -> NDArray[np.uint16]:
        """The vector.

        Raises:
            CompileError: when it is no permutation.
        """
        order = np.asarray(store.get(self.name))
        if not np.array_equal(np.sort(order), np.arange(self.size)):
            raise CompileError(f"this is no order of {self.size} channels", where=self.name)
        return order.astype(np.uint16)


@dataclass(frozen=True)
class Matrix:
    """Matrices of one input, stacked by rows or, with `interleaved`, alternating by tiles.

    `order` names the vector that says which column of W is stored k-th; "" is as they are.
    `calibrated` matrices have codes that a pass made, the others are rounded to nearest.
    """

    names: tuple[str, ...]
    rows: tuple[int, ...]
    columns: int
    format: WeightFormat
    transposed: bool = False
    interleaved: bool = False
    order: str = ""
    calibrated: bool = False

    @property
    def arrays(self) -> tuple[Array, ...]:
        """The arrays of the packed whole."""
        return self.format.arrays(self.packed_rows, self.columns)

    @property
    def packed_rows(self) -> int:
        """Rows of the whole; interleaved parts are each padded to whole tiles."""
        if self.interleaved:
            return sum(self.format.tiles(rows) * self.format.row_tile for rows in self.rows)
        return sum(self.rows)

    def load(self, store: NamedWeights) -> NDArray[np.float32]:
        """The float32 [packed_rows, columns] matrix that is packed."""
        named = zip(self.names, self.rows, strict=True)
        return self._whole([self._part(store, name, rows) for name, rows in named])

    def pack(self, weights: WeightOverlay) -> Arrays:
        """The arrays of the whole.

        Raises:
            CompileError: when a calibrated matrix has no codes.
        """
        if not self.format.quantized:
            return pack(self.load(weights), self.format)
        named = zip(self.names, self.rows, strict=True)
        parts = [self._quantized(weights, name, rows) for name, rows in named]
        stacked = zip(*(part.dense for part in parts), strict=True)
        whole = Quantized.of_dense(map(self._whole, stacked), self._outliers(parts))
        return pack_quantized(whole, self.format)

    def pieces(self, weights: WeightOverlay) -> Iterator[tuple[int, Arrays]]:
        """The packed whole in order, each with the tile that it begins at.

        A table or head is packed a few thousand rows at a time, anything else at once.

        Raises:
            CompileError: as `pack`.
        """
        (name, *others), count = self.names, sum(self.rows)
        if others or self.transposed or count <= ROWS:
            yield 0, self.pack(weights)
            return
        made = self._made(weights, name) if self.calibrated else None
        for start in range(0, count, ROWS):
            stop = min(start + ROWS, count)
            if made is not None:
                arrays = pack_quantized(made.rows(start, stop), self.format)
            else:
                part = weights.rows(name, slice(start, stop))
                part = self._ordered(weights, self._checked(part, name, stop - start))
                arrays = pack(part, self.format)
            yield start // self.format.row_tile, arrays

    def _outliers(self, parts: Sequence[Quantized]) -> Outliers:
        """The outliers of all parts with their rows in the whole."""
        moved, first = [Outliers.none()], 0
        for i, part in enumerate(parts):
            sparse = part.outliers or Outliers.none()
            rows = sparse.row + first
            if self.interleaved:
                tile, row = np.divmod(sparse.row, self.format.row_tile)
                rows = (tile * len(parts) + i) * self.format.row_tile + row
            moved.append(replace(sparse, row=rows))
            first += len(part.codes)
        return Outliers.joined(moved)

    def _quantized(self, weights: WeightOverlay, name: str, rows: int) -> Quantized:
        if self.calibrated:
            return self._made(weights, name)
        return quantize(self._ordered(weights, self._part(weights, name, rows)), self.format)

    def _made(self, weights: WeightOverlay, name: str) -> Quantized:
        """What calibration made, in storage order already."""
        made = weights.codes_of(name, self.format)
        if made is None:
            raise CompileError(
                f"codes that calibrate-weights made are missing (need {self.format.name})",
                where=name,
                hint="no pass after it may change a format",
            )
        return made

    def _ordered(self, store: NamedWeights, weight: NDArray[np.float32]) -> NDArray[np.float32]:
        """Columns as they are stored."""
        if not self.order:
            return weight
        return weight[:, ChannelOrder(self.order, self.columns).load(store)]

    def _whole(self, parts: Sequence[NDArray]) -> NDArray:
        """Arrays [rows, ...] of all parts as one [packed_rows, ...]."""
        if not self.interleaved:
            return parts[0] if len(parts) == 1 else np.concatenate(parts)
        tiles, rows = [], self.format.row_tile
        for part in parts:
            missing = -part.shape[0] % rows
            rest = part.shape[1:]
            padded = np.pad(part, ((0, missing), *((0, 0) for _ in rest))) if missing else part
            tiles.append(padded.reshape(-1, rows, *rest))
        return np.stack(tiles, axis=1).reshape(self.packed_rows, *parts[0].shape[1:])

    def split(
        self, whole: NDArray[np.float32], order: NDArray[np.uint16] | None = None
    ) -> list[NDArray[np.float32]]:
        """Each named weight of a packed matrix in its own orientation, its columns in their places.

        Args:
            whole: [packed_rows, columns], columns as they are stored.
            order: the vector that `self.order` names, when it names one.
        """
        if order is not None:
            whole = whole[:, np.argsort(order)]
        if self.interleaved:
            tiles = whole.reshape(-1, len(self.names), self.format.row_tile, self.columns)
            stacked = tiles.transpose(1, 0, 2, 3).reshape(len(self.names), -1, self.columns)
            parts = [part[:rows] for part, rows in zip(stacked, self.rows, strict=True)]
        else:
            parts = np.split(whole, np.cumsum(self.rows)[:-1])
        return [part.T if self.transposed else part for part in parts]

    def _part(self, store: NamedWeights, name: str, rows: int) -> NDArray[np.float32]:
        weight = np.asarray(store.get(name), np.float32)
        return self._checked(weight.T if self.transposed else weight, name, rows)

    def _checked(self, weight: NDArray[np.float32], name: str, rows: int) -> NDArray[np.float32]:
        """A weight, or some rows of it, if its shape is right and all of it finite."""
        if weight.shape != (rows, self.columns):
            raise CompileError(
                f"weight has a wrong shape (got {weight.shape}, need {(rows, self.columns)})",
                where=name,
                hint="the checkpoint does not fit its configuration",
            )
        check_finite(weight, name)
        return weight
