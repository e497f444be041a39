"""Many tokens times a quantized matrix: unpack a block of row tiles once, then multiply it.

The unpacked codes go into a workspace that fits the L2 cache (`RowBlock`). Blocks of tokens then go
through it; their float sums are in registers from the first to the last group, the exact int32 sums
of a group from its first to its last step (`RegisterBlock`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from tvm.ir import Expr
from tvm.tirx.script.builder import ir as T

from morendo.codegen.cpu.vectors.register_block import RegisterBlock, register_block
from morendo.codegen.cpu.vectors.vector import Registers, splat, vector_type
from morendo.ir.formats import ceil_div

from .dequantize import STEPS, UNIT_SHIFT
from .linear_spec import task_tokens
from .outliers import MatrixSums
from .quantized_kernel import QuantizedKernel
from .row_block import RowBlock


def multiply_many_tokens(
    kernel: QuantizedKernel,
    product_of: Callable[..., Product] | None = None,
    around: Callable[[], AbstractContextManager[None]] = nullcontext,
    scaled: bool = True,
) -> None:
    """The body of a kernel of more than one token: a task is a row block and a chunk of tokens.

    Args:
        product_of: makes what multiplies a block of tokens, a `Product` by default.
        around: what a task does before and after the products.
        scaled: whether it asks for a group's scales as floats.
    """
    spec = kernel.spec
    tiles, registers = tiles_at_a_time(kernel), registers_of(kernel)
    block = registers.tokens
    row_blocks = ceil_div(spec.tiles, tiles)
    chunk = task_tokens(row_blocks, spec.max_tokens, kernel.isa.pipeline.unpack)
    chunks = ceil_div(spec.max_tokens, chunk)
    with T.parallel(0, row_blocks * chunks) as task:
        first_tile = T.bind(T.floordiv(task, chunks) * tiles)
        first_token = T.bind(T.floormod(task, chunks) * chunk)
        with T.If(first_token < kernel.tokens), T.Then():
            rows = RowBlock.allocate(kernel, tiles, registers, scaled)
            rows.unpack(first_tile)
            sparse = None
            if kernel.outliers is not None:
                sparse = MatrixSums.allocate(kernel.outliers, kernel.x, tiles, block)
            end_token = T.min(kernel.tokens, first_token + chunk)
            blocks = T.floordiv(end_token - first_token + block - 1, block)
            with around(), T.serial(0, blocks) as i:
                token = T.bind(first_token + i * block)
                product = product_of or Product
                _token_block(kernel, product, rows, sparse, first_tile, token)


def tiles_at_a_time(kernel: QuantizedKernel) -> int:
    """Tiles of a row block."""
    return max(kernel.isa.block_tiles, kernel.spec.tiles_per_output)


def registers_of(kernel: QuantizedKernel) -> RegisterBlock:
    """What a `Product` has the sums of."""
    most = kernel.x.layout.stored_tokens
    return register_block(kernel.isa, kernel.halves, tiles_at_a_time(kernel), most, 2)


def _token_block(
    kernel: QuantizedKernel,
    product_of: Callable[..., Product],
    rows: RowBlock,
    sparse: MatrixSums | None,
    first_tile: Expr,
    token: Expr,
) -> None:
    """The output of the tokens of a register block from `token` on, for a row block."""
    # The last block may hang over the buffers: it starts earlier and does some tokens again.
    registers, stored = rows.registers, kernel.x.layout.stored_tokens
    overhang = stored % registers.tokens
    start = T.bind(T.min(token, stored - registers.tokens)) if overhang else token
    for first_half in range(0, kernel.halves, registers.halves):
        halves = range(first_half, first_half + registers.halves)
        block = [rows.tile(first_tile + i) for i in range(rows.tiles)]
        columns = [Column(i, half, tile) for i, tile in enumerate(block) for half in halves]
        product = product_of(rows, columns, start)
        product.multiply()
        if sparse is not None:
            with T.If(sparse.reader.n3 < kernel.spec.groups), T.Then():
                if first_half == 0:
                    sparse.multiply([T.bind(tile) for tile in block], start)
                product.add_outliers(sparse)
        for m in range(registers.tokens):
            at = T.bind(start + m)
            wanted = T.And(at >= token, at < kernel.tokens) if overhang else at < kernel.tokens
            with T.If(wanted), T.Then():
                kernel.epilogue.write(at, first_tile, product.of_token(m), first_half)


@dataclass(frozen=True)
class Column:
    """One vector of rows: number `half` of tile `i` of the row block, `tile` of the matrix."""

    i: int
    half: int
    tile: Expr


class Product:
    """The sums of a register block: float32, per token and column.

    Until `multiply` ends they lie as the multiply instruction leaves them, rows and tokens mixed;
    then a vector holds rows of one token.
    """

    def __init__(
        self,
        rows: RowBlock,
        columns: Sequence[Column],
        start: Expr,
    ) -> None:
        kernel, registers = rows.kernel, rows.registers
        self.rows, self.kernel, self.registers = rows, kernel, registers
        self.columns, self.start, self.half = columns, start, columns[0].half
        self.isa, self.unit = kernel.isa, kernel.isa.block
        self.parts, self.lanes = self.unit.parts, kernel.isa.lanes
        self.sums = Registers(registers.tokens * len(columns), "float32", self.lanes)

    def multiply(self) -> None:
        """Set the sums to the products, without outliers."""
        for i in range(len(self.sums)):
            self.sums[i] = splat(T.float32(0), self.lanes)
        with T.serial(0, self.kernel.spec.groups) as group:
            self._add_group(group)
        self._gather()
        for c, column in enumerate(self.columns):
            scale = T.bind(self.kernel.weights.row_scale(column.tile, column.half))
            for m in range(self.registers.tokens):
                j = self._at(m, c)
                self.sums[j] = self.sums[j] * scale

    def add_outliers(self, sparse: MatrixSums) -> None:
        """Add the products of the outliers."""
        for m, (c, column) in itertools.product(range(sparse.tokens), enumerate(self.columns)):
            j = self._at(m, c)
            self.sums[j] = self.sums[j] + sparse.rows(column.i, column.half * self.lanes, m)

    def of_token(self, m: int) -> list[list[Expr]]:
        """The sums of token m: per tile, per half."""
        sums = [self.sums[self._at(m, c)] for c in range(len(self.columns))]
        halves = self.registers.halves
        return [sums[first : first + halves] for first in range(0, len(sums), halves)]

    def _at(self, m: int, c: int, part: int | None = None) -> int:
        """The register of token m and column c; of a part of the column, with all tokens that one
        instruction takes with m.
        """
        block, token = divmod(m, self.parts)
        return (block * len(self.columns) + c) * self.parts + (token if part is None else part)

    def _places(self) -> list[tuple[int, Column, int]]:
        """(index, column, part) of all that one token is multiplied with."""
        return [
            (c, column, part)
            for c, column in enumerate(self.columns)
            for part in range(self.parts)
        ]  # fmt: skip

    def _first_tokens(self) -> range:
        """The first tokens of those that one instruction takes."""
        return range(0, self.registers.tokens, self.parts)

    def _add_group(self, group: Expr) -> None:
        """Add one group's products, scaled, to the float sums."""
        acc, x = self._sums_of_group(group), self.kernel.x
        as_float = vector_type("float32", self.lanes)
        for vector, (c, _, part) in enumerate(self._places()):
            scale = T.bind(self.rows.scale(self.half, group, vector))
            for m in self._first_tokens():
                j = self._at(m, c, part)
                product = T.cast(acc[j], as_float)
                self.sums[j] = self.sums[j] + product * (scale * x.scale(self.start + m, group))

    def _sums_of_group(self, group: Expr) -> Registers:
        """The exact products of a group, less zeros."""
        if self.kernel.short:
            return self._short_sums(group)
        acc = self._initial_sums(group)
        with T.serial(0, self.kernel.weights.blocks) as block:
            for step in range(0, STEPS, self.parts):
                self._add_step(acc, group, block, step)
        return acc

    def _short_sums(self, group: Expr) -> Registers:
        """The same of codes as they are, a block of channels at a time in 16 bits."""
        total = Registers(len(self.sums), "int32", self.lanes)
        for j in range(len(total)):
            total[j] = splat(T.int32(0), self.lanes)
        with T.serial(0, self.kernel.weights.blocks) as block:
            sums = self.isa.short_sums(len(total))
            for step in range(STEPS):
                codes = self._codes(group, block, step)
                for m in self._first_tokens():
                    x = T.bind(self.kernel.x.words(self.start + m, group, block, step))
                    for c, code in enumerate(codes):
                        sums.add(self._at(m, c), code, x)
            for j in range(len(total)):
                total[j] = total[j] + sums.total(j)
        less = self._initial_sums(group)
        for j in range(len(total)):
            total[j] = (total[j] << splat(T.int32(UNIT_SHIFT), self.lanes)) + less[j]
        return total

    def _codes(self, group: Expr, block: Expr, step: int) -> list[Expr]:
        """What is multiplied at a step, by its vectors."""
        vectors = range(len(self._places()))
        return [T.bind(self.rows.code(self.half, group, block, step, i)) for i in vectors]

    def _initial_sums(self, group: Expr) -> Registers:
        """What a group's int32 sums start from: minus the part of the codes' offset or zeros."""
        kernel, isa, lanes = self.kernel, self.isa, self.lanes
        acc = Registers(len(self.sums), "int32", lanes)
        for c, column, part in self._places():
            if kernel.level is None or kernel.signed:
                factor = splat(T.int32(-isa.signed_offset), lanes)
            else:
                zeros = kernel.weights.minus_zero(column.tile, group, column.half, kernel.level)
                factor = T.bind(self.unit.spread_rows(zeros, part))
            for m in self._first_tokens():
                acc[self._at(m, c, part)] = kernel.x.sum(self.start + m, group) * factor
        return acc

    def _add_step(self, acc: Registers, group: Expr, block: Expr, step: int) -> None:
        """Add the products of the channels of one multiply instruction."""
        kernel = self.kernel
        multiply = self.isa.multiply if kernel.signed else self.isa.dot
        codes = self._codes(group, block, step)
        for m in self._first_tokens():
            x = T.bind(kernel.x.words(self.start + m, group, block, step))
            for (c, _, part), code in zip(self._places(), codes, strict=True):
                j = self._at(m, c, part)
                acc[j] = multiply(acc[j], code, x)

    def _gather(self) -> None:
        """Sort sums with rows and tokens mixed by tokens."""
        if self.parts == 1:
            return
        for m, c in itertools.product(self._first_tokens(), range(len(self.columns))):
            mixed = [T.bind(self.sums[self._at(m, c, part)]) for part in range(self.parts)]
            for token in range(self.parts):
                self.sums[self._at(m + token, c)] = self.unit.gather(mixed, token)
