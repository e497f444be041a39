"""What one linear kernel is: shapes, weight format, fused epilogue, name, parameters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from morendo.codegen.cpu.vectors.isa import VectorISA
from morendo.ir.errors import CompileError
from morendo.ir.formats import Array, WeightFormat, ceil_div

_MIN_TASKS = 32
_TASK_TOKENS_MULTIPLE = 16  # of every target's block of tokens
_MIN_TASK_TOKENS = 64  # unpacking a row block then costs about a twentieth of the products


@dataclass(frozen=True)
class LinearSpec:
    """y[M, N] = x[M, K] W[N, K]^T, then bias, gate and residual, in this order.

    Attributes:
        out_features: N, rows of W. With a gate: both halves together.
        in_features: K.
        format: how W is stored, without counts: those are run-time arguments.
        max_tokens: M; 1 makes the decode kernel, more the prefill kernel.
        bias: adds float32 [N]; with a gate the first N/2 are the gate's, the others up's.
        residual: adds float32 [M, output_features] to the result.
        gate: "" or an activation: tiles of W alternate between rows of gate and of up, and the
            kernel gives act(gate) * up.
        outliers: W has sparse entries too.
    """

    out_features: int
    in_features: int
    format: WeightFormat
    max_tokens: int
    bias: bool = False
    residual: bool = False
    gate: str = ""
    outliers: bool = False

    @property
    def output_features(self) -> int:
        """Columns of the result: N, or N/2 with a gate."""
        return self.out_features // 2 if self.gate else self.out_features

    @property
    def tiles_per_output(self) -> int:
        """Weight tiles behind one tile of output columns."""
        return 2 if self.gate else 1

    @property
    def tiles(self) -> int:
        """Row tiles of the packed matrix; gate and up are each padded to whole tiles."""
        return self.tiles_per_output * self.format.tiles(self.output_features)

    @property
    def groups(self) -> int:
        """Column groups G of a quantized matrix."""
        return self.format.groups(self.in_features)

    def weight_arrays(self) -> tuple[Array, ...]:
        """The arrays of the packed matrix in the order of the kernel's parameters, all planes
        whole and with one slot for outliers, if it has any.
        """
        fmt = replace(self.format, slots=1) if self.outliers else self.format
        return fmt.arrays(self.tiles * fmt.row_tile, self.in_features)

    def kernel_name(self, isa: VectorISA) -> str:
        """qlinear_<out>_<act>_<weight>_<rows>x<columns>_m<tokens>[_epilogue]_<isa>."""
        kind = "qlinear_f32_i8" if self.format.quantized else "linear_f32_f32"
        shape = f"{self.out_features}x{self.in_features}"
        parts = [kind, self.format.name, shape, f"m{self.max_tokens}"]
        parts += ["outliers"] * self.outliers + ["bias"] * self.bias
        parts += [self.gate] * bool(self.gate) + ["res"] * self.residual
        return "_".join([*parts, isa.name])


@contextmanager
def kernel_builder(name: str) -> Iterator[IRBuilder]:
    """Collect what is built inside as the PrimFunc `name`; `.get()` gives it afterwards."""
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(name)
        T.func_attr({"global_symbol": name, "tirx.noalias": True})
        yield builder


def tensor_argument(name: str, shape: Sequence[Any], dtype: str):
    """A dense buffer parameter; an extent may be a scalar parameter that is declared later."""
    return T.arg(name, T.buffer(tuple(shape), dtype, layout=None))


def scalar_argument(name: str, variable: Any = None):
    """An int32 parameter; `variable` is one that buffers were declared with."""
    return T.arg(name, T.int32() if variable is None else variable)


def task_tokens(row_blocks: int, max_tokens: int, wanted: int = 0) -> int:
    """Tokens of one task: small matrices are also cut along tokens, so that all threads work.

    Tasks are whole token blocks, so that no two of them write the same token; `wanted`, a number of
    tokens, comes before the threads.
    """
    if wanted:
        return min(wanted, ceil_div(max_tokens, _TASK_TOKENS_MULTIPLE) * _TASK_TOKENS_MULTIPLE)
    cuts = min(ceil_div(_MIN_TASKS, row_blocks), max(max_tokens // _MIN_TASK_TOKENS, 1))
    return ceil_div(ceil_div(max_tokens, cuts), _TASK_TOKENS_MULTIPLE) * _TASK_TOKENS_MULTIPLE


def split_halves(fmt: WeightFormat, isa: VectorISA) -> int:
    """Vectors that hold the rows of a tile.

    Raises:
        CompileError: when a vector has more lanes than a tile has rows.
    """
    if fmt.row_tile % isa.lanes:
        raise CompileError(
            f"a vector does not fit a tile of rows (got {isa.lanes} lanes, "
            f"need a divisor of {fmt.row_tile} rows)",
            where=f"vector unit {isa.name}",
            hint="the target's layout says how many rows a tile has",
        )
    return fmt.row_tile // isa.lanes
