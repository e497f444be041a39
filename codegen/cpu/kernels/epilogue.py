"""The end of a linear kernel: bias, gate, residual, and the store of one token's output tiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tvm.ir import Expr
from tvm.tirx.script.builder import ir as T

from morendo.codegen.cpu.vectors.isa import VectorISA
from morendo.codegen.cpu.vectors.vector import lane_mask, load, store, vector_type

from .linear_spec import LinearSpec, tensor_argument


@dataclass(frozen=True)
class Epilogue:
    """Finishes sums: `bias`, `residual` and `out` are buffers (None where there is none)."""

    spec: LinearSpec
    isa: VectorISA
    bias: Any
    residual: Any
    out: Any

    @classmethod
    def declare(cls, spec: LinearSpec, isa: VectorISA) -> Epilogue:
        """Declare the kernel's parameters that the epilogue owns, in the order of the contract."""
        shape = (spec.max_tokens, spec.output_features)
        bias = tensor_argument("bias", (spec.out_features,), "float32") if spec.bias else None
        residual = tensor_argument("residual", shape, "float32") if spec.residual else None
        return cls(spec, isa, bias, residual, tensor_argument("out", shape, "float32"))

    def write(
        self,
        token: Expr | int,
        first_tile: Expr,
        sums: Sequence[Sequence[Expr]],
        first_half: int = 0,
    ) -> None:
        """Store rows of the tiles first_tile, first_tile+1, ... of a token.

        Args:
            sums: per weight tile, float32 vectors of its rows.
            first_half: which of the tile's vectors the first of them is.
        """
        per_output = self.spec.tiles_per_output
        outputs = self.spec.format.tiles(self.spec.output_features)
        for i in range(0, len(sums), per_output):
            tile = T.bind(T.floordiv(first_tile + i, per_output))
            if len(sums) > per_output and outputs % (len(sums) // per_output):
                with T.If(tile < outputs), T.Then():
                    self._write_tile(token, tile, sums[i : i + per_output], first_half)
            else:
                self._write_tile(token, tile, sums[i : i + per_output], first_half)

    def _write_tile(self, token, tile, sums: Sequence[Sequence[Expr]], first_half) -> None:
        lanes, columns = self.isa.lanes, self.spec.output_features
        rows = self.spec.format.row_tile
        for half, values in enumerate(zip(*sums, strict=True), first_half):
            column = T.bind(tile * rows + half * lanes)
            if columns % rows and not self.isa.masked_stores:
                with T.If(column + lanes <= columns):
                    with T.Then():
                        self._write(token, column, values, lanes, None)
                    with T.Else():
                        self._write_lanes(token, column, values)
                continue
            mask = lane_mask(column, columns, lanes) if columns % rows else None
            self._write(token, column, values, lanes, mask)

    def _write_lanes(self, token, column, values: Sequence[Expr]) -> None:
        """The columns that are there of a vector that hangs over the result, one by one."""
        lanes = self.isa.lanes
        kept = [T.alloc_buffer((lanes,), "float32", layout=None) for _ in values]
        for buffer, value in zip(kept, values, strict=True):
            store(buffer, (0,), value, lanes)
        with T.serial(0, T.max(self.spec.output_features - column, 0)) as lane:
            at = T.bind(column + lane)
            self._write(token, at, [load(buffer, (lane,), 1) for buffer in kept], 1, None)

    def _write(self, token, column, values: Sequence[Expr], lanes: int, mask) -> None:
        """Finish and store `lanes` columns, those of the mask where there is one."""
        if self.bias is not None:
            columns = self.spec.output_features
            values = [
                value + _load(self.bias, (column + i * columns,), lanes, mask)
                for i, value in enumerate(values)
            ]
        value = values[0]
        if self.spec.gate:
            value = self.isa.gated(self.spec.gate, value, values[1], lanes)
        if self.residual is not None:
            value = value + _load(self.residual, (token, column), lanes, mask)
        _store(self.out, (token, column), value, lanes, mask)


def _load(buffer, index, lanes: int, mask) -> Expr:
    if mask is None:
        return load(buffer, index, lanes)
    *outer, last = index
    dtype = vector_type("float32", lanes)
    return T.masked_load(dtype, buffer, *outer, T.ramp(last, 1, lanes), mask)


def _store(buffer, index, value, lanes: int, mask) -> None:
    if mask is None:
        store(buffer, index, value, lanes)
        return
    *outer, last = index
    T.evaluate(T.masked_store(buffer, value, *outer, T.ramp(last, 1, lanes), mask))
