"""choose-levels: which planes of which matrices each precision level reads, with which scales.

Where codes were made for several readings, levels are those readings, and between two of them one
at which some matrices have come down to the lower one. Other levels read planes of some matrices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import tvm
from tvm import relax

from morendo.ir.dialect import attrs_of, call, op_name
from morendo.ir.formats import WeightFormat
from morendo.ir.invariants import calls
from morendo.ir.level_reads import LevelRead

from .base import Context, Pass
from .rewrite import map_functions

LEVELS = (
    (1.0, 1.0, 1.0, 1.0),
    (1.0, 0.5, 0.0, 0.0),
    (1.0, 0.0, 0.0, 0.0),
    (0.5, 0.0, 0.0, 0.0),
    (0.0, 0.0, 0.0, 0.0),
)
"""Parts of what is stored in planes 3 to 6 that each precision level reads at most, as whole
planes of some matrices. Half of every plane would be half of each tile's run in memory: no
faster than all of it (docs/performance.md), and a worse model (docs/quantization.md, "Levels").
"""

HEAD_BITS = {6: (6, 5, 4, 4, 3), 5: (5, 4, 4, 3, 2), 4: (4, 4, 3, 3, 2)}
"""Bits of a head's codes that are read at each of these levels, by those that it has. For its bytes
it loses less than others down to 4 bits, and more below (docs/quantization.md, "Heads").
"""

GroupsRead = dict[tuple[str, ...], list[tuple[int, ...]]]
ReadingsRead = dict[tuple[str, ...], list[int]]


@dataclass(frozen=True)
class ChooseLevels(Pass):
    """Say of every matrix with planes of bits what each precision level reads of it.

        y = M.quantized_linear(..., weights=["w"], format="q4g32")
        ->  y = M.quantized_linear(..., weights=["w"], format="q4g32", levels=["18,18", "18,0"])

    The first level reads all. Without this pass, or with `top_only`, there is no other. Does not
    fire where no matrix has planes.

    Source: progressive precision of PMPD, arXiv 2410.13461, section 3.
    """

    name: ClassVar[str] = "choose-levels"
    needs: ClassVar[tuple[str, ...]] = ("well-formed", "formats-known", "fused")
    gives: ClassVar[tuple[str, ...]] = ("well-formed", "levels-agree")

    top_only: bool = False

    def apply(self, module: tvm.IRModule, context: Context) -> tvm.IRModule:
        levels = levels_of(nested_matrices(module))
        if levels.count == 1:
            context.report.missed("the model", "no weights have planes of bits")
        count = 1 if self.top_only else levels.count
        context.report.count("levels", count)

        def visit(_: Any, var: relax.Var, value: Any) -> Any:
            attrs = attrs_of(value) if op_name(value) else {}
            weights = tuple(attrs.get("weights", ()))
            if weights in levels.groups:
                chosen: list[Any] = list(map(str, levels.reads(weights)))
                context.report.count("linears")
            elif attrs.get("lower_weights"):
                chosen = list(levels.norms)
                context.report.count("norms")
            else:
                return value
            return call(op_name(value), *value.args, **{**attrs, "levels": chosen[:count]})

        return map_functions(module, visit)


@dataclass(frozen=True)
class NestedMatrix:
    """A matrix of nested codes in planes, as far as levels are concerned.

    Attributes:
        weights: the names that are stored as one.
        stored: groups of plane 3, of plane 4 and so on.
        sizes: bytes of these planes.
        head: the last linear of the model.
        readings: of its format, () for one.
    """

    weights: tuple[str, ...]
    stored: tuple[int, ...]
    sizes: tuple[int, ...]
    head: bool
    readings: tuple[int, ...] = ()


def nested_matrices(module: tvm.IRModule) -> list[NestedMatrix]:
    """Every matrix of nested codes in planes once, in the model's order."""
    linears = [attrs for _, value in calls(module) if "weights" in (attrs := attrs_of(value))]
    found: dict[tuple[str, ...], NestedMatrix] = {}
    for attrs in linears:
        fmt, weights = WeightFormat.parse(attrs["format"]), tuple(attrs["weights"])
        if fmt.plane_names:
            stored = fmt.plane_groups(attrs["in_features"])
            group = sum(attrs["out_features"]) * fmt.group_size // 8
            head = attrs["weights"] == linears[-1]["weights"]
            sizes = tuple(count * group for count in stored)
            found[weights] = NestedMatrix(weights, stored, sizes, head, fmt.readings)
    return list(found.values())


@dataclass(frozen=True)
class Levels:
    """What precision levels read, most first.

    Attributes:
        groups: the loop bounds (n3, n4, ...) of every nested matrix at every level, by its weights.
        readings: at which reading those that have several are read at every level.
        norms: the reading whose weights norms have, at every level.
    """

    groups: GroupsRead
    readings: ReadingsRead
    norms: tuple[int, ...]

    @property
    def count(self) -> int:
        """1 where nothing can be read more softly."""
        return len(self.norms)

    def reads(self, weights: tuple[str, ...]) -> list[LevelRead]:
        """What is read of a matrix at every level."""
        readings = self.readings.get(weights, [0] * self.count)
        return list(map(LevelRead, self.groups[weights], readings))


def levels_of(matrices: Sequence[NestedMatrix]) -> Levels:
    """The levels of a model."""
    readings = max((m.readings for m in matrices), key=len, default=())
    if readings:
        return _levels_of_readings(matrices, readings)
    return Levels(groups_read(matrices), {}, (0,) * (len(LEVELS) if matrices else 1))


def _levels_of_readings(matrices: Sequence[NestedMatrix], readings: tuple[int, ...]) -> Levels:
    """Every reading, and between two of them half of the upper one's last plane.

    Heads fall as they do beside matrices that lose as many bits. Other matrices with one reading
    are read whole.
    """
    several = [m for m in matrices if m.readings]
    found: ReadingsRead = {m.weights: [] for m in several}
    norms, steps = [], []  # steps: half bits that matrices have lost
    for index, bits in enumerate(readings):
        between = index + 1 < len(readings)
        kept = _kept(several, bits - 3, 0.5) if between else set()
        for m in several:
            found[m.weights] += [index, index + (m.weights not in kept)][: 1 + between]
        lost = 2 * (readings[0] - bits)
        steps += [lost, lost + 1][: 1 + between]
        norms += [index] * (1 + between)
    groups: GroupsRead = {m.weights: [m.stored] * len(norms) for m in matrices}
    for m in matrices:
        if m.readings:
            groups[m.weights] = [_at_most(m, readings[reading]) for reading in found[m.weights]]
        elif m.head:
            bits_read = HEAD_BITS[2 + len(m.stored)]
            groups[m.weights] = [_at_most(m, bits_read[step]) for step in steps]
    return Levels(groups, found, tuple(norms))


def groups_read(matrices: Sequence[NestedMatrix]) -> GroupsRead:
    """The loop bounds (n3, n4, ...) of every matrix at every level, by its weights.

    Small matrices keep their planes the longest; a head has its own share. Measured: for their
    bytes, gate and up lose a fifth of what query, key, value and down lose (docs/quantization.md).
    """
    bounds: GroupsRead = {m.weights: [] for m in matrices}
    body = [m for m in matrices if not m.head]
    for level, parts in enumerate(LEVELS):
        kept = [_kept(body, plane, part) for plane, part in enumerate(parts)]
        for m in matrices:
            if m.head:
                bounds[m.weights].append(_at_most(m, HEAD_BITS[2 + len(m.stored)][level]))
                continue
            read = (n * (m.weights in kept[plane]) for plane, n in enumerate(m.stored))
            bounds[m.weights].append(tuple(read))
    return bounds


def _at_most(m: NestedMatrix, bits: int) -> tuple[int, ...]:
    """The groups of each plane where at most so many bits are read."""
    return tuple(count * (bit <= bits) for bit, count in enumerate(m.stored, start=3))


def _kept(matrices: Sequence[NestedMatrix], plane: int, part: float) -> set[tuple[str, ...]]:
    """The matrices whose plane is read where `part` of it may be."""
    having = [m for m in matrices if plane < len(m.sizes)]
    left = part * sum(m.sizes[plane] for m in having)
    kept = set()
    for m in sorted(having, key=lambda m: m.sizes[plane]):
        if m.sizes[plane] <= left:
            kept.add(m.weights)
            left -= m.sizes[plane]
    return kept
