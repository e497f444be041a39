"""Quantized linear kernels with activations of 16 bits for many tokens, on the matrix units of
warps.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from tvm.ir import Expr
from tvm.tirx.script.builder import ir as T

from morendo.codegen.cpu.kernels.linear_spec import LinearSpec
from morendo.targets.cuda.blocks import Kernel, call, local
from morendo.targets.cuda.device_code import RESIDENT_BLOCKS
from morendo.targets.cuda.intrinsics import (
    HALF_PAIR,
    LOAD_WORDS,
    MULTIPLY_HALVES,
    SCALED_HALVES,
)

from .fragments import BLOCK, PAIR_BIAS, SIGNS, Packed
from .problem import Problem
from .tensor_linear import Block, run_blocks
from .tensor_shape import COLUMNS, PER_WARP, Shape

HALF_BYTES = 2
ALWAYS_AHEAD = 1 << 31
"""More blocks than any grid has: codes are unpacked a turn ahead."""


def run_half_blocks(k: Kernel, spec: LinearSpec, isa: Any) -> None:
    """Build the work of `spec` in the kernel under construction."""
    wide = spec.format.group_size > BLOCK or spec.format.bits > 4
    T.func_attr({RESIDENT_BLOCKS: 2 if wide else 3})
    # Planes take fewer instructions where they are unpacked ahead, in grids of any size.
    few_blocks = ALWAYS_AHEAD if spec.format.nested else isa.few_blocks
    shape = Shape.of(spec, isa.pipeline, few_blocks, HALF_BYTES)
    run_blocks(HalfBlock, Problem.declare(k, spec, halves=True), shape)


@dataclass(frozen=True)
class HalfBlock(Block):
    """The work of a block with many tokens.

    Attributes:
        biases: uint32 [1], the halves 1024 and 1024, whose ends become codes.
    """

    biases: Any = None

    REGISTERS: ClassVar[int] = 8

    @classmethod
    def begin(
        cls, problem: Problem, shape: Shape, block: Any, first: Expr, tokens: Expr, thread: Any
    ) -> Self:
        # With the sign of the tokens, which is 0, the compiler knows no constant: one would be in
        # the instruction, and which bytes it takes in a register that is filled each time.
        sign = T.cast(tokens >> 31, "uint32")
        begun = super().begin(problem, shape, block, first, tokens, thread)
        return replace(begun, biases=local(1, T.uint32(PAIR_BIAS) | sign, "uint32"))

    def _fetch_activations(self, turn: Any, slot: Any) -> None:
        self._fetch_codes(turn, slot)

    def _dequantize(self, slot: Any, bits: int) -> None:
        for p in range(PER_WARP):
            tile = T.bind(self.warp * PER_WARP + p)
            packed = Packed(self.problem.spec.format, self.words, self.bytes, slot, tile)
            for half in range(2):
                stored = packed.scale_pair(self.lane.row + 8 * half)
                scales = T.bind(T.call_pure_extern("uint32", HALF_PAIR, stored))
                for block in range(self.blocks):
                    pair = packed.registers(self.lane, block, half, bits)
                    for h, word in enumerate(pair):
                        biased = T.bind(word ^ T.uint32(SIGNS))
                        for last in range(2):
                            register = T.call_pure_extern(
                                "uint32", SCALED_HALVES, biased, last, scales, self.biases[0]
                            )
                            index = self._register(p, block, h) + 2 * last + half
                            T.buffer_store(self.next_codes, register, [index])

    def _register(self, p: int, block: int, h: int) -> int:
        """The first of the four of half `h` of 32 channels."""
        return (p * self.blocks + block) * self.REGISTERS + 4 * h

    def multiply(self, turn: Any, slot: Any) -> None:
        for n in range(self.columns):
            token = T.bind(n * COLUMNS + self.lane.row)
            for block in range(self.blocks):
                x = local(4, T.uint32(0), "uint32")
                source = self.x[slot, token, block * (BLOCK // 2) + self.lane.quarter * 4]
                call(LOAD_WORDS, T.address_of(x[0]), T.address_of(source))
                for p in range(PER_WARP):
                    for h in range(2):
                        first = self._register(p, block, h)
                        registers = [self.codes[first + i] for i in range(4)]
                        sums = T.address_of(self.sums[self.place(p, n, 0)])
                        call(MULTIPLY_HALVES, sums, *registers, x[2 * h], x[2 * h + 1])
