"""The end of a linear kernel: bias, gate, residual, and the store of one token's output tiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tvm.ir import Expr
from tvm.tirx.script.builder import ir as T

from morendo.codegen.cpu.vectors.isa import VectorISA
from morendo.codegen.cpu.vectors.vector import lane_mask, load, store, vector_type
from morendo.codegen.cpu.vectors.vector_math import activation

from .linear_spec import LinearSpec, split_halves, tensor_argument


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

    def write(self, token: Expr | int, first_tile: Expr, sums: Sequence[Sequence[Expr]]) -> None:
        """Store tiles first_tile, first_tile+1, ... of a token.

        Args:
            sums: per weight tile, the float32 vectors of its rows.
        """
        per_output = self.spec.tiles_per_output
        outputs = self.spec.format.tiles(self.spec.output_features)
        for i in range(0, len(sums), per_output):
            tile = T.bind(T.floordiv(first_tile + i, per_output))
            if len(sums) > per_output and outputs % (len(sums) // per_output):
                with T.If(tile < outputs), T.Then():
                    self._write_tile(token, tile, sums[i : i + per_output])
            else:
                self._write_tile(token, tile, sums[i : i + per_output])

    def _write_tile(self, token, tile, sums: Sequence[Sequence[Expr]]) -> None:
        lanes, columns = self.isa.lanes, self.spec.output_features
        rows = self.spec.format.row_tile
        for half in range(split_halves(self.spec.format, self.isa)):
            column = T.bind(tile * rows + half * lanes)
            mask = lane_mask(column, columns, lanes) if columns % rows else None
            values = [tile_sums[half] for tile_sums in sums]
            if self.bias is not None:
                values = [
                    value + self._load(self.bias, (column + i * columns,), mask)
                    for i, value in enumerate(values)
                ]
            value = values[0]
            if self.spec.gate:
                value = activation(self.spec.gate, value, lanes) * values[1]
            if self.residual is not None:
                value = value + self._load(self.residual, (token, column), mask)
            self._store((token, column), value, mask)

    def _load(self, buffer, index, mask) -> Expr:
        lanes = self.isa.lanes
        if mask is None:
            return load(buffer, index, lanes)
        *outer, last = index
        dtype = vector_type("float32", lanes)
        return T.masked_load(dtype, buffer, *outer, T.ramp(last, 1, lanes), mask)

    def _store(self, index, value, mask) -> None:
        lanes = self.isa.lanes
        if mask is None:
            store(self.out, index, value, lanes)
            return
        *outer, last = index
        T.evaluate(T.masked_store(self.out, value, *outer, T.ramp(last, 1, lanes), mask))
