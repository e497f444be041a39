"""Which planes of which matrices each precision level reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import tvm

from morendo.ir.dialect import attrs_of, op_name
from morendo.ir.formats import WeightFormat
from morendo.ir.invariants import relax_functions
from morendo.ir.text import bindings_of

LEVELS = ((1.0, 1.0), (1.0, 0.5), (1.0, 0.0), (0.5, 0.0), (0.0, 0.0))
"""Parts of what is stored in plane 3 and in plane 4 that each precision level reads at most, as
whole planes of some matrices. Half of every plane would be half of each tile's run in memory:
slower than to read it all, and worse than the larger matrices at fewer bits (docs/performance.md).
"""

GroupsRead = dict[tuple[str, ...], list[tuple[int, int]]]


@dataclass(frozen=True)
class NestedMatrix:
    """A matrix of nested codes, as far as levels are concerned.

    Attributes:
        weights: the names that are stored as one.
        stored: groups of plane 3 and of plane 4.
        sizes: bytes of plane 3 and of plane 4.
        head: the model's result comes from it.
    """

    weights: tuple[str, ...]
    stored: tuple[int, int]
    sizes: tuple[int, int]
    head: bool


def nested_matrices(module: tvm.IRModule) -> list[NestedMatrix]:
    """Every matrix of nested codes once, in the model's order."""
    found: dict[tuple[str, ...], NestedMatrix] = {}
    for function in relax_functions(module).values():
        for binding in bindings_of(function):
            attrs = attrs_of(binding.value) if op_name(binding.value) else {}
            fmt = WeightFormat.parse(attrs.get("format", "f32"))
            if "weights" not in attrs or fmt.kind != "q4":
                continue
            weights, rows = tuple(attrs["weights"]), sum(attrs["out_features"])
            plane3, plane4 = stored = fmt.plane_groups(attrs["in_features"])
            group = rows * fmt.group_size // 8
            head = binding.var.same_as(function.body.body)
            sizes = plane3 * group, plane4 * group
            found.setdefault(weights, NestedMatrix(weights, stored, sizes, head))
    return list(found.values())


def groups_read(matrices: Sequence[NestedMatrix]) -> GroupsRead:
    """The loop bounds (n3, n4) of every matrix at every level, by its weights.

    Small matrices keep their planes the longest, the head before all. Measured: for their bytes,
    gate and up lose a fifth of what query, key, value and down lose (docs/quantization.md).
    """
    bounds: GroupsRead = {m.weights: [] for m in matrices}
    for parts in LEVELS:
        kept = [_kept(matrices, plane, part) for plane, part in enumerate(parts)]
        for m in matrices:
            n3, n4 = (m.stored[plane] * (m.weights in kept[plane]) for plane in range(2))
            bounds[m.weights].append((n3, min(n3, n4)))
    return bounds


def _kept(matrices: Sequence[NestedMatrix], plane: int, part: float) -> set[tuple[str, ...]]:
    """The matrices whose plane is read where `part` of it may be."""
    left = part * sum(m.sizes[plane] for m in matrices)
    kept = set()
    for m in sorted(matrices, key=lambda m: (not m.head, m.sizes[plane])):
        if m.sizes[plane] <= left:
            kept.add(m.weights)
            left -= m.sizes[plane]
    return kept
