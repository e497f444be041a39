"""Linear kernels on quantized weights with int8 activations: which one a number of tokens gets."""

from __future__ import annotations

from typing import Any

from tvm import tirx

from morendo.codegen.cpu.kernels.linear_spec import LinearSpec
from morendo.ir.errors import CompileError

from .dot_linear import build_dot_linear
from .tensor_linear import build_tensor_linear

_TILE = 16


def build_quantized_linear(spec: LinearSpec, isa: Any) -> tirx.PrimFunc:
    """Build the kernel of `spec`; its buffers are those of `LinearSpec` and `ir/formats.py`.

    Parameters of the kernel: codes, scales, sums, weights..., [bias], [residual], out, tokens,
    for nested codes n3, n4, ... (the level) and p3, p4, ... (the groups that the planes have
    stored), and with outliers their slots.

    Raises:
        CompileError: for tiles of other sizes than these kernels have lanes for.
    """
    if spec.format.row_tile != _TILE:
        raise CompileError(
            f"a warp does not fit a tile of rows (got {spec.format.row_tile}, need {_TILE})",
            where=spec.format.name,
            hint="the target's layout says how many rows a tile has",
        )
    build = build_dot_linear if spec.max_tokens < isa.tensor_tokens else build_tensor_linear
    return build(spec, isa)
