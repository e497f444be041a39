"""Linear kernels on quantized weights: int8 activations, 8-bit codes or nested codes in planes.

The dequantization pipeline has three stages: fetch packed codes, unpack them to bytes (both in
`dequantize.py`), multiply-accumulate with the target's dot instruction (here). One token runs them
back to back in registers, limited by memory. More tokens unpack a block of row tiles once into a
workspace that fits the L2 cache, then multiply it with blocks of tokens held in registers.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx.script.builder import ir as T

from morendo.codegen.cpu.vectors.isa import VectorISA
from morendo.codegen.cpu.vectors.vector import Registers, load, splat, store, vector_type
from morendo.ir.formats import OUTLIER_ARRAYS, ceil_div

from .activations import Activations
from .dequantize import STEPS, CodeReader, Level, QuantizedWeights
from .epilogue import Epilogue
from .linear_spec import (
    LinearSpec,
    kernel_builder,
    scalar_argument,
    split_halves,
    task_tokens,
    tensor_argument,
)
from .outliers import MatrixSums, OutlierReader, add_to_vector


@dataclass(frozen=True)
class Kernel:
    """The parameters of a kernel under construction."""

    spec: LinearSpec
    isa: VectorISA
    x: Activations
    weights: QuantizedWeights
    epilogue: Epilogue
    tokens: Any
    level: Level | None
    outliers: OutlierReader | None

    @property
    def halves(self) -> int:
        """Vectors that hold the rows of a tile."""
        return split_halves(self.spec.format, self.isa)

    @property
    def signed(self) -> bool:
        """Whether a matrix product works on signed codes (zero points folded in)."""
        return self.level is None or self.isa.folds_zeros


def _declare(spec: LinearSpec, isa: VectorISA) -> Kernel:
    tokens, groups, size = spec.max_tokens, spec.groups, spec.format.group_size
    x = Activations(
        isa,
        size,
        tensor_argument("codes", (tokens, groups * size), "int8"),
        tensor_argument("scales", (tokens, groups), "float32"),
        tensor_argument("sums", (tokens, groups), "int32"),
    )
    planes, slots = {name: T.int32() for name in spec.format.plane_names}, T.int32()
    stored = dict(planes)  # extents that are known at run time
    stored |= {f"outlier_{name}": slots for name in ("value", "channel", "row")}
    buffers = {}
    for array in spec.weight_arrays():
        tiles, *rest = array.shape
        if array.name in stored:
            rest[0] = stored[array.name]
        buffers[array.name] = tensor_argument(f"w_{array.name}", (tiles, *rest), array.dtype)
    epilogue = Epilogue.declare(spec, isa)
    count = scalar_argument("tokens")
    level, outliers = None, None
    if spec.format.nested:
        bits = [name.removeprefix("plane") for name in planes]
        level = tuple(scalar_argument(f"n{bit}") for bit in bits)
        for bit, stored_groups in zip(bits, planes.values(), strict=True):
            scalar_argument(f"p{bit}", stored_groups)
        if spec.outliers:
            sparse = {name: buffers.pop(f"outlier_{name}") for name in OUTLIER_ARRAYS}
            scalar_argument("slots", slots)
            outliers = OutlierReader(spec.format, groups, **sparse, slots=slots, n3=level[0])
    weights = QuantizedWeights(isa, spec.format, groups, buffers)
    return Kernel(spec, isa, x, weights, epilogue, count, level, outliers)


def build_quantized_linear(spec: LinearSpec, isa: VectorISA) -> tirx.PrimFunc:
    """Build the kernel of `spec`; its buffers are those of `LinearSpec` and `ir/formats.py`.

    Parameters of the kernel: codes, scales, sums, weights..., [bias], [residual], out, tokens,
    for nested codes n3, n4, ... (the level) and p3, p4, ... (the groups that the planes have
    stored), and with outliers their slots.
    """
    with kernel_builder(spec.kernel_name(isa)) as builder:
        kernel = _declare(spec, isa)
        if spec.max_tokens == 1:
            _matrix_vector(kernel)
        else:
            _matrix_matrix(kernel)
    return builder.get()


# One token: fetch, unpack and multiply-accumulate in registers.


def _matrix_vector(kernel: Kernel) -> None:
    spec, tiles = kernel.spec, kernel.spec.tiles_per_output
    with T.parallel(0, spec.tiles // tiles) as task:
        sums = Registers(tiles * kernel.halves, "float32", kernel.isa.lanes)
        for i in range(len(sums)):
            sums[i] = splat(T.float32(0), kernel.isa.lanes)
        for i in range(tiles):
            tile = task * tiles + i
            for reader, first, end in kernel.weights.ranges(kernel.level):
                with T.serial(first, end) as group:
                    for half in range(kernel.halves):
                        _add_group(kernel, reader, tile, group, half, sums, i)
        _scale_rows(kernel, sums, task * tiles, tiles, 1)
        if kernel.outliers is not None:
            for i in range(tiles):
                first = i * kernel.halves
                add_to_vector(kernel.outliers, kernel.x, task * tiles + i, sums, first)
        kernel.epilogue.write(0, task * tiles, _of_token(kernel, sums, tiles, 0))


def _add_group(kernel: Kernel, reader: CodeReader, tile, group, half, sums, i) -> None:
    """Add to sums: scale of the row and of the token * exact dot product of one group."""
    x, lanes = kernel.x, kernel.isa.lanes
    acc = Registers(1, "int32", lanes)
    if reader.unsigned:
        acc[0] = reader.minus_zero(tile, group, half) * x.sum(0, group)
    else:
        acc[0] = x.sum(0, group) * splat(T.int32(-kernel.isa.signed_offset), lanes)
    dot = kernel.isa.dot if reader.unsigned else kernel.isa.dot_signed
    with T.serial(0, kernel.weights.blocks) as block:
        reader.prefetch(tile, group, block)
        fetched = reader.fetch(tile, group, block, half)
        for step in range(STEPS):
            codes = reader.unpack(fetched, step)
            acc[0] = dot(acc[0], codes, x.words(0, group, block, step))
    scale = kernel.weights.scale(tile, group, half) * x.scale(0, group)
    dot_float = T.cast(acc[0], vector_type("float32", lanes))
    at = i * kernel.halves + half
    sums[at] = sums[at] + dot_float * scale


# Many tokens: unpack a block of row tiles, then multiply it with blocks of tokens.


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
        with T.If(first_token < kernel.tokens), T.Then():
            steps = spec.groups * kernel.weights.blocks * STEPS
            unpacked = T.alloc_buffer((steps, tiles, spec.format.row_tile), "uint32", layout=None)
            for reader, first, end in kernel.weights.ranges(kernel.level):
                with T.serial(first, end) as group:
                    _unpack_group(kernel, reader, first_tile, tiles, group, unpacked)
            sparse = None
            if kernel.outliers is not None:
                sparse = MatrixSums.allocate(kernel.outliers, kernel.x, tiles, block)
            end_token = T.min(kernel.tokens, first_token + chunk)
            with T.serial(0, T.floordiv(end_token - first_token + block - 1, block)) as i:
                token = T.bind(first_token + i * block)
                _token_block(kernel, unpacked, sparse, first_tile, tiles, token, block)


def _last_tile(kernel: Kernel, tile: Expr, tiles: int) -> Expr:
    """`tile`, or the last one where the row block hangs over the matrix."""
    return T.min(tile, kernel.spec.tiles - 1) if kernel.spec.tiles % tiles else tile


def _unpack_group(kernel: Kernel, reader: CodeReader, first_tile, tiles, group, unpacked) -> None:
    """Write one group of a row block as words: codes, or code - zero + signed_offset."""
    lanes, weights = kernel.isa.lanes, kernel.weights
    for i, half in itertools.product(range(tiles), range(kernel.halves)):
        tile = _last_tile(kernel, first_tile + i, tiles)
        fold = _zero_bytes(kernel, reader, tile, group, half)
        with T.serial(0, weights.blocks) as block:
            fetched = reader.fetch(tile, group, block, half)
            for step in range(STEPS):
                words = reader.unpack(fetched, step)
                if fold is not None:
                    words = _add_bytes(words, fold, lanes)
                at = (group * weights.blocks + block) * STEPS + step
                store(unpacked, (at, i, half * lanes), words, lanes)


def _zero_bytes(kernel: Kernel, reader: CodeReader, tile, group, half) -> Expr | None:
    """What turns unsigned codes into signed ones: signed_offset - zero in all bytes of a row."""
    if not (reader.unsigned and kernel.isa.folds_zeros):
        return None
    lanes = kernel.isa.lanes
    offset = splat(T.int32(kernel.isa.signed_offset), lanes)
    fold = T.cast(offset + reader.minus_zero(tile, group, half), vector_type("uint32", lanes))
    low_byte = fold & splat(T.uint32(0xFF), lanes)
    return T.bind(low_byte * splat(T.uint32(0x01010101), lanes))


def _add_bytes(a: Expr, b: Expr, lanes: int) -> Expr:
    """Bytewise a + b of words, modulo 256."""
    byte_type = vector_type("uint8", 4 * lanes)
    total = T.reinterpret(byte_type, a) + T.reinterpret(byte_type, b)
    return T.reinterpret(vector_type("uint32", lanes), total)


def _token_block(kernel: Kernel, unpacked, sparse, first_tile, tiles, token, block_tokens) -> None:
    """The output of `block_tokens` tokens from `token` on for a row block."""
    spec, lanes, vectors = kernel.spec, kernel.isa.lanes, tiles * kernel.halves
    # The last block may hang over the buffers: it starts earlier and does some tokens again.
    overhang = spec.max_tokens % block_tokens
    start = T.bind(T.min(token, spec.max_tokens - block_tokens)) if overhang else token
    sums = Registers(block_tokens * vectors, "float32", lanes)
    for i in range(len(sums)):
        sums[i] = splat(T.float32(0), lanes)
    with T.serial(0, spec.groups) as group:
        _multiply_group(kernel, unpacked, first_tile, tiles, group, start, block_tokens, sums)
    _scale_rows(kernel, sums, first_tile, tiles, block_tokens)
    if sparse is not None:
        with T.If(sparse.reader.n3 < spec.groups), T.Then():
            _add_outliers(kernel, sparse, sums, first_tile, tiles, start)
    for m in range(block_tokens):
        at = T.bind(start + m)
        wanted = T.And(at >= token, at < kernel.tokens) if overhang else at < kernel.tokens
        with T.If(wanted), T.Then():
            kernel.epilogue.write(at, first_tile, _of_token(kernel, sums, tiles, m))


def _of_token(kernel: Kernel, sums: Registers, tiles, m) -> list[list[Expr]]:
    """The float sums of token m: per tile, per half."""
    halves = range(kernel.halves)
    return [[sums[(m * tiles + i) * len(halves) + half] for half in halves] for i in range(tiles)]


def _scale_rows(kernel: Kernel, sums: Registers, first_tile, tiles, block_tokens) -> None:
    """Multiply the float sums with the scales of their rows."""
    for i, half in itertools.product(range(tiles), range(kernel.halves)):
        tile = _last_tile(kernel, first_tile + i, tiles)
        scale = T.bind(kernel.weights.row_scale(tile, half))
        for m in range(block_tokens):
            j = (m * tiles + i) * kernel.halves + half
            sums[j] = sums[j] * scale


def _add_outliers(
    kernel: Kernel, sparse: MatrixSums, sums: Registers, first_tile, tiles, start
) -> None:
    """Add the products of the outliers of a row block with a token block."""
    lanes = kernel.isa.lanes
    block = [T.bind(_last_tile(kernel, first_tile + i, tiles)) for i in range(tiles)]
    sparse.multiply(block, start)
    for m, i, half in itertools.product(range(sparse.tokens), range(tiles), range(kernel.halves)):
        j = (m * tiles + i) * kernel.halves + half
        sums[j] = sums[j] + sparse.rows(i, half * lanes, m)


def _initial_sums(kernel: Kernel, first_tile, tiles, group, start, block_tokens) -> Registers:
    """What the sums of a group start from: minus the part of the codes' offset or zero points."""
    isa, x, vectors = kernel.isa, kernel.x, tiles * kernel.halves
    acc = Registers(block_tokens * vectors, "int32", isa.lanes)
    for v in range(vectors):
        tile = _last_tile(kernel, first_tile + v // kernel.halves, tiles)
        if kernel.level is None or isa.folds_zeros:
            factor = splat(T.int32(-isa.signed_offset), isa.lanes)
        else:
            half = v % kernel.halves
            factor = T.bind(kernel.weights.minus_zero(tile, group, half, kernel.level))
        for m in range(block_tokens):
            acc[m * vectors + v] = x.sum(start + m, group) * factor
    return acc


def _multiply_group(kernel, unpacked, first_tile, tiles, group, start, block_tokens, sums) -> None:
    isa, x, weights = kernel.isa, kernel.x, kernel.weights
    lanes, vectors = isa.lanes, tiles * kernel.halves
    acc = _initial_sums(kernel, first_tile, tiles, group, start, block_tokens)
    dot = isa.dot_signed if kernel.signed else isa.dot
    with T.serial(0, weights.blocks) as block:
        for step in range(STEPS):
            at = (group * weights.blocks + block) * STEPS + step
            words = [
                T.bind(load(unpacked, (at, v // kernel.halves, v % kernel.halves * lanes), lanes))
                for v in range(vectors)
            ]
            for m in range(block_tokens):
                x_words = T.bind(x.words(start + m, group, block, step))
                for v in range(vectors):
                    j = m * vectors + v
                    acc[j] = dot(acc[j], words[v], x_words)
    for v in range(vectors):
        tile = _last_tile(kernel, first_tile + v // kernel.halves, tiles)
        scale = T.bind(weights.scale(tile, group, v % kernel.halves))
        for m in range(block_tokens):
            j = m * vectors + v
            dot_float = T.cast(acc[j], vector_type("float32", lanes))
            sums[j] = sums[j] + dot_float * (scale * x.scale(start + m, group))
