"""Embedding lookup from packed weights, so that a table tied to the output is stored once.

A row is spread over its tile of rows (`docs/artifact_format.md`), so one token touches many
cache lines; a table of 8 or 4 bits touches fewer than one of floats.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from morendo.codegen.cpu.vectors.vector_blocks import kernel, kernel_name, token_loop
from morendo.ir.formats import WeightFormat
from morendo.ir.ladders import SCALE_STEPS

from .scales import GroupScales, group_scales


def embedding(
    isa: Any, *, max_tokens: int, rows: int, features: int, fmt: WeightFormat
) -> tirx.PrimFunc:
    """Copy the rows `ids` of a packed [V, C] matrix to float32; nested codes have all planes.

    Parameters of the kernel: ids i32[M], the arrays of `fmt.arrays(V, C)`, out f32[M, C], tokens.
    """
    name = kernel_name(f"embedding_{fmt.name}", m=max_tokens, v=rows, c=features)
    with kernel(name) as k:
        ids = k.buffer("ids", (max_tokens,), "int32")
        arrays = {
            array.name: k.buffer(array.name, array.shape, array.dtype)
            for array in fmt.arrays(rows, features)
        }
        out = k.buffer("out", (max_tokens, features))
        tokens = k.scalar("tokens")
        with token_loop(tokens, max_tokens, features * 64) as m:
            tile, row = T.bind(ids[m] // fmt.row_tile), T.bind(ids[m] % fmt.row_tile)
            if fmt.quantized:
                emit = _emit_nested if fmt.nested else _emit_q8
                emit(arrays, fmt, features, tile, row, out, m)
            else:
                with T.serial(0, features) as c:
                    T.buffer_store(out, T.cast(arrays["data"][tile, c, row], "float32"), [m, c])
    return k.function


def _group_scale(
    fmt: WeightFormat, scales: GroupScales, tile: Any, group: Any, row: Any, steps: int
) -> Any:
    """The step of the row's group divided by `steps`, as `reference.group_scale` rounds it."""
    code = scales.scale(tile, group, row, 1)
    row_scale = scales.row_scale(tile * fmt.row_tile + row, 1)
    return T.bind(row_scale * (code / T.float32(SCALE_STEPS)) / T.float32(steps))


def _emit_q8(
    arrays: dict[str, Any], fmt: WeightFormat, features: int, tile: Any, row: Any, out: Any, m: Any
) -> None:
    size, scales = fmt.group_size, group_scales(fmt, arrays)
    with T.serial(0, fmt.groups(features)) as group:
        scale = _group_scale(fmt, scales, tile, group, row, 1)
        with T.serial(0, size) as c:
            code = arrays["codes"][tile, group, c // 4, row, c % 4]
            _store_within(out, m, group * size + c, features, size, T.cast(code, "float32") * scale)


def _emit_nested(
    arrays: dict[str, Any], fmt: WeightFormat, features: int, tile: Any, row: Any, out: Any, m: Any
) -> None:
    size, scales = fmt.group_size, group_scales(fmt, arrays)
    with T.serial(0, fmt.groups(features)) as group:
        scale = _group_scale(fmt, scales, tile, group, row, fmt.unit)
        zero = T.bind(scales.zero(tile, group, row, 1))
        with T.serial(0, size) as c:
            code = _code(arrays, fmt, tile, group, row, c)
            value = T.cast(code * fmt.unit - zero, "float32") * scale
            _store_within(out, m, group * size + c, features, size, value)


def _code(
    arrays: dict[str, Any], fmt: WeightFormat, tile: Any, group: Any, row: Any, c: Any
) -> Any:
    """The code of channel `c` of a group, all planes read."""
    byte, step, width = row * 4 + c % 4, c // 4, fmt.base_bits
    steps = 8 // width
    base = T.cast(arrays["base"][tile, group, step // steps, byte], "int32")
    code = ((base >> (step % steps * width)) & ((1 << width) - 1)) << (fmt.bits - width)
    for shift, plane in enumerate(reversed(fmt.plane_names)):
        bits = T.cast(arrays[plane][tile, group, step // 8, byte], "int32")
        code = code | (((bits >> (step % 8)) & 1) << shift)
    return code


def _store_within(out: Any, m: Any, c: Any, features: int, group_size: int, value: Any) -> None:
    """Store unless `c` lies in the padding of the last group."""
    if features % group_size == 0:
        T.buffer_store(out, value, [m, c])
        return
    with T.If(c < features), T.Then():
        T.buffer_store(out, value, [m, c])
