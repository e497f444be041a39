"""The end of a kernel for many tokens: scales of rows, outliers, and the epilogue."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx.script.builder import ir as T

from morendo.targets.cuda.blocks import WARP, barrier, call, shared, strided, when
from morendo.targets.cuda.intrinsics import ADD_FLOAT, SET_FLOAT

from .fragments import Lane
from .problem import Problem
from .tensor_shape import COLUMNS, PER_WARP, TILE, WARPS, Shape


@dataclass(frozen=True)
class Sums:
    """The sums of a block's tiles and tokens.

    Attributes:
        tile: the first of the block.
        first: its first token; `tokens` is the end of all of them.
        level: (n3, n4, ...), read.
        sums: float32 [tile, eight tokens, 4] of this lane.
    """

    problem: Problem
    shape: Shape
    tile: Expr
    first: Expr
    tokens: Expr
    thread: Any
    warp: Expr
    lane: Lane
    level: list[Expr]
    sums: Any

    @property
    def columns(self) -> int:
        """Eights of tokens."""
        return self.shape.tokens // COLUMNS

    def row_tile(self, p: int) -> Any:
        """Tile p of the warp, in the matrix."""
        return self.tile + self.warp * PER_WARP + p

    def place(self, p: int, n: int, i: int) -> int:
        """Of a sum: tile p, eight tokens n, row i // 2 and token i % 2 of this lane."""
        return (p * self.columns + n) * 4 + i


@dataclass(frozen=True)
class Finish:
    """The end of a block's work: scales of rows, outliers, and the epilogue."""

    block: Sums

    def run(self) -> None:
        block, problem = self.block, self.block.problem
        last = T.int32(problem.spec.tiles - 1)
        sparse = None
        if problem.outliers:
            sparse = shared((WARPS, TILE, block.shape.tokens))
        for p in range(PER_WARP):
            tile = T.bind(T.min(block.row_tile(p), last))
            self._scale(p, tile)
            if sparse is not None:
                self._add_outliers(p, tile, sparse)
        self._store()

    def _scale(self, p: int, tile: Expr) -> None:
        block, weights = self.block, self.block.problem.weights
        unit = T.float32(1 / weights.scale_unit)
        for half in range(2):
            row = tile * TILE + block.lane.row + 8 * half
            scale = T.bind(weights.row_scale(row) * unit)
            for n in range(block.columns):
                for i in range(2):
                    place = block.place(p, n, 2 * half + i)
                    value = block.sums[place] * scale * self._token_scale(n, i)
                    T.buffer_store(block.sums, value, [place])

    def _token_scale(self, n: int, i: int) -> Any:
        """Of activations that have one for each token, not for each group."""
        block = self.block
        if block.problem.sums is not None:
            return T.float32(1.0)
        own = T.min(block.first + self._token(n, i), block.tokens - 1)
        return T.bind(block.problem.scales[own])

    def _add_outliers(self, p: int, tile: Expr, sparse: Any) -> None:
        """A warp goes through the entries of its tile; lanes are tokens, so that none meet."""
        block, problem = self.block, self.block.problem
        entries = problem.outliers
        assert entries is not None
        barrier()  # sums of the tile before are read until here
        lane, warp, tokens = T.bind(block.thread % WARP), block.warp, block.shape.tokens
        first = T.bind(problem.sparse_begin(tile, block.level[0]))

        def clear_and_add(token: Any) -> None:
            own = T.bind(T.min(block.first + token, block.tokens - 1))
            with T.serial(0, TILE) as row:
                call(SET_FLOAT, T.address_of(sparse[warp, row, token]), T.float32(0.0))
            with T.serial(0, T.max(entries.slots - first, T.int32(0))) as step:
                index = T.bind(first + step)
                row = T.bind(problem.sparse_row(tile, index))
                product = problem.sparse_product(tile, index, own)
                call(ADD_FLOAT, T.address_of(sparse[warp, row, token]), product)

        strided(lane, WARP, tokens, clear_and_add)
        barrier()
        for n in range(block.columns):
            for i in range(4):
                row, token = block.lane.row + 8 * (i // 2), self._token(n, i)
                place = block.place(p, n, i)
                T.buffer_store(block.sums, block.sums[place] + sparse[warp, row, token], [place])

    def _token(self, n: int, i: int) -> Any:
        return n * COLUMNS + self.block.lane.quarter * 2 + i % 2

    def _store(self) -> None:
        block, spec = self.block, self.block.problem.spec
        per_output = spec.tiles_per_output
        for p in range(0, PER_WARP, per_output):
            tile = T.bind(block.row_tile(p))
            for half in range(2):
                row = block.lane.row + 8 * half
                column = T.bind(tile // per_output * TILE + row)
                with when(tirx.all(tile < spec.tiles, column < spec.output_features)):
                    for n in range(block.columns):
                        for i in range(2):
                            self._store_one(p, n, 2 * half + i, column)

    def _store_one(self, p: int, n: int, i: int, column: Expr) -> None:
        block = self.block
        token = T.bind(block.first + self._token(n, i))
        with when(token < block.tokens):
            own = range(p, p + block.problem.spec.tiles_per_output)
            sums = [block.sums[block.place(q, n, i)] for q in own]
            block.problem.epilogue.write(token, column, sums)
