"""Quantized linear kernels with activations of 16 bits, which nobody rounds to codes.

Few tokens are multiplied one by one: a byte of codes becomes a float by a permutation, its zero is
taken off exactly, and products and sums are floats. Many go to the matrix units (halves, sums of
floats): a weight is the half next to (code - zero) times the scale of its group, so that sums go on
over groups, and a group costs nothing but its unpacking. Rows' scales and tokens' come at the end.
"""

from __future__ import annotations

from typing import Any, ClassVar

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from morendo.codegen.cpu.kernels.linear_spec import LinearSpec
from morendo.codegen.cpu.vectors.vector_blocks import kernel_name
from morendo.ir.formats import ceil_div
from morendo.targets.cuda.blocks import across_block, call, kernel, launch, local, strided, when
from morendo.targets.cuda.device_code import RESIDENT_BLOCKS
from morendo.targets.cuda.intrinsics import (
    BYTE_FLOAT,
    HALF_FLOAT,
    HALF_PAIR,
    LOAD_WORDS,
    MULTIPLY_HALVES,
    SCALED_HALVES,
)

from .dot_linear import DotBlock, run_dot_blocks
from .fragments import BLOCK, Packed
from .norms import place
from .planes import ROWS, STEPS, GroupReader, Place, load_words
from .problem import Problem
from .tensor_linear import Block, run_blocks
from .tensor_shape import COLUMNS, PER_WARP, Shape

_THREADS = 256
_ANY = 1 << 31
_EXPONENT = 0x7F800000
_BIASED = 0x80808080
_MAGIC = 1 << 23  # a float from here on has steps of 1


def half_activation(
    isa: Any, *, max_tokens: int, features: int, group_size: int, ordered: bool = False
) -> tirx.PrimFunc:
    """Rows of x as float16, divided by a power of two: what is largest in a row is below 2 then, so
    that nothing overflows.

    Parameters of the kernel: x f32[M, K], [order u16[K]], halves f16[M, Kp], scales f32[M], tokens.
    """
    padded = ceil_div(features, group_size) * group_size
    name = kernel_name(
        "half_activation" + "_ordered" * ordered, m=max_tokens, k=features, g=group_size
    )
    with kernel(name) as k:
        x = k.buffer("x", (max_tokens, features))
        order = k.buffer("order", (features,), "uint16") if ordered else None
        halves = k.buffer("halves", (max_tokens, padded), "float16")
        scales, tokens = k.buffer("scales", (max_tokens,)), k.state("tokens")
        with launch([max_tokens], _THREADS) as (m, thread), when(m < tokens.read()):
            largest = local(1, T.float32(0.0))

            def see(c: Any) -> None:
                T.buffer_store(largest, T.max(largest[0], T.abs(x[m, c])), [0])

            strided(thread, _THREADS, features, see)
            span = across_block(largest[0], thread, _THREADS, T.max)
            power = T.reinterpret("float32", T.reinterpret("int32", span) & T.int32(_EXPONENT))
            scale = T.bind(tirx.Select(power > T.float32(0.0), power, T.float32(1.0)))

            def store(c: Any) -> None:
                value = local(1, T.float32(0.0))
                with when(c < features):
                    T.buffer_store(value, x[m, place(order, c, features)] / scale, [0])
                T.buffer_store(halves, T.cast(value[0], "float16"), [m, c])

            strided(thread, _THREADS, padded, store)
            with when(thread == 0):
                T.buffer_store(scales, scale, [m])
    return k.function


def build_half_linear(spec: LinearSpec, isa: Any) -> tirx.PrimFunc:
    """Build the kernel of `spec` for activations of 16 bits.

    Parameters of the kernel: halves f16[M, Kp], scales f32[M], then those of
    `build_quantized_linear` from the weights on.
    """
    few = spec.max_tokens < isa.tensor_tokens
    with kernel(spec.kernel_name(isa).replace("_i8_", "_f16_")) as k:
        problem = Problem.declare(k, spec, halves=True)
        if few:
            run_dot_blocks(_HalfDots, problem)
        else:
            wide = spec.format.group_size > BLOCK or spec.format.bits > 4
            T.func_attr({RESIDENT_BLOCKS: 2 if wide else 3})
            # Planes take fewer instructions where they are unpacked ahead, in grids of any size.
            few_blocks = _ANY if spec.format.nested else isa.few_blocks
            shape = Shape.of(spec, isa.pipeline, few_blocks, item_bytes=2)
            run_blocks(_HalfBlock, problem, shape)
    return k.function


class _HalfDots(DotBlock):
    """The work of a block with one token."""

    def _add_group(self, reader: GroupReader, at: Place, sums: Any) -> None:
        problem, size = self.problem, self.problem.spec.format.group_size
        scales, zeros = reader.factors(at)
        offsets = []  # 2^23 and the zero; codes of 8 bits without one have 128 added
        for r in range(ROWS):
            zero = T.int32(128)
            if zeros is not None:
                zero = zeros.codes[r] * zeros.step + zeros.first
            offsets.append(T.bind(T.cast(zero + T.int32(_MAGIC), "float32")))
        totals = local(ROWS, T.float32(0.0))
        for block in range(size // BLOCK):
            channel = at.group * size + block * BLOCK
            words = load_words(LOAD_WORDS, problem.codes, (self.token, channel), 4, items=8)
            for step, codes in enumerate(reader.steps(at, block)):
                x = [_half(words[2 * step + i // 2], i % 2) for i in range(STEPS // 2)]
                for r in range(ROWS):
                    word = codes[r] if zeros is not None else codes[r] ^ T.uint32(_BIASED)
                    for i, value in enumerate(x):
                        code = T.call_pure_extern("float32", BYTE_FLOAT, word, i) - offsets[r]
                        T.buffer_store(totals, totals[r] + code * value, [r])
        for r in range(ROWS):
            T.buffer_store(sums, sums[r] + totals[r] * scales[r], [r])


def _half(word: Any, which: int) -> Any:
    return T.bind(T.call_pure_extern("float32", HALF_FLOAT, word, which))


class _HalfBlock(Block):
    """The work of a block with many tokens."""

    REGISTERS: ClassVar[int] = 8

    def _fetch_activations(self, turn: Any, slot: Any) -> None:
        self._fetch_codes(turn, slot)

    def _dequantize(self, slot: Any, bits: int) -> None:
        for p in range(PER_WARP):
            tile = T.bind(self.warp * PER_WARP + p)
            packed = Packed(self.problem.spec.format, self.words, self.bytes, slot, tile)
            for half in range(2):
                code = packed.scale_number(self.lane.row + 8 * half)
                scales = T.bind(T.call_pure_extern("uint32", HALF_PAIR, code))
                for block in range(self.blocks):
                    pair = packed.registers(self.lane, block, half, bits)
                    for h, word in enumerate(pair):
                        biased = T.bind(word ^ T.uint32(_BIASED))
                        for last in range(2):
                            register = T.call_pure_extern(
                                "uint32", SCALED_HALVES, biased, last, scales
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
