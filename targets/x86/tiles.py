"""Products of many tokens by tile registers (AMX): 16 tokens times 16 rows of weights at a time.

One instruction adds 16 x 16 sums of up to 64 products each in 16 cycles, eight times what two dot
instructions a cycle do. What is unpacked for the dot lies as a tile wants it already: four channels
of 16 rows in a line. A group's sums leave the tile through memory, and are scaled and added up as
floats, as in the shared kernels: that is what bounds it (docs/performance.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx.script.builder import ir as T

from morendo.codegen.cpu.kernels.dequantize import BLOCK, STEPS
from morendo.codegen.cpu.kernels.linear_spec import LinearSpec, kernel_builder
from morendo.codegen.cpu.kernels.matrix_product import Product, multiply_many_tokens, registers_of
from morendo.codegen.cpu.kernels.quantized_kernel import declare_kernel
from morendo.codegen.cpu.kernels.quantized_linear import build_quantized_linear
from morendo.codegen.cpu.vectors.isa import VectorISA
from morendo.codegen.cpu.vectors.vector import load, splat, vector_type
from morendo.codegen.kernel_code import PIPELINE

ROWS = 16
"""Tokens of a tile, and rows of weights: lines, and 32-bit columns, that a tile has at most."""
_LINE = 64  # bytes of a tile's line at most
_SUMS, _TOKENS, _WEIGHTS = 0, 2, 4
"""The first tile register of each use; there are two, so that one group need not wait for the one
before."""
_PRODUCTS = "products_of_a_tile"  # an attribute of kernels, which set the tiles' sizes


def build_tile_linear(spec: LinearSpec, isa: VectorISA) -> tirx.PrimFunc:
    """The kernel of `spec`, in the place of `build_quantized_linear`."""
    if spec.max_tokens == 1:
        return build_quantized_linear(spec, isa)
    # Both operands are signed, and a block's float sums of two tiles wait on the stack.
    signed = replace(isa, signed_offset=0, block_sums=2 * ROWS)
    with kernel_builder(spec.kernel_name(isa)) as builder:
        kernel = declare_kernel(spec, signed)
        tokens, depth = registers_of(kernel).tokens, min(spec.format.group_size, _LINE)
        multiply_many_tokens(kernel, TileProduct, partial(_configured, tokens, depth))
    stages = isa.pipeline.attribute(spec.max_tokens)
    return builder.get().with_attr({_PRODUCTS: tokens * ROWS * depth, PIPELINE: stages})


def products_of(kernel: tirx.PrimFunc) -> int:
    """Products that a multiplication of tiles makes in a kernel."""
    return int((kernel.attrs or {}).get(_PRODUCTS, 1))


@contextmanager
def _configured(tokens: int, depth: int) -> Iterator[None]:
    """Say how large the tiles are, and give them back: switching threads is cheaper then.

    Args:
        tokens: lines of activations and of sums.
        depth: bytes of a line of activations; four of them make a line of weights.
    """
    lines = {_SUMS: (tokens, _LINE), _TOKENS: (tokens, depth), _WEIGHTS: (depth // 4, _LINE)}
    palette, columns, rows = 1, 16, 48  # where LDTILECFG's 64 bytes have them
    layout = bytearray(_LINE)
    layout[0] = palette
    for first, (count, nbytes) in lines.items():
        for tile in (first, first + 1):
            layout[columns + 2 * tile], layout[rows + tile] = nbytes, count
    config = T.alloc_buffer((_LINE // 4,), "uint32", layout=None)
    for i in range(_LINE // 4):
        word = int.from_bytes(layout[4 * i : 4 * i + 4], "little")
        T.buffer_store(config, T.uint32(word), [i])
    _call("ldtilecfg", T.address_of(config[0]))
    yield
    _call("tilerelease")


def _call(name: str, *operands: Any) -> None:
    """One of the instructions; tile registers are numbers."""
    given = [T.int8(each) if isinstance(each, int) else each for each in operands]
    T.evaluate(T.call_llvm_intrin("void", f"llvm.x86.{name}", *given))


class TileProduct(Product):
    """The sums of a block of tokens and of some tiles of rows."""

    def multiply(self) -> None:
        for i in range(len(self.sums)):
            self.sums[i] = splat(T.float32(0), self.lanes)
        products = T.alloc_buffer((2, self.registers.tokens, ROWS), "int32", layout=None)
        for c in range(len(self.columns)):
            self._add_groups(products, c)
        for c, column in enumerate(self.columns):
            scale = T.bind(self.kernel.weights.row_scale(column.tile, column.half))
            for m in range(self.registers.tokens):
                j = self._at(m, c)
                self.sums[j] = self.sums[j] * scale

    def _add_groups(self, products: Any, c: int) -> None:
        """Add the products of all groups with column c.

        A group's are stored before those of the group before it are scaled: what a tile stores
        can be loaded only once it is in the cache.
        """
        groups = self.kernel.spec.groups
        pairs = (groups - 1) // 2
        self._store(products, c, T.int32(0), 0)
        with T.serial(0, pairs) as pair:
            for i in range(2):
                self._store(products, c, pair * 2 + i + 1, 1 - i)
                self._add(products, c, pair * 2 + i, i)
        if groups % 2 == 0:
            self._store(products, c, T.int32(groups - 1), 1)
        for group in range(2 * pairs, groups):
            self._add(products, c, T.int32(group), group % 2)

    def _store(self, products: Any, c: int, group: Expr, which: int) -> None:
        """Multiply a group by tiles and put its sums into memory."""
        kernel = self.kernel
        size = kernel.spec.format.group_size
        _call("tilezero", _SUMS + which)
        for first in range(0, size, _LINE):
            codes = kernel.x.codes
            x = T.address_of(codes[self.start, group * size + first])
            _call("tileloadd64", _TOKENS + which, x, T.int64(codes.shape[1]))
            step = (group * kernel.weights.blocks + first // BLOCK) * STEPS
            rows = self.rows.codes
            weights = T.address_of(rows[0, step, c, 0])
            nbytes = 4 * rows.shape[2] * rows.shape[3]
            _call("tileloadd64", _WEIGHTS + which, weights, T.int64(nbytes))
            _call("tdpbssd", _SUMS + which, _TOKENS + which, _WEIGHTS + which)
        _call("tilestored64", _SUMS + which, T.address_of(products[which, 0, 0]), T.int64(4 * ROWS))

    def _add(self, products: Any, c: int, group: Expr, which: int) -> None:
        """Add a group's stored products, scaled, to the float sums."""
        scale = T.bind(self.rows.scale(0, group, c))
        for m in range(self.registers.tokens):
            j = self._at(m, c)
            found = load(products, (which, m, 0), self.lanes)
            product = T.cast(found, vector_type("float32", self.lanes))
            factor = scale * self.kernel.x.scale(self.start + m, group)
            self.sums[j] = self.sums[j] + product * factor
