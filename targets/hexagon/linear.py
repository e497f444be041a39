"""Linear kernels of HVX: integers from the codes to the sum over all groups.

The shared kernels (codegen/cpu/kernels/quantized_linear.py) scale every group's products as floats,
which this unit has none of: five products a packet instead of some fifty. `fixed_point.py` says
what these compute instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx.script.builder import ir as T

from morendo.codegen.cpu.kernels.dequantize import (
    STEPS,
    CodeReader,
    PlaneReader,
    QuantizedWeights,
)
from morendo.codegen.cpu.kernels.linear_spec import LinearSpec, kernel_builder
from morendo.codegen.cpu.kernels.matrix_product import Product, multiply_many_tokens
from morendo.codegen.cpu.kernels.outliers import add_to_vector
from morendo.codegen.cpu.kernels.quantized_kernel import QuantizedKernel, declare_kernel
from morendo.codegen.cpu.kernels.row_block import last_tile
from morendo.codegen.cpu.vectors.vector import Registers, splat
from morendo.codegen.kernel_code import PIPELINE
from morendo.ir.formats import ceil_div

from . import intrinsics as hvx
from .fetch_ahead import fetch_tiles
from .field_sums import FieldSums
from .fixed_point import sum_shift
from .isa import HvxISA
from .on_chip import StagedTiles
from .scale_words import LANES, WeightScales
from .token_scales import TokenScales, minus_in_halves

_TILES = 2
"""Tiles side by side: instructions of one wait for each other, and a packet has room for four."""

_TASKS = 24
"""Tasks of a matrix at most, several for each vector unit; each asks for memory once."""

_DOTS = "dots_per_product"  # an attribute of kernels: the base and the planes apart make two


def build_integer_linear(spec: LinearSpec, isa: HvxISA) -> tirx.PrimFunc:
    """The kernel of `spec`, in the place of `build_quantized_linear`."""
    with kernel_builder(spec.kernel_name(isa)) as builder:
        kernel = declare_kernel(spec, isa)
        tokens = TokenScales.of(kernel)
        if spec.max_tokens == 1:
            _matrix_vector(kernel, isa, tokens)
        else:
            multiply_many_tokens(kernel, partial(FixedPointProduct, tokens), scaled=False)
    in_parts = spec.format.nested and spec.max_tokens == 1
    function = builder.get().with_attr(PIPELINE, isa.pipeline.attribute(spec.max_tokens))
    return function.with_attr(_DOTS, 2 if in_parts else 1)


def dots_of(kernel: tirx.PrimFunc) -> int:
    """Dot instructions that a kernel needs for a vector of its most precise codes."""
    return int((kernel.attrs or {}).get(_DOTS, 1))


def _matrix_vector(kernel: QuantizedKernel, isa: HvxISA, tokens: TokenScales) -> None:
    """One token: a task is some blocks of tiles, whose groups are read side by side."""
    tiles = max(kernel.spec.tiles_per_output, min(_TILES, kernel.spec.tiles))
    blocks = ceil_div(kernel.spec.tiles, tiles)
    rounds = ceil_div(blocks, _TASKS)
    with T.parallel(0, ceil_div(blocks, rounds)) as task:
        scales = WeightScales.allocate(kernel, tiles)
        count = T.bind(T.min(rounds, blocks - task * rounds))
        start = T.bind(task * rounds * tiles)
        staged = StagedTiles.of(kernel, isa, tiles, start, count) if isa.pipeline.copy else None
        with T.serial(0, count) as index:
            first = T.bind(start + index * tiles)
            if isa.pipeline.fetch:
                fetch_tiles(kernel, T.bind(first + tiles * isa.pipeline.fetch), tiles)
            block = [T.bind(last_tile(kernel, first + i, tiles)) for i in range(tiles)]
            weights, places = staged.block(index) if staged else (kernel.weights, block)
            sums = _sum_groups(kernel, tokens, scales, block, weights, places)
            _finish(kernel, tokens, first, block, sums)


def _sum_groups(
    kernel: QuantizedKernel,
    tokens: TokenScales,
    scales: WeightScales,
    block: Sequence[Expr],
    weights: QuantizedWeights,
    places: Sequence[Expr],
) -> Registers:
    """The sums of the tiles of `block`, whose codes are the tiles `places` of `weights`."""
    sums = Registers(len(block), "int32", LANES)
    for i, tile in enumerate(block):
        scales.read(kernel, i, tile)
        sums[i] = splat(T.int32(kernel.spec.groups // 2), LANES)
    for reader, start, end in weights.ranges(kernel.level):
        with T.serial(start, end) as group:
            dots = _dots(kernel, reader, scales, places, group)
            for i in range(len(block)):
                scale, ratio = scales.scale(i, group), tokens.ratio(0, group)
                sums[i] = add_scaled(kernel, sums[i], dots[i], scale, ratio)
    return sums


def _finish(
    kernel: QuantizedKernel,
    tokens: TokenScales,
    first: Expr,
    block: Sequence[Expr],
    sums: Registers,
) -> None:
    """Write the results of the tiles from `first` on, which are `block`."""
    results = Registers(len(block), "float32", LANES)
    for i, tile in enumerate(block):
        row_scales = kernel.weights.scales.row_scale(tile * LANES, LANES)
        results[i] = tokens.result(sums[i], 0, row_scales)
        if kernel.outliers is not None:
            add_to_vector(kernel.outliers, kernel.x, tile, results, i)
    kernel.epilogue.write(0, first, [[results[i]] for i in range(len(block))])


def _dots(
    kernel: QuantizedKernel, reader: CodeReader, scales: WeightScales, block: Sequence[Expr], group
) -> list[Expr]:
    """The exact products of a group of the only token with each tile, less zeros."""
    if isinstance(reader, PlaneReader):
        return _dots_of_planes(kernel, reader, scales, block, group)
    x, acc = kernel.x, Registers(len(block), "int32", LANES)
    for i in range(len(block)):
        acc[i] = splat(x.sums[0, group] * T.int32(-kernel.isa.signed_offset), LANES)
    with T.serial(0, kernel.weights.blocks) as part:
        fetched = [reader.fetch(tile, group, part, 0) for tile in block]
        for step in range(STEPS):
            four = x.words(0, group, part, step)
            for i, words in enumerate(fetched):
                acc[i] = kernel.isa.dot(acc[i], reader.unpack(words, step), four)
    return [acc[i] for i in range(len(block))]


def _dots_of_planes(
    kernel: QuantizedKernel, reader: PlaneReader, scales: WeightScales, block: Sequence[Expr], group
) -> list[Expr]:
    x, sums = kernel.x, [FieldSums(reader) for _ in block]
    for part in range(kernel.weights.blocks):
        fetched = [reader.fetch(tile, group, part, 0) for tile in block]
        for step in range(STEPS):
            four = T.bind(x.words(0, group, part, step).value)
            for words, each in zip(fetched, sums, strict=True):
                each.add(words, step, four)
    results = []
    start = T.bind(x.sums[0, group] * T.int32(reader.middle))
    for i, each in enumerate(sums):
        minus_sum = T.bind(minus_in_halves(x.sums[0, group]))
        zeros = hvx.PLUS_TIMES_HALF(splat(start, LANES), scales.zero(i, group), minus_sum)
        results.append(T.bind(each.total(zeros)))
    return results


def add_scaled(kernel: QuantizedKernel, total: Expr, dot: Expr, scale: Expr, ratio: Expr) -> Expr:
    """Add a group's products, scaled, to the sums of rows."""
    shift = sum_shift(kernel.spec.groups * kernel.spec.format.group_size)
    scaled = hvx.TIMES_EVEN_HIGH(hvx.TIMES_EVEN(dot, scale), ratio)
    if not shift:
        return hvx.ADD(total, scaled)
    return hvx.PLUS_RIGHT_SIGNED(total, scaled, T.int32(shift))


class FixedPointProduct(Product):
    """The sums of a block of tokens, as integers until all groups are added."""

    def __init__(self, tokens: TokenScales, *options: Any) -> None:
        super().__init__(*options)
        self.tokens = tokens

    def multiply(self) -> None:
        """Set the sums to the products, without outliers."""
        kernel, columns = self.kernel, self.columns
        scales = WeightScales.allocate(kernel, len(columns))
        totals = Registers(len(self.sums), "int32", LANES)
        for c, column in enumerate(columns):
            scales.read(kernel, c, column.tile)
        for j in range(len(totals)):
            totals[j] = splat(T.int32(kernel.spec.groups // 2), LANES)
        with T.serial(0, kernel.spec.groups) as group:
            dots = self._dots(group)
            for c in range(len(columns)):
                scale = scales.scale(c, group)
                for m in range(self.registers.tokens):
                    j, ratio = self._at(m, c), self.tokens.ratio(self.start + m, group)
                    totals[j] = add_scaled(kernel, totals[j], dots[j], scale, ratio)
        for c, column in enumerate(columns):
            row_scales = T.bind(kernel.weights.scales.row_scale(column.tile * LANES, LANES))
            for m in range(self.registers.tokens):
                j = self._at(m, c)
                self.sums[j] = self.tokens.result(totals[j], self.start + m, row_scales)

    def _dots(self, group: Expr) -> Registers:
        """The exact products of a group, of codes less zeros."""
        acc = self._initial_sums(group)
        with T.serial(0, self.kernel.weights.blocks) as block:
            for step in range(STEPS):
                self._add_step(acc, group, block, step)
        return acc

    def _add_step(self, acc: Registers, group: Expr, block: Expr, step: int) -> None:
        """Add the products of four channels, which the instruction takes as a scalar of a token."""
        codes = [
            T.bind(self.rows.code(0, group, block, step, vector))
            for vector in range(len(self.columns))
        ]
        for m in range(self.registers.tokens):
            four = T.bind(self.kernel.x.words(self.start + m, group, block, step).value)
            for c, code in enumerate(codes):
                j = self._at(m, c)
                acc[j] = hvx.DOT_SCALAR(acc[j], code, four)
