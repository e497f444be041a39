"""The vector instructions that x86 kernels name: LLVM's name, the types, and what they mean."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from morendo.codegen.cpu.vectors.intrinsic import Intrinsic


def _dot_u8_s8(acc: NDArray, a: NDArray, b: NDArray) -> NDArray:
    """vpdpbusd: acc + sums of four products of unsigned a and signed b."""
    return acc + (a.astype(np.int32) * b).reshape(-1, 4).sum(1, dtype=np.int32)


def _multiply_add_u8_s8(a: NDArray, b: NDArray) -> NDArray:
    """vpmaddubsw: sums of two products, saturated to int16."""
    pairs = (a.astype(np.int32) * b).reshape(-1, 2).sum(1)
    return pairs.clip(-32768, 32767).astype(np.int16)


def _multiply_add_s16(a: NDArray, b: NDArray) -> NDArray:
    """vpmaddwd: sums of two products of int16."""
    return (a.astype(np.int32) * b).reshape(-1, 2).sum(1, dtype=np.int32)


def _sign_s8(a: NDArray, b: NDArray) -> NDArray:
    """vpsignb: a with the sign of b, 0 where b is 0."""
    return (a * np.sign(b)).astype(np.int8)


def _affine(a: NDArray, matrix: NDArray) -> NDArray:
    """gf2p8affineqb: bit i of a byte is the parity of it and byte 7-i of its group's matrix."""
    rows = matrix.reshape(-1, 8)[:, ::-1].repeat(8, axis=0)  # [bytes, 8 bits]
    parity = np.bitwise_count(rows & a[:, None]) & 1
    return np.packbits(parity, axis=1, bitorder="little").reshape(-1)


DOT_512 = Intrinsic(
    "llvm.x86.avx512.vpdpbusd.512",
    "int32x16",
    ("int32x16", "uint8x64", "int8x64"),
    _dot_u8_s8,
    ("avx512vnni",),
)
DOT_256 = Intrinsic(
    "llvm.x86.avx512.vpdpbusd.256",
    "int32x8",
    ("int32x8", "uint8x32", "int8x32"),
    _dot_u8_s8,
    ("avxvnni", "avx512vnni"),
)
MULTIPLY_ADD_U8_S8_512 = Intrinsic(
    "llvm.x86.avx512.pmaddubs.w.512",
    "int16x32",
    ("uint8x64", "int8x64"),
    _multiply_add_u8_s8,
    ("avx512bw",),
)
MULTIPLY_ADD_S16_512 = Intrinsic(
    "llvm.x86.avx512.pmaddw.d.512",
    "int32x16",
    ("int16x32", "int16x32"),
    _multiply_add_s16,
    ("avx512bw",),
)
MULTIPLY_ADD_U8_S8_256 = Intrinsic(
    "llvm.x86.avx2.pmadd.ub.sw",
    "int16x16",
    ("uint8x32", "int8x32"),
    _multiply_add_u8_s8,
    ("avx2",),
)
MULTIPLY_ADD_S16_256 = Intrinsic(
    "llvm.x86.avx2.pmadd.wd",
    "int32x8",
    ("int16x16", "int16x16"),
    _multiply_add_s16,
    ("avx2",),
)
SIGN_S8_256 = Intrinsic(
    "llvm.x86.avx2.psign.b", "int8x32", ("int8x32", "int8x32"), _sign_s8, ("avx2",)
)
AFFINE_512 = Intrinsic(
    "llvm.x86.vgf2p8affineqb.512", "uint8x64", ("uint8x64", "uint8x64"), _affine, ("gfni",), (0,)
)
AFFINE_256 = Intrinsic(
    "llvm.x86.vgf2p8affineqb.256", "uint8x32", ("uint8x32", "uint8x32"), _affine, ("gfni",), (0,)
)

ALL = (
    DOT_512,
    DOT_256,
    MULTIPLY_ADD_U8_S8_512,
    MULTIPLY_ADD_S16_512,
    MULTIPLY_ADD_U8_S8_256,
    MULTIPLY_ADD_S16_256,
    SIGN_S8_256,
    AFFINE_512,
    AFFINE_256,
)
