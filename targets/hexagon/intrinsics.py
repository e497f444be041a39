"""The HVX instructions that kernels name: LLVM's name, the types, and what they mean."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from morendo.codegen.cpu.vectors.intrinsic import Intrinsic

_FEATURES = ("hvx-length128b",)


def _dot(acc: NDArray, a: NDArray, b: NDArray) -> NDArray:
    """vrmpy: acc + sums of four products of unsigned with signed bytes."""
    return acc + (a.astype(np.int32) * b).reshape(-1, 4).sum(1, dtype=np.int32)


DOT = Intrinsic(
    "llvm.hexagon.V6.vrmpybusv.acc.128B",
    "int32x32",
    ("int32x32", "int32x32", "int32x32"),
    lambda acc, a, b: _dot(acc, a.view(np.uint8), b.view(np.int8)),
    _FEATURES,
)
DOT_SCALAR = Intrinsic(
    "llvm.hexagon.V6.vrmpybus.acc.128B",
    "int32x32",
    ("int32x32", "int32x32", "int32"),
    lambda acc, a, b: _dot(acc, a.view(np.uint8), np.tile(b.view(np.int8), 32)),
    _FEATURES,
)

ALL = (DOT, DOT_SCALAR)
