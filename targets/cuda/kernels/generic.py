"""A schedule for the ops that TVM itself lowers: a thread to an element, reductions in a loop."""

from __future__ import annotations

from typing import Any

import tvm
from tvm import tirx
from tvm.s_tir import dlight


def schedule_generic(function: tirx.PrimFunc, isa: Any, max_tokens: int) -> tirx.PrimFunc:
    """Schedule a PrimFunc that TVM's legalization made (blocks in loops, symbolic tokens)."""
    target = tvm.target.Target({"kind": "cuda", "arch": isa.arch}, host="llvm")
    schedule: Any = dlight.ApplyDefaultSchedule(dlight.gpu.Fallback())
    with target:
        return schedule(tvm.IRModule({"main": function}))["main"]
