"""Quantized linear kernels for few tokens, as matrix-vector products.

A block has the rows of one output tile and one token. Its warps share the groups of channels, eight
at a time each, four lanes a group (`planes.py`); lanes add up by shuffles, warps in shared memory.
How many groups are read with how many bits is a loop bound that is read from memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx.script.builder import ir as T

from morendo.codegen.cpu.kernels.linear_spec import LinearSpec
from morendo.targets.cuda.blocks import (
    WARP,
    across,
    add,
    barrier,
    kernel,
    launch,
    local,
    shared,
    when,
)

from .planes import BLOCK, ROWS, ByteReader, GroupReader, Place, PlaneReader, activation_words
from .problem import Problem

_TILE = 16
_LANES = _TILE // ROWS  # of a warp that share a group
_GROUPS = WARP // _LANES  # that a warp reads at a time
_MOST_WARPS = 4


def build_dot_linear(spec: LinearSpec, isa: Any) -> tirx.PrimFunc:
    """The kernel of `spec` that multiplies each token by itself."""
    with kernel(spec.kernel_name(isa)) as k:
        run_dot_blocks(DotBlock, Problem.declare(k, spec))
    return k.function


def run_dot_blocks(kind: type[DotBlock], problem: Problem) -> None:
    """Launch blocks of a kind in the kernel under construction."""
    spec = problem.spec
    warps, grid = warps_of(spec), [spec.tiles // spec.tiles_per_output, spec.max_tokens]
    with launch(grid, warps * WARP) as (block, m, thread), when(m < problem.tokens.read()):
        kind(problem, block, m, thread, warps).run()


def warps_of(spec: LinearSpec) -> int:
    """Warps of a block: a power of two, no more than have groups to read."""
    warps = 1
    while warps < _MOST_WARPS and warps * _GROUPS < spec.groups:
        warps *= 2
    return warps


@dataclass(frozen=True)
class DotBlock:
    """The work of a block: an output tile of one token."""

    problem: Problem
    block: Expr
    token: Expr
    thread: Expr
    warps: int

    @property
    def per_output(self) -> int:
        return self.problem.spec.tiles_per_output

    def run(self) -> None:
        problem, thread = self.problem, self.thread
        lane, warp = T.bind(thread % WARP), T.bind(thread // WARP)
        row, slot = T.bind(lane % _LANES * ROWS), T.bind(warp * _GROUPS + lane // _LANES)
        level = [bound.read() for bound in problem.level]
        parts = shared((self.per_output, self.warps, _TILE))
        for i in range(self.per_output):
            sums = local(ROWS, T.float32(0.0))
            tile = T.bind(self.block * self.per_output + i)
            for bits, first, end in problem.ranges(level):
                self._add_range(self._reader(bits), Place(tile, first, row), end, slot, sums)
            for r in range(ROWS):
                total = across(sums[r], (16, 8, 4), add)
                with when(lane < _LANES):
                    T.buffer_store(parts, total, [i, warp, row + r])
        sparse = self._outlier_parts(level) if problem.outliers else None
        barrier()
        self._finish(parts, sparse)

    def _reader(self, bits: int) -> GroupReader:
        weights = self.problem.weights
        return PlaneReader(weights, bits) if weights.format.nested else ByteReader(weights)

    def _add_range(self, reader: GroupReader, at: Place, end: Any, slot: Expr, sums: Any) -> None:
        """Add the groups from at.group to `end` that are this lane's turn."""
        stride = self.warps * _GROUPS
        begin = T.bind(at.group + slot)
        with T.serial(0, (end - begin + (stride - 1)) >> (stride.bit_length() - 1)) as turn:
            group = T.bind(begin + turn * stride)
            self._add_group(reader, Place(at.tile, group, at.row), sums)

    def _add_group(self, reader: GroupReader, at: Place, sums: Any) -> None:
        problem, token = self.problem, self.token
        size = problem.spec.format.group_size
        scales, zeros = reader.factors(at)
        start, step = T.int32(0), T.int32(0)
        if zeros is not None:
            sum_x = T.bind(problem.sums[token, at.group])
            start, step = T.bind(sum_x * -zeros.first), T.bind(sum_x * -zeros.step)
        totals = local(ROWS, start, "int32")
        for block in range(size // BLOCK):
            words = activation_words(problem.codes, token, at.group * size + block * BLOCK)
            reader.dots(at, words, block, totals)
        scale = T.bind(problem.scales[token, at.group])
        for r in range(ROWS):
            total = totals[r] if zeros is None else totals[r] + zeros.codes[r] * step
            product = T.cast(total, "float32") * (scales[r] * scale)
            T.buffer_store(sums, sums[r] + product, [r])

    def _outlier_parts(self, level: list[Expr]) -> Any:
        """Outliers times the token: a row and a part of the entries to a thread."""
        problem, entries = self.problem, self.problem.outliers
        assert entries is not None
        count = self.warps * WARP // _TILE
        row, part = T.bind(self.thread % _TILE), T.bind(self.thread // _TILE)
        parts, n3 = shared((self.per_output, count, _TILE)), level[0]
        for i in range(self.per_output):
            tile = T.bind(self.block * self.per_output + i)
            total = local(1, T.float32(0.0))
            first = T.bind(problem.sparse_begin(tile, n3) + part)
            with T.serial(0, T.max(entries.slots - first + count - 1, T.int32(0)) // count) as turn:
                index = T.bind(first + turn * count)
                with when(problem.sparse_row(tile, index) == row):
                    product = problem.sparse_product(tile, index, self.token)
                    T.buffer_store(total, total[0] + product, [0])
            T.buffer_store(parts, total[0], [i, part, row])
        return parts

    def _finish(self, parts: Any, sparse: Any) -> None:
        """Add up the warps' parts and store the tile, a thread to a row."""
        spec, thread = self.problem.spec, self.thread
        column = T.bind(self.block * _TILE + thread)
        with when(tirx.all(thread < _TILE, column < spec.output_features)):
            sums = local(self.per_output, T.float32(0.0))
            for i in range(self.per_output):
                _add_parts(sums, i, parts, thread)
                row = (self.block * self.per_output + i) * _TILE + thread
                unit = T.float32(1 / self.problem.weights.scale_unit)
                scale = self.problem.weights.row_scale(row) * unit
                if self.problem.sums is None:
                    scale = scale * self.problem.scales[self.token]
                T.buffer_store(sums, sums[i] * scale, [i])
                if sparse is not None:
                    _add_parts(sums, i, sparse, thread)
            columns = [sums[i] for i in range(self.per_output)]
            self.problem.epilogue.write(self.token, column, columns)


def _add_parts(sums: Any, i: int, parts: Any, row: Expr) -> None:
    for part in range(int(parts.shape[1])):
        T.buffer_store(sums, sums[i] + parts[i, part, row], [i])
