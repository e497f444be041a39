"""The vector instructions that ARM kernels name: LLVM's name, the types, and what they mean."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from morendo.codegen.cpu.vectors.intrinsic import Intrinsic


def _dot(acc: NDArray, a: NDArray, b: NDArray) -> NDArray:
    """sdot, usdot: acc + sums of four products of bytes."""
    return acc + (a.astype(np.int32) * b).reshape(-1, 4).sum(1, dtype=np.int32)


def _multiply_matrices(acc: NDArray, a: NDArray, b: NDArray) -> NDArray:
    """smmla: acc [2, 2] + a [2, 8] b [2, 8]^T."""
    left, right = a.reshape(2, 8).astype(np.int32), b.reshape(2, 8).astype(np.int32)
    return acc + (left @ right.T).reshape(-1)


def _multiply(a: NDArray, b: NDArray) -> NDArray:
    """smull: products of signed bytes."""
    return a.astype(np.int16) * b.astype(np.int16)


def _add_pairs(a: NDArray, b: NDArray) -> NDArray:
    """addp: sums of neighbours of a, then of b."""
    return np.concatenate([a, b]).reshape(-1, 2).sum(1, dtype=np.int16)


def _add_pairs_long(a: NDArray) -> NDArray:
    """saddlp: sums of neighbours in twice the width."""
    return a.reshape(-1, 2).sum(1, dtype=np.int32)


DOT = Intrinsic(
    "llvm.aarch64.neon.sdot.v4i32.v16i8",
    "int32x4",
    ("int32x4", "int8x16", "int8x16"),
    _dot,
    ("dotprod",),
)
MIXED_DOT = Intrinsic(  # codes are unsigned; the same sums
    "llvm.aarch64.neon.usdot.v4i32.v16i8",
    "int32x4",
    ("int32x4", "uint8x16", "int8x16"),
    _dot,
    ("i8mm",),
)
MULTIPLY_MATRICES = Intrinsic(
    "llvm.aarch64.neon.smmla.v4i32.v16i8",
    "int32x4",
    ("int32x4", "int8x16", "int8x16"),
    _multiply_matrices,
    ("i8mm",),
)
MULTIPLY = Intrinsic(
    "llvm.aarch64.neon.smull.v8i16", "int16x8", ("int8x8", "int8x8"), _multiply, ("neon",)
)
ADD_PAIRS = Intrinsic(
    "llvm.aarch64.neon.addp.v8i16", "int16x8", ("int16x8", "int16x8"), _add_pairs, ("neon",)
)
ADD_PAIRS_LONG = Intrinsic(
    "llvm.aarch64.neon.saddlp.v4i32.v8i16", "int32x4", ("int16x8",), _add_pairs_long, ("neon",)
)

ALL = (DOT, MIXED_DOT, MULTIPLY_MATRICES, MULTIPLY, ADD_PAIRS, ADD_PAIRS_LONG)
