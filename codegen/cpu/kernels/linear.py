"""Linear kernels on float weights (float32, or float16 widened to float32), float32 sums."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx.script.builder import ir as T

from morendo.codegen.cpu.vectors.isa import VectorISA
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
class Kernel:
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
        kernel = Kernel(spec, isa, x, data, epilogue, scalar_argument("tokens"))
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


def _matrix_vector(kernel: Kernel) -> None:
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


def _add_channel(kernel: Kernel, tile, channel, sums: Registers, first: int) -> None:
    x = kernel.input(0, channel)
    for half in range(kernel.halves):
        sums[first + half] = sums[first + half] + kernel.weights(tile, channel, half) * x


def _tree_sum(sums: Registers, first: int, stride: int) -> Expr:
    values = [sums[i] for i in range(first, len(sums), stride)]
    while len(values) > 1:
        values = [a + b for a, b in zip(values[::2], values[1::2], strict=True)]
    return values[0]


def _matrix_matrix(kernel: Kernel) -> None:
    spec, isa = kernel.spec, kernel.isa
    tiles = max(isa.block_tiles, spec.tiles_per_output)
    block = min(isa.block_tokens * isa.block_tiles // tiles, spec.max_tokens)
    row_blocks = ceil_div(spec.tiles, tiles)
    chunk = task_tokens(row_blocks, spec.max_tokens)
    chunks = ceil_div(spec.max_tokens, chunk)
    with T.parallel(0, row_blocks * chunks) as task:
        first_tile = T.bind(T.floordiv(task, chunks) * tiles)
        first_token = T.bind(T.floormod(task, chunks) * chunk)
        end_token = T.min(kernel.tokens, first_token + chunk)
        with T.serial(0, T.floordiv(end_token - first_token + block - 1, block)) as i:
            _token_block(kernel, first_tile, tiles, T.bind(first_token + i * block), block)


def _token_block(kernel: Kernel, first_tile, tiles, token, block_tokens) -> None:
    """The output of `block_tokens` tokens from `token` on for a row block."""
    spec, lanes, halves = kernel.spec, kernel.isa.lanes, kernel.halves
    vectors = tiles * halves
    # The last block may hang over the buffers: it starts earlier and does some tokens again.
    overhang = spec.max_tokens % block_tokens
    start = T.bind(T.min(token, spec.max_tokens - block_tokens)) if overhang else token
    sums = _zeros(block_tokens * vectors, lanes)
    last = spec.tiles - 1
    bound = [
        T.bind(T.min(first_tile + i, last)) if spec.tiles % tiles else first_tile + i
        for i in range(tiles)
    ]
    with T.serial(0, spec.in_features) as channel:
        weights = [kernel.weights(bound[v // halves], channel, v % halves) for v in range(vectors)]
        for m in range(block_tokens):
            x = kernel.input(start + m, channel)
            for v in range(vectors):
                sums[m * vectors + v] = sums[m * vectors + v] + weights[v] * x
    for m in range(block_tokens):
        at = T.bind(start + m)
        wanted = T.And(at >= token, at < kernel.tokens) if overhang else at < kernel.tokens
        with T.If(wanted), T.Then():
            values = [
                [sums[(m * tiles + i) * halves + half] for half in range(halves)]
                for i in range(tiles)
            ]
            kernel.epilogue.write(at, first_tile, values)
