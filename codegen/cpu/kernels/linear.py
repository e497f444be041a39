"""Linear kernels on float weights (float32, or float16 widened to float32), float32 sums."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx.script.builder import ir as T

from morendo.codegen.cpu.vectors.isa import VectorISA
from morendo.codegen.cpu.vectors.register_block import RegisterBlock, register_block
from morendo.codegen.cpu.vectors.vector import Registers, load, splat, vector_type
from morendo.ir.formats import ceil_div

from .epilogue import Epilogue
from .linear_spec import (
    LinearSpec,
    kernel_builder,
    scalar_argument,
    split_halves,
    task_tokens,
    tensor_argument,
)

_CHAINS = 8  # independent sums of a matrix-vector product, to hide the latency of multiply-add


@dataclass(frozen=True)
class FloatLinear:
    """The parameters of a kernel under construction."""

    spec: LinearSpec
    isa: VectorISA
    x: Any  # float32 [M, K]
    data: Any  # float32 | float16 [T, K, rows of a tile]
    epilogue: Epilogue
    tokens: Any

    @property
    def halves(self) -> int:
        """Vectors that hold the rows of a tile."""
        return split_halves(self.spec.format, self.isa)

    def weights(self, tile: Expr, channel: Expr, half: int) -> Expr:
        """One input channel of the rows of (half of) a tile, float32 x lanes."""
        lanes = self.isa.lanes
        value = load(self.data, (tile, channel, half * lanes), lanes)
        return T.bind(T.cast(value, vector_type("float32", lanes)))

    def input(self, token: Expr | int, channel: Expr) -> Expr:
        """One channel of a token in every lane."""
        return T.bind(splat(self.x[token, channel], self.isa.lanes))


def build_linear(spec: LinearSpec, isa: VectorISA) -> tirx.PrimFunc:
    """The kernel linear(x, data, [bias], [residual], out, tokens) of `spec`."""
    with kernel_builder(spec.kernel_name(isa)) as builder:
        x = tensor_argument("x", (spec.max_tokens, spec.in_features), "float32")
        (array,) = spec.weight_arrays()
        data = tensor_argument("w_data", array.shape, array.dtype)
        epilogue = Epilogue.declare(spec, isa)
        kernel = FloatLinear(spec, isa, x, data, epilogue, scalar_argument("tokens"))
        if spec.max_tokens == 1:
            _matrix_vector(kernel)
        else:
            _matrix_matrix(kernel)
    return builder.get()


def _zeros(count: int, lanes: int) -> Registers:
    sums = Registers(count, "float32", lanes)
    for i in range(count):
        sums[i] = splat(T.float32(0), lanes)
    return sums


def _matrix_vector(kernel: FloatLinear) -> None:
    spec, lanes, halves = kernel.spec, kernel.isa.lanes, kernel.halves
    tiles, chains = spec.tiles_per_output, _CHAINS // halves
    with T.parallel(0, spec.tiles // tiles) as task:
        finished = []
        for i in range(tiles):
            tile = task * tiles + i
            sums = _zeros(chains * halves, lanes)
            with T.serial(0, spec.in_features // chains) as step:
                for c in range(chains):
                    _add_channel(kernel, tile, step * chains + c, sums, c * halves)
            done = spec.in_features // chains * chains
            for c in range(spec.in_features - done):
                _add_channel(kernel, tile, T.int32(done + c), sums, c * halves)
            finished.append([T.bind(_tree_sum(sums, half, halves)) for half in range(halves)])
        kernel.epilogue.write(0, task * tiles, finished)


def _add_channel(kernel: FloatLinear, tile, channel, sums: Registers, first: int) -> None:
    x = kernel.input(0, channel)
    for half in range(kernel.halves):
        sums[first + half] = sums[first + half] + kernel.weights(tile, channel, half) * x


def _tree_sum(sums: Registers, first: int, stride: int) -> Expr:
    values = [sums[i] for i in range(first, len(sums), stride)]
    while len(values) > 1:
        values = [a + b for a, b in zip(values[::2], values[1::2], strict=True)]
    return values[0]


def _matrix_matrix(kernel: FloatLinear) -> None:
    spec, isa = kernel.spec, kernel.isa
    tiles = max(isa.block_tiles, spec.tiles_per_output)
    registers = register_block(isa, kernel.halves, tiles, spec.max_tokens, 1)
    block = registers.tokens
    row_blocks = ceil_div(spec.tiles, tiles)
    chunk = task_tokens(row_blocks, spec.max_tokens)
    chunks = ceil_div(spec.max_tokens, chunk)
    with T.parallel(0, row_blocks * chunks) as task:
        first_tile = T.bind(T.floordiv(task, chunks) * tiles)
        first_token = T.bind(T.floormod(task, chunks) * chunk)
        end_token = T.min(kernel.tokens, first_token + chunk)
        with T.serial(0, T.floordiv(end_token - first_token + block - 1, block)) as i:
            _token_block(kernel, first_tile, tiles, T.bind(first_token + i * block), registers)


def _token_block(
    kernel: FloatLinear, first_tile, tiles: int, token: Expr, registers: RegisterBlock
) -> None:
    """The output of the tokens of a register block from `token` on, for a row block."""
    spec, lanes, tokens = kernel.spec, kernel.isa.lanes, registers.tokens
    # The last block may hang over the buffers: it starts earlier and does some tokens again.
    overhang = spec.max_tokens % tokens
    start = T.bind(T.min(token, spec.max_tokens - tokens)) if overhang else token
    for first_half in range(0, kernel.halves, registers.halves):
        places = list(itertools.product(range(tiles), range(registers.halves)))
        sums = _zeros(tokens * len(places), lanes)
        last = spec.tiles - 1
        bound = [
            T.bind(T.min(first_tile + i, last)) if spec.tiles % tiles else first_tile + i
            for i in range(tiles)
        ]
        with T.serial(0, spec.in_features) as channel:
            weights = [kernel.weights(bound[i], channel, first_half + half) for i, half in places]
            for m in range(tokens):
                x = kernel.input(start + m, channel)
                for v, weight in enumerate(weights):
                    j = m * len(places) + v
                    sums[j] = sums[j] + weight * x
        for m in range(tokens):
            at = T.bind(start + m)
            wanted = T.And(at >= token, at < kernel.tokens) if overhang else at < kernel.tokens
            with T.If(wanted), T.Then():
                values = [sums[m * len(places) + v] for v in range(len(places))]
                by_tile = [
                    values[i : i + registers.halves]
                    for i in range(0, len(values), registers.halves)
                ]
                kernel.epilogue.write(at, first_tile, by_tile, first_half)
