"""The vector units of x86 processors, and which one a list of CPU features gives."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from tvm.ir import Expr
from tvm.tirx.script.builder import ir as T

from morendo.codegen.cpu.pipeline import Pipeline
from morendo.codegen.cpu.vectors.isa import VectorISA
from morendo.codegen.cpu.vectors.vector import splat, vector_type

from . import intrinsics as x86


@dataclass(frozen=True)
class X86ISA(VectorISA):
    """What all have in common.

    Attributes:
        gfni: has gf2p8affineqb, which permutes the bits of every byte as a constant says.
    """

    gfni: bool = False

    def extract(self, words: Expr, left: int, mask: int) -> Expr:
        if not self.gfni:
            return super().extract(words, left, mask)
        affine = x86.AFFINE_512 if self.lanes == 16 else x86.AFFINE_256
        matrix = splat(T.int64(_bit_matrix(left, mask)), self.lanes // 2)
        return T.reinterpret(vector_type("uint32", self.lanes), affine(words, matrix))


def _bit_matrix(left: int, mask: int) -> int:
    """The 8 x 8 bit matrix of gf2p8affineqb: byte 7-i selects the source of bit i."""
    matrix = 0
    for bit in range(8):
        if mask >> bit & 1 and 0 <= bit - left < 8:
            matrix |= 1 << (8 * (7 - bit) + bit - left)
    return matrix - (1 << 64) if matrix >> 63 else matrix


@dataclass(frozen=True)
class DotISA(X86ISA):
    """Processors with vpdpbusd (unsigned * signed bytes, four to a lane, no saturation)."""

    def dot(self, acc: Expr, codes: Expr, x: Expr) -> Expr:
        instruction = x86.DOT_512 if self.lanes == 16 else x86.DOT_256
        return instruction(acc, codes, x)

    def dot_signed(self, acc: Expr, codes: Expr, x: Expr) -> Expr:
        return self.dot(acc, codes, x)  # codes + 128 are unsigned


@dataclass(frozen=True)
class MultiplyAddISA(X86ISA):
    """Processors without a dot instruction: vpmaddubsw, then vpmaddwd by ones.

    vpmaddubsw saturates at 16 bits: two products of 127 * 127 do not reach it.
    """

    def dot(self, acc: Expr, codes: Expr, x: Expr) -> Expr:
        if self.lanes == 16:
            pairs, sums = x86.MULTIPLY_ADD_U8_S8_512, x86.MULTIPLY_ADD_S16_512
        else:
            pairs, sums = x86.MULTIPLY_ADD_U8_S8_256, x86.MULTIPLY_ADD_S16_256
        return acc + sums(pairs(codes, x), splat(T.int16(1), 2 * self.lanes))

    def dot_small(self, acc: Expr, codes: Sequence[Expr], x: Sequence[Expr]) -> Expr:
        """Sums of two products, then of eight such sums, fit 16 bits: 8 * 2 * 15 * 127 = 30480."""
        wide = self.lanes == 16
        pairs = x86.MULTIPLY_ADD_U8_S8_512 if wide else x86.MULTIPLY_ADD_U8_S8_256
        sums = x86.MULTIPLY_ADD_S16_512 if wide else x86.MULTIPLY_ADD_S16_256
        assert len(codes) <= 8
        total = pairs(codes[0], x[0])
        for words, activations in zip(codes[1:], x[1:], strict=True):
            total = T.bind(total + pairs(words, activations))
        return acc + sums(total, splat(T.int16(1), 2 * self.lanes))

    def dot_signed(self, acc: Expr, codes: Expr, x: Expr) -> Expr:
        """The product w * x is |w| * (x with the sign of w)."""
        signed = vector_type("int8", 4 * self.lanes)
        w, x = T.bind(T.reinterpret(signed, codes)), T.reinterpret(signed, x)
        zero = splat(T.int8(0), 4 * self.lanes)
        if self.lanes == 16:
            signed_x = T.Select(w < zero, zero - x, x)
        else:
            signed_x = x86.SIGN_S8_256(x, w)
        return self.dot(acc, T.max(w, zero - w), signed_x)


_AHEAD = Pipeline(fetch=1024)  # bytes: measured best of 0 to 4096 on Zen 4, 8 % above none

_DOT = {"upper_in_place": True, "pipeline": _AHEAD}

AMX = DotISA("amx", 16, 32, 2, 128, True, **_DOT, gfni=True)
"""What follows, and products of many tokens by tiles (`tiles.py`)."""
AVX512_VNNI_GFNI = DotISA("avx512vnni_gfni", 16, 32, 2, 128, True, **_DOT, gfni=True)
AVX512_VNNI = DotISA("avx512vnni", 16, 32, 2, 128, True, **_DOT)
AVX512 = MultiplyAddISA("avx512", 16, 32, 1, 0, False, pipeline=_AHEAD)
AVX_VNNI = DotISA("avxvnni_gfni", 8, 16, 1, 128, True, **_DOT, block_sums=8, gfni=True)
AVX2 = MultiplyAddISA("avx2", 8, 16, 1, 0, False, pipeline=_AHEAD)

_AVX2_FEATURES = frozenset({"avx2", "fma", "f16c"})
_AVX512_FEATURES = frozenset({"avx512f", "avx512bw", "avx512vl"})
_BY_FEATURES = (
    (AMX, _AVX512_FEATURES | {"avx512vnni", "gfni", "amx-tile", "amx-int8"}),
    (AVX512_VNNI_GFNI, _AVX512_FEATURES | {"avx512vnni", "gfni"}),
    (AVX512_VNNI, _AVX512_FEATURES | {"avx512vnni"}),
    (AVX512, _AVX512_FEATURES),
    (AVX_VNNI, _AVX2_FEATURES | {"avxvnni", "gfni"}),
    (AVX2, _AVX2_FEATURES),
)

ALL = tuple(isa for isa, _ in _BY_FEATURES)


def isa_for(features: Collection[str]) -> VectorISA | None:
    """The best vector unit that a CPU with these features (LLVM's names) has, or None."""
    return next((isa for isa, needed in _BY_FEATURES if needed <= set(features)), None)
