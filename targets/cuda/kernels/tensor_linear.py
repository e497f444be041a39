"""Quantized linear kernels for many tokens, on the matrix units (int8, exact sums of a group).

A block has some tiles of rows, two to each warp (with a gate one of gate and one of up), and a
tile of tokens. It goes through the groups of channels as `pipeline.py` says: copies to shared
memory run ahead, a warp unpacks its tiles to registers, and multiplies them with all the tokens.
The level is read from memory: which bits of a group's codes are fetched and unpacked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx.script.builder import ir as T

from morendo.codegen.cpu.kernels.linear_spec import LinearSpec
from morendo.codegen.kernel_code import PIPELINE
from morendo.ir.formats import Array
from morendo.targets.cuda.blocks import (
    WARP,
    call,
    function,
    kernel,
    launch,
    local,
    shared,
    strided,
    when,
)
from morendo.targets.cuda.device_code import COPIED_BYTES, RESIDENT_BLOCKS
from morendo.targets.cuda.intrinsics import (
    COPY_WORD_LATER,
    COPY_WORDS,
    COPY_WORDS_LATER,
    LOAD_PAIR,
    MULTIPLY_BYTES,
)

from .fragments import BLOCK, Lane, Packed
from .pipeline import run_stages
from .problem import Problem
from .tensor_finish import Finish, Sums
from .tensor_shape import (
    BLOCK_TILES,
    COLUMNS,
    COPY,
    PER_WARP,
    THREADS,
    Shape,
    copies,
    place_in_slot,
    tile_bytes,
    unravel,
)

# Sums of a group become floats without a conversion: products are added to the bits of 1.5 * 2^23,
# which makes the float 1.5 * 2^23 + sum, as sums are below 2^22 (127 * 127 * 128). One multiply-add
# takes the offset off and applies a token's scale s: (offset + sum) * s - offset * s, rounded once.
# That is exact but for this rounding where offset * s is; so the last two bits of s are not read.
_OFFSET_BITS = 0x4B400000
_OFFSET = float(3 << 22)
_SCALE_BITS = 0xFFFFFFFC


def build_tensor_linear(spec: LinearSpec, isa: Any) -> tirx.PrimFunc:
    """The kernel of `spec` that multiplies tiles of tokens."""
    shape = Shape.of(spec, isa.pipeline, isa.few_blocks)
    with kernel(spec.kernel_name(isa)) as k:
        if spec.format.group_size > BLOCK or spec.format.bits > 4:  # which take more registers
            T.func_attr({RESIDENT_BLOCKS: 2})
        elif shape.pipeline.ahead:  # whose grid is small: registers for another turn's codes
            T.func_attr({RESIDENT_BLOCKS: 3})
        run_blocks(Block, Problem.declare(k, spec), shape)
    return k.function


def run_blocks(kind: type[Block], problem: Problem, shape: Shape) -> None:
    """Launch blocks of a kind in the kernel under construction."""
    T.func_attr({PIPELINE: shape.pipeline.attribute, COPIED_BYTES: shape.slot_bytes})
    with launch(shape.grid, THREADS) as (block, part, thread):
        tokens, first = problem.tokens.read(), T.bind(part * shape.tokens)
        with when(first < tokens):
            kind.begin(problem, shape, block, first, tokens, thread).run()


@dataclass(frozen=True)
class Block(Sums):
    """The work of a block; the stages of its pipeline are methods.

    Attributes:
        x, x_scales: activations in shared memory, uint32 [slot, token, word] and float32
            [slot, token]; halves have no scales there.
        codes: uint32 [tile, block, REGISTERS], `factors` float32 [tile, 2]: operands of this turn.
        next_codes, next_factors: those of the next turn.
    """

    words: dict[str, Any]
    bytes: dict[str, Any]
    x: Any
    x_scales: Any
    codes: Any
    factors: Any
    next_codes: Any
    next_factors: Any

    REGISTERS: ClassVar[int] = 4
    """Of a lane, that a tile has of 32 channels."""

    @classmethod
    def begin(
        cls, problem: Problem, shape: Shape, block: Any, first: Expr, tokens: Expr, thread: Any
    ) -> Self:
        """Reserve memory and registers."""
        slots, size = shape.pipeline.fetch, problem.spec.format.group_size
        words, bytes_ = {}, {}
        for array in shape.arrays:
            held = tile_bytes(array)
            if array.name in ("scale", "zero", "scale_zero"):
                bytes_[array.name] = shared((slots, BLOCK_TILES, held), "uint8")
            else:
                words[array.name] = shared((slots, BLOCK_TILES, held // 4), "uint32")
        columns, blocks = shape.tokens // COLUMNS, size // BLOCK
        codes, factors = (
            [local(PER_WARP * blocks * cls.REGISTERS, T.uint32(0), "uint32") for _ in range(2)],
            [local(PER_WARP * 2, T.float32(0.0)) for _ in range(2)],
        )
        return cls(
            problem, shape,
            tile=T.bind(block * BLOCK_TILES),
            first=first, tokens=tokens,
            level=[bound.read() for bound in problem.level],
            thread=thread, warp=T.bind(thread // WARP), lane=Lane.of(thread),
            words=words, bytes=bytes_,
            x=shared((slots, *shape.activation_words), "uint32"),
            x_scales=shared((slots, shape.tokens)) if shape.item_bytes == 1 else None,
            sums=local(PER_WARP * columns * 4, T.float32(0.0)),
            codes=codes[0], factors=factors[0], next_codes=codes[1], next_factors=factors[1],
        )  # fmt: skip

    def run(self) -> None:
        run_stages(self.shape.pipeline, self.problem.spec.groups, self)
        Finish(self).run()

    @property
    def multiplies_later(self) -> bool:
        """Products of warps are made when the next instruction wants them."""
        return False

    def settle(self) -> None: ...

    def show(self) -> None: ...

    @property
    def blocks(self) -> int:
        """Of 32 channels, of a group."""
        return self.problem.spec.format.group_size // BLOCK

    def fetch(self, turn: Any, slot: Any) -> None:
        self._fetch_activations(turn, slot)
        last = T.int32(self.problem.spec.tiles - 1)
        for array in self.shape.arrays:
            target = {**self.words, **self.bytes}[array.name]
            count = copies(array)
            width = 4 if array.name in self.words else 1

            def copy(
                i: Any, array: Array = array, target: Any = target, count: int = count,
                width: int = width,
            ) -> None:  # fmt: skip
                tile, part = T.bind(i // count), T.bind(i % count)
                inner = unravel(array, part * COPY)
                source = self.problem.weights.arrays[array.name]
                at = source[(T.min(self.tile + tile, last), turn, *inner)]
                self._copy(target[slot, tile, place_in_slot(array, part) // width], at)

            if array.name.startswith("plane"):
                bound = self.level[int(array.name.removeprefix("plane")) - 3]
                with when(turn < bound):
                    strided(self.thread, THREADS, count * BLOCK_TILES, copy)
            else:
                strided(self.thread, THREADS, count * BLOCK_TILES, copy)

    def _fetch_activations(self, turn: Any, slot: Any) -> None:
        """Those of the last token stand for tokens that are not there."""
        self._fetch_codes(turn, slot)
        last = self.tokens - 1

        def copy_scale(token: Any) -> None:
            own = T.min(self.first + token, last)
            source = self.problem.scales[own, turn]
            if self.shape.pipeline.in_background:
                target = self.x_scales[slot, token]
                call(COPY_WORD_LATER, T.address_of(target), T.address_of(source))
            else:
                T.buffer_store(self.x_scales, source, [slot, token])

        strided(self.thread, THREADS, self.shape.tokens, copy_scale)

    def _fetch_codes(self, turn: Any, slot: Any) -> None:
        size, items = self.problem.spec.format.group_size, COPY // self.shape.item_bytes
        parts = size // items

        def copy(i: Any) -> None:
            token, part = T.bind(i // parts), T.bind(i % parts)
            own = T.min(self.first + token, self.tokens - 1)
            source = self.problem.codes[own, turn * size + part * items]
            self._copy(self._part_of_token(slot, token, part), source)

        strided(self.thread, THREADS, self.shape.tokens * parts, copy)

    def _part_of_token(self, slot: Any, token: Any, part: Any) -> Any:
        """Where 16 bytes of a token's activations come to."""
        return self.x[slot, token, part * (COPY // 4)]

    def _copy(self, target: Any, source: Any) -> None:
        name = COPY_WORDS_LATER if self.shape.pipeline.in_background else COPY_WORDS
        call(name, T.address_of(target), T.address_of(source))

    def dequantize(self, turn: Any, slot: Any) -> None:
        for bits, first, end in self.problem.ranges(self.level):
            with when(tirx.all(turn >= first, turn < end)):
                self._dequantize(slot, bits)

    def _dequantize(self, slot: Any, bits: int) -> None:
        for p in range(PER_WARP):
            tile = T.bind(self.warp * PER_WARP + p)
            packed = Packed(self.problem.spec.format, self.words, self.bytes, slot, tile)
            for half in range(2):
                scale = packed.scale_code(self.lane.row + 8 * half)
                T.buffer_store(self.next_factors, scale, [2 * p + half])
                for block in range(self.blocks):
                    pair = packed.registers(self.lane, block, half, bits)
                    for i, register in enumerate(pair):
                        index = (p * self.blocks + block) * 4 + half + 2 * i
                        T.buffer_store(self.next_codes, register, [index])

    def advance(self) -> None:
        for following, now in (
            (self.next_codes, self.codes),
            (self.next_factors, self.factors),
        ):
            for i in range(int(now.shape[0])):
                T.buffer_store(now, following[i], [i])

    def multiply(self, turn: Any, slot: Any) -> None:
        for n in range(self.columns):
            token = T.bind(n * COLUMNS + self.lane.row)
            x = local(2 * self.blocks, T.uint32(0), "uint32")
            for block in range(self.blocks):
                word = block * (BLOCK // 4) + self.lane.quarter * 2
                source = T.address_of(self.x[slot, token, word])
                call(LOAD_PAIR, T.address_of(x[2 * block]), source)
            scales = self._token_scales(n, slot)
            for p in range(PER_WARP):
                self._add(n, p, x, scales)

    def _token_scales(self, n: int, slot: Any) -> list[tuple[Expr, Expr]]:
        """Of the lane's two tokens the scale, and what it makes of the offset."""
        words = local(2, T.uint32(0), "uint32")
        source = self.x_scales[slot, n * COLUMNS + self.lane.quarter * 2]
        call(LOAD_PAIR, T.address_of(words[0]), T.address_of(source))
        scales = [
            T.bind(T.reinterpret("float32", words[i] & T.uint32(_SCALE_BITS))) for i in (0, 1)
        ]
        return [(scale, T.bind(scale * T.float32(-_OFFSET))) for scale in scales]

    def _add(self, n: int, p: int, x: Any, scales: list[tuple[Expr, Expr]]) -> None:
        """Multiply tile p with eight tokens, exactly, and add to the sums by scales."""
        acc = local(4, T.int32(_OFFSET_BITS), "int32")
        for block in range(self.blocks):
            first = (p * self.blocks + block) * 4
            registers = [self.codes[first + i] for i in range(4)]
            pair = [x[2 * block + i] for i in range(2)]
            call(MULTIPLY_BYTES, T.address_of(acc[0]), *registers, *pair)
        for i in range(4):
            scale, offset = scales[i % 2]
            total = function("fmaf", T.reinterpret("float32", acc[i]), scale, offset)
            place = self.place(p, n, i)
            factor = self.factors[2 * p + i // 2]
            T.buffer_store(self.sums, self.sums[place] + total * factor, [place])
