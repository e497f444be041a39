"""A rewrite of kernels: buffers begin at multiples of a vector's bytes, and loads may know it.

A load at an unknown place is two loads and a shift through both (`valign`). Memory of a plan lies
where the layout says, scratch memory at multiples of 128 bytes, and so do buffers on the
stack then.
"""

from __future__ import annotations

import math
from typing import Any

import tvm
from tvm import tirx
from tvm.ir import StringImm, Var
from tvm.tirx.script.builder import ir as T
from tvm_ffi import structural_map

VECTOR_BYTES = 128
_NAME = "mr_hvx_is_aligned"
_ON_STACK = 1024
"""Bytes of a buffer up to which TVM puts it on the stack and knows how it is aligned."""

_TEXT = f"""
declare void @llvm.assume(i1)
define void @{_NAME}(ptr %p) {{
call void @llvm.assume(i1 true) ["align"(ptr %p, i32 {VECTOR_BYTES})]
ret void
}}
"""


def with_aligned_buffers(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """The same kernel, its buffers at multiples of a vector's bytes."""
    made: dict[Var, Var] = {}

    def aligned(var: Any) -> Any:
        ty = var.ty
        if not isinstance(ty, tirx.BufferType) or ty.data_alignment >= VECTOR_BYTES:
            return var
        if var not in made:
            made[var] = tirx.decl_buffer(
                ty.shape, ty.dtype, var.name, None, ty.strides, ty.elem_offset, ty.storage_scope,
                VECTOR_BYTES, ty.offset_factor, layout=ty.layout,
            )  # fmt: skip
        return made[var]

    function = structural_map(function, [(Var, aligned)])
    body = structural_map(function.body, [(tirx.SeqStmt, _assumed)])
    if body.same_as(function.body):
        return function
    return function.with_body(
        tirx.AttrStmt(T.int32(0), "pragma_import_llvm", StringImm(_TEXT), body)
    )


def _assumed(sequence: Any) -> Any:
    """After an allocation, LLVM is told its alignment: TVM forgets that of large buffers."""
    body: list[Any] = []
    for statement in sequence.seq:
        body.append(statement)
        if isinstance(statement, tirx.AllocBuffer) and _nbytes(statement.buffer) > _ON_STACK:
            pointer = tirx.buffer.buffer_data(statement.buffer)
            body.append(tirx.Evaluate(T.call_extern("void", _NAME, pointer)))
    return tirx.SeqStmt(body) if len(body) > len(sequence.seq) else sequence


def _nbytes(buffer: Any) -> int:
    """Bytes of a buffer of constant shape."""
    item = tvm.DataType(str(buffer.ty.dtype)).itemsize
    return math.prod(map(int, buffer.ty.shape)) * item
