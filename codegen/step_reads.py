"""What a kernel call reads of the weights, by the names of its kernel's parameters.

A kernel with precision levels has planes `w_plane3`, `w_plane4`, ..., of which it reads the first
`n3`, `n4`, ... groups (their second axis), and perhaps outliers, `w_outlier_...`, which it reads
where some groups are read with two bits. Everything else among the weights is read whole.
"""

from __future__ import annotations

from collections.abc import Sequence

from morendo.ir.plan import Tensor
from morendo.ir.plan_arguments import Argument, Level, tensor_index

PLANE, OUTLIER = "w_plane", "w_outlier_"


def bytes_read(
    names: Sequence[str], args: Sequence[Argument], tensors: Sequence[Tensor], levels: int
) -> tuple[int, ...]:
    """Bytes of weights that a call for one token reads at each precision level.

    Args:
        names: of the kernel's parameters.
        args: what they are in this call.
        tensors: of the plan.
        levels: how many there are.
    """
    return tuple(_bytes_at(dict(zip(names, args, strict=True)), tensors, k) for k in range(levels))


def _bytes_at(given: dict[str, Argument], tensors: Sequence[Tensor], level: int) -> int:
    total = 0
    for name, arg in given.items():
        index = tensor_index(arg, level)
        if index is not None and tensors[index].space == "weights":
            read, stored = _groups(given, tensors, name, index, level)
            total += tensors[index].byte_size((1,)) * read // max(stored, 1)
    return total


def _groups(
    given: dict[str, Argument], tensors: Sequence[Tensor], name: str, index: int, level: int
) -> tuple[int, int]:
    """(how many of its groups a call reads of an array, how many there are)."""
    if name.startswith(PLANE):
        bound = given[name.replace(PLANE, "n")]
        stored = tensors[index].shape((1,))[1]
        return (bound.values[level] if isinstance(bound, Level) else stored), stored
    if name.startswith(OUTLIER):
        bound, base = given["n3"], tensor_index(given["w_base"], level)
        if isinstance(bound, Level) and base is not None:
            return int(bound.values[level] < tensors[base].shape((1,))[1]), 1
    return 1, 1
