"""Elementwise kernels, and a plain schedule for the ops that TVM itself lowers."""

from __future__ import annotations

from typing import Any

import tvm
from tvm import s_tir, tirx

from morendo.codegen.cpu.vectors.vector import store
from morendo.codegen.cpu.vectors.vector_blocks import (
    for_each_vector,
    kernel,
    kernel_name,
    load_float,
    token_loop,
)
from morendo.codegen.cpu.vectors.vector_math import activation


def gated(isa: Any, *, max_tokens: int, features: int, activation_name: str) -> tirx.PrimFunc:
    """The gate of a gated MLP: activation(gate) * up.

    Parameters of the kernel: gate f32[M, F], up f32[M, F], out f32[M, F], tokens.

    Args:
        activation_name: "silu" | "gelu" | "gelu_tanh" | "relu".
    """
    name = kernel_name(f"gated_{activation_name}", m=max_tokens, f=features)
    with kernel(name) as k:
        gate = k.buffer("gate", (max_tokens, features))
        up = k.buffer("up", (max_tokens, features))
        out = k.buffer("out", (max_tokens, features))
        tokens = k.scalar("tokens")
        with token_loop(tokens, max_tokens, features * 16) as m:

            def write(f: Any, lanes: int) -> None:
                values = load_float(gate, [m, f], lanes), load_float(up, [m, f], lanes)
                store(out, [m, f], isa.gated(activation_name, *values, lanes), lanes)

            for_each_vector(write, features, isa.lanes)
    return k.function


def activate(isa: Any, *, max_tokens: int, features: int, activation_name: str) -> tirx.PrimFunc:
    """The activation of a plain MLP, in vectors: libm's functions are 20 to 100 times slower.

    Parameters of the kernel: x f32[M, F], out f32[M, F], tokens.

    Args:
        activation_name: "silu" | "gelu" | "gelu_tanh" | "relu".
    """
    with kernel(kernel_name(activation_name, m=max_tokens, f=features)) as k:
        x = k.buffer("x", (max_tokens, features))
        out = k.buffer("out", (max_tokens, features))
        tokens = k.scalar("tokens")
        with token_loop(tokens, max_tokens, features * 16) as m:

            def write(f: Any, lanes: int) -> None:
                value = activation(activation_name, load_float(x, [m, f], lanes), lanes, isa.exp)
                store(out, [m, f], value, lanes)

            for_each_vector(write, features, isa.lanes)
    return k.function


def schedule_generic(function: tirx.PrimFunc, isa: Any, max_tokens: int) -> tirx.PrimFunc:
    """Schedule a PrimFunc that TVM's legalization made (blocks in loops, symbolic tokens).

    Elementwise producers are inlined; the outer loops of each block are fused, and parallel when
    `max_tokens` tokens make enough work; the innermost loop becomes vectors when its extent is a
    multiple of a vector and its accesses are contiguous. Whatever cannot be done is left as it is:
    the result is always correct.

    Args:
        function: the kernel to schedule, in TVM's schedulable form.
        isa: gives the lanes of a vector.
        max_tokens: the largest value of the symbolic extents.
    """
    schedule = s_tir.Schedule(function)
    root = schedule.get_sblock("root")
    for block in schedule.get_child_blocks(root):
        try:
            schedule.compute_inline(block)
        except s_tir.ScheduleError:  # a reduction, or the output itself
            continue
    for block in schedule.get_child_blocks(root):
        _schedule_block(schedule, block, isa.lanes, max_tokens)
    return schedule.mod["main"]


def _schedule_block(schedule: Any, block: Any, lanes: int, max_tokens: int) -> None:
    """Fuse, vectorize and parallelize the loops of one block."""
    loops = schedule.get_loops(block)
    kinds = [var.iter_type for var in schedule.get(block).iter_vars]
    spatial = sum(kind == tirx.IterVar.DataPar for kind in kinds)
    if not loops or len(kinds) != len(loops) or spatial == 0:
        return
    if any(kind != tirx.IterVar.DataPar for kind in kinds[:spatial]):
        return
    extents = [schedule.get(loop).extent for loop in loops]
    sizes = [int(e) if isinstance(e, tirx.IntImm) else max_tokens for e in extents]
    outer = loops[:spatial]
    vector = spatial == len(loops) and isinstance(extents[-1], tirx.IntImm)
    if vector and sizes[-1] % lanes == 0 and _contiguous(schedule.get(block)):
        head, tail = schedule.split(loops[-1], [None, lanes])
        schedule.vectorize(tail)
        outer = [*loops[:-1], head]
    work = 4
    for size in sizes:
        work *= size
    if max_tokens > 1 and work >= 40000:
        schedule.parallel(schedule.fuse(*outer) if len(outer) > 1 else outer[0])


def _contiguous(block: Any) -> bool:
    """Whether each access of a block moves by one element, or none, with its last variable."""
    last = block.iter_vars[-1].var
    for region in [*block.reads, *block.writes]:
        steps = [_step(r.min, last) for r in region.region]
        if any(step != 0 for step in steps[:-1]) or steps[-1:] not in ([], [0], [1]):
            return False
    return True


def _step(index: Any, variable: Any) -> int | None:
    """How far the index moves when the variable grows by one; None when that varies."""
    coefficients = tvm.sym.detect_linear_equation(index, [variable])
    constant = coefficients and isinstance(coefficients[0], tirx.IntImm)
    return int(coefficients[0]) if constant else None
