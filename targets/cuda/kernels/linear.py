"""Linear kernels on float weights (float32, or float16 widened to float32), float32 sums.

A block has a tile of rows and a token; its threads are the rows, times parts of the channels.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from morendo.codegen.cpu.kernels.linear_spec import LinearSpec
from morendo.ir.formats import ceil_div
from morendo.targets.cuda.blocks import barrier, kernel, launch, local, shared, when

from .epilogue import Epilogue

_PARTS = 8


def build_linear(spec: LinearSpec, isa: Any) -> tirx.PrimFunc:
    """The kernel linear(x, data, [bias], [residual], out, tokens) of `spec`."""
    rows, per_output = spec.format.row_tile, spec.tiles_per_output
    with kernel(spec.kernel_name(isa)) as k:
        x = k.buffer("x", (spec.max_tokens, spec.in_features))
        (array,) = spec.weight_arrays()
        data = k.buffer("w_data", array.shape, array.dtype)
        epilogue = Epilogue.declare(k, spec)
        tokens = k.state("tokens")
        grid, threads = [spec.tiles // per_output, spec.max_tokens], rows * _PARTS
        with launch(grid, threads) as (tile, m, thread), when(m < tokens.read()):
            row, part = T.bind(thread % rows), T.bind(thread // rows)
            sums, parts = local(per_output, T.float32(0.0)), shared((per_output, _PARTS, rows))
            with T.serial(0, ceil_div(spec.in_features, _PARTS)) as step:
                channel = T.bind(step * _PARTS + part)
                with when(channel < spec.in_features):
                    for i in range(per_output):
                        weight = T.cast(data[tile * per_output + i, channel, row], "float32")
                        T.buffer_store(sums, sums[i] + weight * x[m, channel], [i])
            for i in range(per_output):
                T.buffer_store(parts, sums[i], [i, part, row])
            barrier()
            column = T.bind(tile * rows + row)
            with when(tirx.all(part == 0, column < spec.output_features)):
                totals = local(per_output, T.float32(0.0))
                for i in range(per_output):
                    for j in range(_PARTS):
                        T.buffer_store(totals, totals[i] + parts[i, j, row], [i])
                epilogue.write(m, column, [totals[i] for i in range(per_output)])
    return k.function
