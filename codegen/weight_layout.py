"""Where every weight lies in weights.bin, and writing it one matrix at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from morendo.ir.code_store import CodeStore
from morendo.ir.errors import CompileError
from morendo.ir.formats import Array, WeightFormat
from morendo.ir.layout import DEFAULT_LAYOUT, TileLayout
from morendo.ir.outliers import Outliers
from morendo.ir.reference import Arrays, Quantized, check_finite, pack, pack_quantized, quantize

from .memory import Storage


class Weights(Protocol):
    """What packing asks of a WeightStore."""

    def get(self, name: str) -> NDArray: ...


@dataclass(frozen=True)
class Matrix:
    """Matrices of one input, stacked by rows or, with `interleaved`, alternating by tiles.

    `order` names the vector that says which column of W is stored k-th; "" is as they are.
    `calibrated` matrices have their codes in a code store, the others are rounded to nearest.
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

    def load(self, store: Weights) -> NDArray[np.float32]:
        """The float32 [packed_rows, columns] matrix that is packed."""
        named = zip(self.names, self.rows, strict=True)
        return self._whole([self._part(store, name, rows) for name, rows in named])

    def pack(self, store: Weights, codes: CodeStore | None) -> Arrays:
        """The arrays of the whole.

        Raises:
            CompileError: when a calibrated matrix has no codes in `codes`.
        """
        if not self.format.quantized:
            return pack(self.load(store), self.format)
        named = zip(self.names, self.rows, strict=True)
        parts = [self._quantized(store, codes, name, rows) for name, rows in named]
        stacked = zip(*(part.dense for part in parts), strict=True)
        dense, scale, zero, row_scale = map(self._whole, stacked)
        whole = Quantized(dense, scale, zero, row_scale, self._outliers(parts))
        return pack_quantized(whole, self.format)

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

    def _quantized(
        self, store: Weights, codes: CodeStore | None, name: str, rows: int
    ) -> Quantized:
        if self.calibrated:
            made = None if codes is None else codes.get(name, self.format)
            if made is None:
                raise CompileError(
                    f"codes that calibrate-weights made are missing (need {self.format.name})",
                    where=name,
                    hint="no pass after it may change a format",
                )
            return made  # in storage order already
        weight = self._part(store, name, rows)
        if self.order:
            weight = weight[:, ChannelOrder(self.order, self.columns).load(store)]
        return quantize(weight, self.format)

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

    def _part(self, store: Weights, name: str, rows: int) -> NDArray[np.float32]:
        weight = np.asarray(store.get(name), np.float32)
        weight = weight.T if self.transposed else weight
        if weight.shape != (rows, self.columns):
            raise CompileError(
                f"weight has a wrong shape (got {weight.shape}, need {(rows, self.columns)})",
                where=name,
                hint="the checkpoint does not fit its configuration",
            )
        check_finite(weight, name)
        return weight


@dataclass(frozen=True)
class Vector:
    """float32 vectors, one after another; "" stands for zeros."""

    names: tuple[str, ...]
    sizes: tuple[int, ...]

    def load(self, store: Weights) -> NDArray[np.float32]:
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
class ChannelOrder:
    """A uint16 vector: which channel of the model is stored k-th."""

    name: str
    size: int

    def load(self, store: Weights) -> NDArray[np.uint16]:
        """The vector.

        Raises:
            CompileError: when it is no permutation.
        """
        order = np.asarray(store.get(self.name))
        if not np.array_equal(np.sort(order), np.arange(self.size)):
            raise CompileError(f"this is no order of {self.size} channels", where=self.name)
        return order.astype(np.uint16)


@dataclass(frozen=True)
class Part:
    """What a piece of weights.bin is, for `inspect`: its name, format, weights and bytes."""

    name: str
    format: str
    weights: int
    nbytes: int


class WeightLayout:
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
        """The places of a packed matrix's arrays, in the order in which kernels take them."""
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

    def describe(self, codes: CodeStore | None = None) -> dict[str, list[dict[str, Any]]]:
        """Every matrix and vector with its byte offsets, as weights.json lists them.

        What was measured when `codes` were made is listed for each weight of a matrix.
        """
        vectors = [{**asdict(v), "offset": place.offset} for v, place in self._vectors.items()]
        return {"matrices": self._describe_matrices(codes), "vectors": vectors}

    def _describe_matrices(self, codes: CodeStore | None) -> list[dict[str, Any]]:
        orders = {order.name: place.offset for order, place in self._orders.items()}
        return [
            {
                **asdict(m),
                "format": m.format.name,
                "order": orders[m.order] if m.order else None,
                "offsets": [place.offset for place in places],
                "nbytes": sum(array.nbytes for array in m.arrays),
                "figures": [
                    codes.figures(n, m.format) if codes is not None else None for n in m.names
                ],
            }
            for m, places in self._matrices.items()
        ]

    def write(
        self,
        file: BinaryIO,
        store: Weights,
        advance: Callable[[], None],
        codes: CodeStore | None = None,
    ) -> None:
        """Quantize, pack and write all pieces; one matrix is in memory at a time.

        Args:
            file: weights.bin, open for writing.
            store: float weights by name.
            advance: called after each piece.
            codes: of the calibrated matrices; the others are rounded to nearest.

        Raises:
            CompileError: for a weight of a wrong shape, one that is not finite, an order that
                is none, codes that are missing, or codes that no matrix wants.
        """
        self._check_all_wanted(codes)
        for matrix, places in self._matrices.items():
            arrays = matrix.pack(store, codes)
            for array, storage in zip(matrix.arrays, places, strict=True):
                _write_at(file, storage, arrays[array.name])
            advance()
        for vector, storage in self._vectors.items():
            _write_at(file, storage, vector.load(store))
            advance()
        for order, storage in self._orders.items():
            _write_at(file, storage, order.load(store))
            advance()
        for values, storage in self._constants:
            _write_at(file, storage, values)
            advance()
        file.truncate(self.nbytes)

    def _check_all_wanted(self, codes: CodeStore | None) -> None:
        """Codes that would be left lying are of matrices that would be rounded to nearest."""
        calibrated = [m for m in self._matrices if m.calibrated]
        wanted = {(name, matrix.format) for matrix in calibrated for name in matrix.names}
        stray = set() if codes is None else codes.keys() - wanted
        if stray:
            name, fmt = min(stray, key=lambda key: key[0])
            raise CompileError(
                "no matrix wants codes that calibrate-weights made "
                f"({len(stray)} matrices, this one has {fmt.name})",
                where=name,
                hint="no pass after it may change a format",
            )


def _write_at(file: BinaryIO, storage: Storage, values: NDArray) -> None:
    file.seek(storage.offset)
    file.write(np.ascontiguousarray(values).data.cast("B") if values.size else b"")
