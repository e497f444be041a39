"""The errors of many pairs of scale and zero for one group of columns, by a compiled kernel.

A search tries up to 81 pairs for every group of every row. As torch operations each pair passes a
group seven times through memory; here it stays in registers, dozens of times as fast.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import tvm
from tvm import tirx
from tvm.target.codegen import llvm_get_system_cpu
from tvm.tirx.script.builder import ir as T

from morendo.codegen.cpu.vectors.vector import Registers, load, splat, splat_float, store
from morendo.codegen.cpu.vectors.vector_blocks import kernel, kernel_name

LANES = 16
"""Rows that are worked on together."""
TOGETHER = 3
"""Zeros whose errors are summed together, while a weight is in a register."""


def pair_errors(
    weight: torch.Tensor,
    importance: torch.Tensor,
    inverse: torch.Tensor,
    shift: torch.Tensor,
    limits: tuple[int, int],
) -> torch.Tensor:
    """Weighted squared errors of a group's rows, in spacings of codes, for each pair.

    Args:
        weight: float32 [g, N].
        importance: float32 [g, 1] or [g, N], the weight of each squared error.
        inverse: float32 [S, N], by which weights are multiplied to be in spacings of codes.
        shift: float32 [S, M, N], what is added to them before they are rounded to codes.
        limits: the least and the largest code.

    Returns:
        float32 [S, M, N].
    """
    scales, zeros, rows = shift.shape
    each = importance.shape[1] > 1
    missing = -rows % LANES
    values = [weight, inverse, shift, *([importance] if each else [])]
    if missing:
        values = [torch.nn.functional.pad(value, (0, missing)) for value in values]
    values = [value.contiguous() for value in values]
    if not each:
        values.append(importance[:, 0].contiguous())
    errors = torch.empty(scales, zeros, rows + missing)
    together = 1 if zeros % TOGETHER else TOGETHER
    _compiled(together, each)(*values, errors, *map(float, limits))
    return errors[..., :rows]


@cache
def _compiled(together: int, each: bool) -> Any:
    """The kernel for this machine, called with what it has as parameters."""
    function = pair_errors_kernel(together, each)
    cpu = {"kind": "llvm", "mcpu": llvm_get_system_cpu()}
    return tvm.compile(tvm.IRModule({"main": function}), target=tvm.target.Target(cpu))["main"]


def pair_errors_kernel(together: int, each: bool) -> tirx.PrimFunc:
    """The function behind `pair_errors`, whose numbers of rows are multiples of `LANES`.

    Parameters of the kernel: weight f32[g, N], inverse f32[S, N], shift f32[S, M, N], importance
    f32[g] or f32[g, N], errors f32[S, M, N], the least and the largest code f32.

    Args:
        together: zeros that are tried at once; M is a multiple.
        each: whether every row has an importance of its own.
    """
    group, scales, zeros, rows = (tirx.Var(name, "int32") for name in ("g", "s", "m", "n"))
    name = kernel_name("pair_errors", together=together, each=int(each))
    with kernel(name) as k:
        weight = k.buffer("weight", (group, rows))
        inverse = k.buffer("inverse", (scales, rows))
        shift = k.buffer("shift", (scales, zeros, rows))
        importance = k.buffer("importance", (group, rows) if each else (group,))
        errors = k.buffer("errors", (scales, zeros, rows))
        least = splat(T.arg("least", T.float32()), LANES)
        largest = splat(T.arg("largest", T.float32()), LANES)
        with T.parallel(0, rows // LANES) as block, T.serial(0, scales) as s:
            at = block * LANES
            scale = T.bind(load(inverse, [s, at], LANES))
            with T.serial(0, zeros // together) as part:
                tried = [(s, part * together + i, at) for i in range(together)]
                shifts = [T.bind(load(shift, place, LANES)) for place in tried]
                sums = Registers(together, "float32", LANES)
                for i in range(together):
                    sums[i] = splat_float(0.0, LANES)
                with T.serial(0, group) as c:
                    scaled = T.bind(load(weight, [c, at], LANES) * scale)
                    counts = (
                        load(importance, [c, at], LANES) if each else splat(importance[c], LANES)
                    )
                    counts = T.bind(counts)
                    for i, moved in enumerate(shifts):
                        code = T.min(T.max(T.nearbyint(scaled + moved), least), largest)
                        off = T.bind(code - moved - scaled)
                        sums[i] = sums[i] + off * off * counts
                for i, place in enumerate(tried):
                    store(errors, place, sums[i], LANES)
    return k.function
