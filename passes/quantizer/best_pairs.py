"""The best of many pairs of scale and zero for one group of columns, by a compiled kernel.

A search tries up to 90 pairs for every group of every row. As torch operations each pair passes a
group seven times through memory; here it stays in registers, dozens of times as fast.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import tvm
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.target.codegen import llvm_get_system_cpu
from tvm.tirx.script.builder import ir as T

LANES = 16
"""Rows that are worked on together."""
TOGETHER = 3
"""Zeros whose errors are summed together, while a weight is in a register."""


def best_pairs(
    weight: torch.Tensor,
    importance: torch.Tensor,
    inverse: torch.Tensor,
    shift: torch.Tensor,
    spacing: torch.Tensor,
    limits: tuple[int, int],
) -> torch.Tensor:
    """The pair of scale and zero that leaves the least weighted squared error in each row.

    Args:
        weight: float32 [g, N].
        importance: float32 [g, 1] or [g, N], the weight of each squared error.
        inverse: float32 [S, N], by which weights are multiplied to be in spacings of codes.
        shift: float32 [S, M, N], what is added to them before they are rounded to codes.
        spacing: float32 [S, N], between the values of two codes; 0 where there is no scale.
        limits: the least and the largest code.

    Returns:
        int64 [N], places among the S * M pairs; the first of equal ones.
    """
    zeros, rows = shift.shape[1:]
    each = importance.shape[1] > 1
    missing = -rows % LANES
    values = [weight, inverse, shift, spacing, *([importance] if each else [])]
    if missing:
        values = [torch.nn.functional.pad(value, (0, missing)) for value in values]
    values = [value.contiguous() for value in values]
    if not each:
        values.append(importance[:, 0].contiguous())
    places = torch.empty(rows + missing, dtype=torch.int32)
    together = 1 if zeros % TOGETHER else TOGETHER
    _compiled(together, each)(*values, places, *map(float, limits))
    return places[:rows].long()


@cache
def _compiled(together: int, each: bool) -> Any:
    """The kernel for this machine, called with what it has as parameters."""
    function = best_pairs_kernel(together, each)
    cpu = {"kind": "llvm", "mcpu": llvm_get_system_cpu()}
    return tvm.compile(tvm.IRModule({"main": function}), target=tvm.target.Target(cpu))["main"]


def best_pairs_kernel(together: int, each: bool) -> tirx.PrimFunc:
    """The function behind `best_pairs`, whose numbers of rows are multiples of `LANES`.

    Parameters of the kernel: weight f32[g, N], inverse f32[S, N], shift f32[S, M, N], spacing
    f32[S, N], importance f32[g] or f32[g, N], places i32[N], the least and the largest code f32.

    Args:
        together: zeros that are tried at once; M is a multiple.
        each: whether every row has an importance of its own.
    """
    group, scales, zeros, rows = (tirx.Var(name, "int32") for name in ("g", "s", "m", "n"))
    shapes = {
        "weight": (group, rows),
        "inverse": (scales, rows),
        "shift": (scales, zeros, rows),
        "spacing": (scales, rows),
        "importance": (group, rows) if each else (group,),
    }
    with IRBuilder() as builder:
        with T.prim_func():
            T.func_name("best_pairs")
            T.func_attr({"tirx.noalias": True})
            buffers = [T.arg(n, T.buffer(shape, "float32")) for n, shape in shapes.items()]
            weight, inverse, shift, spacing, importance = buffers
            places = T.arg("places", T.buffer((rows,), "int32"))
            least, largest = (T.arg(name, T.float32()) for name in ("least", "largest"))
            with T.parallel(0, rows // LANES) as block:
                best = T.alloc_buffer((LANES,), "float32", layout=None)
                sums = T.alloc_buffer((together, LANES), "float32", layout=None)
                with T.vectorized(0, LANES) as lane:
                    T.buffer_store(best, T.max_value("float32"), [lane])
                    T.buffer_store(places, T.int32(0), [block * LANES + lane])
                with T.serial(0, scales) as s, T.serial(0, zeros // together) as part:
                    tried = [part * together + i for i in range(together)]
                    for i in range(together):
                        with T.vectorized(0, LANES) as lane:
                            T.buffer_store(sums, T.float32(0), [i, lane])
                    with T.serial(0, group) as c:
                        for i, zero in enumerate(tried):
                            with T.vectorized(0, LANES) as lane:
                                row = block * LANES + lane
                                counts = importance[c, row] if each else importance[c]
                                scaled = weight[c, row] * inverse[s, row]
                                moved = shift[s, zero, row]
                                code = T.min(T.max(T.nearbyint(scaled + moved), least), largest)
                                off = code - moved - scaled
                                T.buffer_store(sums, sums[i, lane] + off * off * counts, [i, lane])
                    for i, zero in enumerate(tried):
                        with T.vectorized(0, LANES) as lane:
                            row = block * LANES + lane
                            error = sums[i, lane] * spacing[s, row] * spacing[s, row]
                            place = T.Select(error < best[lane], s * zeros + zero, places[row])
                            T.buffer_store(places, place, [row])
                            T.buffer_store(best, T.min(best[lane], error), [lane])
        return builder.get()
