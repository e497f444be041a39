"""What a plan's decode steps read of the weights."""

from __future__ import annotations

from morendo.ir.plan import Plan
from morendo.ir.plan_arguments import tensor_index


def matrix_reads(plan: Plan, offset: int) -> list[int]:
    """Bytes that a decode step reads at each level of the matrix whose first array lies at `offset`
    in weights.bin, its bias included; [] when none multiplies with it.
    """
    for step in plan.functions["decode"]:
        indexes = [tensor_index(arg, 0) for arg in step.args]
        tensors = [plan.tensors[index] for index in indexes if index is not None]
        if step.weights and any(t.space == "weights" and t.offset == offset for t in tensors):
            return list(step.reads)
    return []


def decode_bytes_by_kernel(plan: Plan) -> dict[str, list[int]]:
    """Bytes of weights that a decode step reads, by the kernel that reads them, at every level."""
    found: dict[str, list[int]] = {}
    for step in plan.functions["decode"]:
        sums = found.setdefault(plan.kernels[step.kernel], [0] * plan.levels)
        for level, nbytes in enumerate(step.reads):
            sums[level] += nbytes
    return {name: sums for name, sums in found.items() if any(sums)}
