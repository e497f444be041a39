"""Where every weight lies in weights.bin, and writing it one matrix at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from morendo.ir.errors import CompileError
from morendo.ir.layout import DEFAULT_LAYOUT, TileLayout
from morendo.ir.reference import check_finite
from morendo.ir.weight_overlay import WeightOverlay
from morendo.ir.weights import NamedWeights

from .memory import Storage
from .packed_matrix import ChannelOrder, Matrix


@dataclass(frozen=True)
class Vector:
    """float32 vectors, one after another; "" stands for zeros."""

    names: tuple[str, ...]
    sizes: tuple[int, ...]

    def load(self, store: NamedWeights) -> NDArray[np.float32]:
        """The concatenated float32 vector."""
        parts = []
        for name, size in zip(self.names, self.sizes, strict=True):
            values = np.asarray(store.get(name), np.float32) if name else np.zeros(size, np.float32)
            if values.size != size:
                raise CompileError(
                    f"weight has a wrong size (got {values.size}, need {size})", where=name
                )
            check_finite(values.reshape(1, -1), name)
            parts.append(values.reshape(-1))
        return np.concatenate(parts)


@dataclass(frozen=True)
class Part:
    """What a piece of weights.bin is, for `inspect`: its name, format, weights and bytes."""

    name: str
    format: str
    weights: int
    nbytes: int


class WeightFile:
    """Collects what kernels read and places each piece once."""

    def __init__(self, layout: TileLayout = DEFAULT_LAYOUT) -> None:
        self.layout = layout
        self._matrices: dict[Matrix, list[Storage]] = {}
        self._vectors: dict[Vector, Storage] = {}
        self._orders: dict[ChannelOrder, Storage] = {}
        self._constants: list[tuple[NDArray, Storage]] = []
        self.nbytes = 0

    def _place(self, nbytes: int) -> Storage:
        storage = Storage("weights", nbytes, self.nbytes)
        self.nbytes += self.layout.aligned(nbytes)
        return storage

    def matrix(self, matrix: Matrix) -> list[Storage]:
        """The places of a packed matrix's arrays, in the order in which kernels take them.

        Raises:
            CompileError: for nibbles where the layout has none.
        """
        if matrix.format.nibbles and not self.layout.nibbles:
            raise CompileError(
                f"kernels of this target read 4-bit codes from planes (got {matrix.format.name})",
                where=matrix.names[0],
                hint="leave the n out of the format, which --readings 4 puts there",
            )
        if matrix not in self._matrices:
            self._matrices[matrix] = [self._place(a.nbytes) for a in matrix.arrays]
        return self._matrices[matrix]

    def vector(self, names: Sequence[str], sizes: Sequence[int]) -> Storage:
        """The place of float32 vectors, one after another."""
        vector = Vector(tuple(names), tuple(sizes))
        if vector not in self._vectors:
            self._vectors[vector] = self._place(4 * sum(sizes))
        return self._vectors[vector]

    def order(self, name: str, size: int) -> Storage:
        """The place of a channel order, shared by all its readers."""
        order = ChannelOrder(name, size)
        if order not in self._orders:
            self._orders[order] = self._place(2 * size)
        return self._orders[order]

    def constant(self, values: NDArray) -> Storage:
        """The place of a constant that is in the graph itself."""
        storage = self._place(values.nbytes)
        self._constants.append((np.ascontiguousarray(values), storage))
        return storage

    @property
    def count(self) -> int:
        """Pieces to write, for progress."""
        pieces = (self._matrices, self._vectors, self._orders, self._constants)
        return sum(map(len, pieces))

    def parts(self) -> list[Part]:
        """Every piece with its size."""
        parts = [
            Part(
                " + ".join(m.names),
                m.format.name,
                sum(m.rows) * m.columns,
                sum(array.nbytes for array in m.arrays),
            )
            for m in self._matrices
        ]
        parts += [
            Part(" + ".join(filter(None, v.names)), "f32", sum(v.sizes), 4 * sum(v.sizes))
            for v in self._vectors
        ]
        parts += [Part(o.name, "u16", o.size, 2 * o.size) for o in self._orders]
        return parts + [Part("constant", "f32", c.size, c.nbytes) for c, _ in self._constants]

    def describe(self, made: WeightOverlay | None = None) -> dict[str, list[dict[str, Any]]]:
        """Every matrix and vector with its byte offsets, as weights.json lists them.

        What was measured when codes were `made` is listed for each weight of a matrix.
        """
        vectors = [{**asdict(v), "offset": place.offset} for v, place in self._vectors.items()]
        return {"matrices": self._describe_matrices(made), "vectors": vectors}

    def _describe_matrices(self, made: WeightOverlay | None) -> list[dict[str, Any]]:
        orders = {order.name: place.offset for order, place in self._orders.items()}
        return [
            {
                **asdict(m),
                "format": m.format.name,
                "order": orders[m.order] if m.order else None,
                "offsets": [place.offset for place in places],
                "nbytes": sum(array.nbytes for array in m.arrays),
                "figures": [
                    made.figures_of(n, m.format) if made is not None else None for n in m.names
                ],
            }
            for m, places in self._matrices.items()
        ]

    def write(
        self,
        file: BinaryIO,
        weights: WeightOverlay,
        advance: Callable[[], None],
    ) -> None:
        """Quantize, pack and write all pieces; one matrix at most is in memory at a time.

        Args:
            file: weights.bin, open for writing.
            weights: floats by name, and codes of calibrated matrices; others are rounded to the
                nearest.
            advance: called after each piece.

        Raises:
            CompileError: for a weight of a wrong shape, one that is not finite, an order that
                is none, codes that are missing, or codes that no matrix wants.
        """
        self._check_all_wanted(weights)
        for matrix, places in self._matrices.items():
            tiles = matrix.format.tiles(matrix.packed_rows)
            for tile, arrays in matrix.pieces(weights):
                for array, storage in zip(matrix.arrays, places, strict=True):
                    _write_at(file, storage, arrays[array.name], array.nbytes // tiles * tile)
            advance()
        for vector, storage in self._vectors.items():
            _write_at(file, storage, vector.load(weights))
            advance()
        for order, storage in self._orders.items():
            _write_at(file, storage, order.load(weights))
            advance()
        for values, storage in self._constants:
            _write_at(file, storage, values)
            advance()
        file.truncate(self.nbytes)

    def _check_all_wanted(self, weights: WeightOverlay) -> None:
        """Codes that would be left lying are of matrices that would be rounded to nearest."""
        calibrated = [m for m in self._matrices if m.calibrated]
        wanted = {(name, matrix.format) for matrix in calibrated for name in matrix.names}
        stray = set() if weights.codes is None else weights.codes.keys() - wanted
        if stray:
            name, fmt = min(stray, key=lambda key: key[0])
            raise CompileError(
                "no matrix wants codes that calibrate-weights made "
                f"({len(stray)} matrices, this one has {fmt.name})",
                where=name,
                hint="no pass after it may change a format",
            )


def _write_at(file: BinaryIO, storage: Storage, values: NDArray, start: int = 0) -> None:
    """Write values at a place, from some byte of it on."""
    file.seek(storage.offset + start)
    file.write(np.ascontiguousarray(values).data.cast("B") if values.size else b"")
