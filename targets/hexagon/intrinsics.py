"""The HVX instructions that kernels name: LLVM's name, the types, and what they mean.

A vector has 32 words. Comparisons give a predicate, one bit for each of 128 bytes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from morendo.codegen.cpu.vectors.intrinsic import Intrinsic

_FEATURES = ("hvx-length128b",)
WORDS, PAIR, PREDICATE, SCALAR = "int32x32", "int32x64", "boolx128", "int32"


def _words(
    name: str,
    operands: int,
    meaning: Callable[..., NDArray],
    result: str = WORDS,
) -> Intrinsic:
    """An instruction of vectors of words."""
    types = (WORDS,) * operands
    return Intrinsic(f"llvm.hexagon.V6.{name}.128B", result, types, meaning, _FEATURES)


def _shift(name: str, meaning: Callable[[NDArray, NDArray], NDArray]) -> Intrinsic:
    """All words shifted by the low 5 bits of a scalar."""

    def shifted(a: NDArray, count: NDArray) -> NDArray:
        return meaning(a, count & 31)

    types = (WORDS, SCALAR)
    return Intrinsic(f"llvm.hexagon.V6.{name}.128B", WORDS, types, shifted, _FEATURES)


def _dot(acc: NDArray, a: NDArray, b: NDArray) -> NDArray:
    """vrmpy: acc + sums of four products of unsigned with signed bytes."""
    products = a.view(np.uint8).astype(np.int32) * b.view(np.int8)
    return acc + products.reshape(-1, 4).sum(1, dtype=np.int32)


def _shuffled_bytes(a: NDArray) -> NDArray:
    """vshuff: the bytes of the lower and of the upper half of a vector in turn."""
    lower, upper = np.split(a.view(np.uint8), 2)
    return np.stack([lower, upper], axis=1).reshape(-1).view(np.int32)


def _zipped(a: NDArray, b: NDArray, size: NDArray) -> NDArray:
    """vshuffvdd: for each bit of `size`, bytes of b with it change places with a's without it; -4
    makes words of b and of a in turn.
    """
    pair = np.concatenate([b, a]).view(np.uint8)
    for bit in range(7):
        if int(size[0]) >> bit & 1:
            low = [k for k in range(128) if not k >> bit & 1]
            lower, upper = np.array(low) + (1 << bit), np.array(low) + 128
            pair[lower], pair[upper] = pair[upper].copy(), pair[lower].copy()
    return pair.view(np.int32)


def _looked_up(a: NDArray, table: NDArray, number: NDArray) -> NDArray:
    """vlut32 without match: for the low 5 bits of every byte, a byte of one of 4 tables of 32.

    Tables 0 and 1 are the even bytes of the lower and of the upper half, 2 and 3 the odd ones.
    """
    which = int(number[0]) & 3
    entries = table.view(np.uint8).reshape(2, 32, 2)[which & 1, :, which >> 1]
    return entries[a.view(np.uint8) & 31].view(np.int32)


def _times_half(a: NDArray, b: NDArray) -> NDArray:
    """vmpyi: words times the halves of a scalar, even words the lower one; the low 32 bits."""
    halves = np.resize(b.view(np.int16), len(a)).astype(np.int64)
    return (a * halves).astype(np.int32)


def _times_even(a: NDArray, b: NDArray) -> NDArray:
    """vmpyie: words times the low halves, without sign, of words; the low 32 bits."""
    return (a.astype(np.int64) * (b.view(np.uint32) & 0xFFFF)).astype(np.int32)


def _left(a: NDArray, count: NDArray) -> NDArray:
    """Words shifted left, to the right and with their sign where the count is negative."""
    count = _six_bits(count)
    left = a.astype(np.int64) << np.maximum(count, 0)
    return np.where(count < 0, a.astype(np.int64) >> np.maximum(-count, 0), left).astype(np.int32)


def _right(a: NDArray, count: NDArray) -> NDArray:
    """Words shifted right as unsigned numbers, to the left where the count is negative."""
    wide, count = a.view(np.uint32).astype(np.uint64), _six_bits(count)
    right = wide >> np.maximum(count, 0).astype(np.uint64)
    left = wide << np.maximum(-count, 0).astype(np.uint64)
    return np.where(count < 0, left, right).astype(np.uint32).view(np.int32)


def _six_bits(count: NDArray) -> NDArray:
    """What a vector of shift counts says: six bits with a sign."""
    return (count.astype(np.int64) + 32) % 64 - 32


def _redundant_signs(a: NDArray) -> NDArray:
    """vnormamt: how far a word can be shifted left until its first bit differs from its sign."""
    folded = (a ^ (a >> 31)).view(np.uint32)
    bits = (folded[:, None] >> np.arange(32, dtype=np.uint32) > 0).sum(1, dtype=np.int32)
    return 31 - bits


def _times_low_halves(a: NDArray, b: NDArray) -> NDArray:
    """vmpye: words times the low halves, without sign, of words: 64 bits; low words first."""
    product = a.astype(np.int64) * (b.view(np.uint32) & 0xFFFF)
    return np.concatenate([product << 16, product >> 16]).astype(np.int32)


def _plus_times_high_halves(acc: NDArray, a: NDArray, b: NDArray) -> NDArray:
    """vmpyo: completes what `TIMES_LOW_HALVES` began to the product of two words, 64 bits."""
    low, high = acc[: len(a)], acc[len(a) :]
    product = a.astype(np.int64) * (b >> 16) + high
    low = (low.view(np.uint32) >> 16) | (product.astype(np.uint64) << 16).astype(np.uint32)
    return np.concatenate([low.view(np.int32), (product >> 16).astype(np.int32)])


def _predicate(words: NDArray) -> NDArray:
    return np.repeat(words, 4)


def _unsigned_right(a: NDArray, count: NDArray) -> NDArray:
    return (a.view(np.uint32) >> count.astype(np.uint32)).view(np.int32)


ZIP = Intrinsic(
    "llvm.hexagon.V6.vshuffvdd.128B",
    PAIR,
    (WORDS, WORDS, SCALAR),
    _zipped,
    _FEATURES,
)
ROTATE = Intrinsic(
    "llvm.hexagon.V6.vror.128B",
    WORDS,
    (WORDS, SCALAR),
    lambda a, count: np.roll(a.view(np.uint8), -int(count[0])).view(np.int32),
    _FEATURES,
)
DOT = _words("vrmpybusv.acc", 3, _dot)
DOT_SCALAR = Intrinsic(
    "llvm.hexagon.V6.vrmpybus.acc.128B",
    WORDS,
    (WORDS, WORDS, SCALAR),
    lambda acc, a, b: _dot(acc, a, np.repeat(b, 32)),
    _FEATURES,
)
SHUFFLE_BYTES = _words("vshuffb", 1, _shuffled_bytes)
LOOK_UP = Intrinsic(
    "llvm.hexagon.V6.vlutvvb.nm.128B", WORDS, (WORDS, WORDS, SCALAR), _looked_up, _FEATURES
)
TIMES_HALF = Intrinsic(
    "llvm.hexagon.V6.vmpyiwh.128B", WORDS, (WORDS, SCALAR), _times_half, _FEATURES
)
PLUS_TIMES_HALF = Intrinsic(
    "llvm.hexagon.V6.vmpyiwh.acc.128B",
    WORDS,
    (WORDS, WORDS, SCALAR),
    lambda acc, a, b: acc + _times_half(a, b),
    _FEATURES,
)
TIMES_EVEN = _words("vmpyiewuh", 2, _times_even)
TIMES_EVEN_HIGH = _words("vmpyewuh", 2, lambda a, b: _times_low_halves(a, b)[len(a) :])
PLUS_RIGHT_SIGNED = Intrinsic(
    "llvm.hexagon.V6.vasrw.acc.128B",
    WORDS,
    (WORDS, WORDS, SCALAR),
    lambda acc, a, count: acc + (a >> (count & 31)),
    _FEATURES,
)
PRODUCT_SCALAR = Intrinsic(
    "llvm.hexagon.V6.vrmpybus.128B",
    WORDS,
    (WORDS, SCALAR),
    lambda a, b: _dot(np.zeros_like(a), a, np.repeat(b, 32)),
    _FEATURES,
)
PLUS_LEFT = Intrinsic(
    "llvm.hexagon.V6.vaslw.acc.128B",
    WORDS,
    (WORDS, WORDS, SCALAR),
    lambda acc, a, count: acc + (a << (count & 31)),
    _FEATURES,
)
ADD = _words("vaddw", 2, lambda a, b: a + b)
SUB = _words("vsubw", 2, lambda a, b: a - b)
AND = _words("vand", 2, lambda a, b: a & b)
OR = _words("vor", 2, lambda a, b: a | b)
XOR = _words("vxor", 2, lambda a, b: a ^ b)
MAX = _words("vmaxw", 2, np.maximum)
MIN = _words("vminw", 2, np.minimum)
ABS = _words("vabsw", 1, np.abs)
NORM = _words("vnormamtw", 1, _redundant_signs)
LEFT = _shift("vaslw", lambda a, count: a << count)
RIGHT = _shift("vlsrw", _unsigned_right)
RIGHT_SIGNED = _shift("vasrw", lambda a, count: a >> count)
LEFT_EACH = _words("vaslwv", 2, _left)
RIGHT_EACH = _words("vlsrwv", 2, _right)
GREATER = _words("vgtw", 2, lambda a, b: _predicate(a > b), PREDICATE)
CHOOSE = Intrinsic(
    "llvm.hexagon.V6.vmux.128B",
    WORDS,
    (PREDICATE, WORDS, WORDS),
    lambda q, a, b: np.where(q[::4], a, b),
    _FEATURES,
)
TIMES_LOW_HALVES = _words("vmpyewuh.64", 2, _times_low_halves, PAIR)
TIMES_HIGH_HALVES = Intrinsic(
    "llvm.hexagon.V6.vmpyowh.64.acc.128B",
    PAIR,
    (PAIR, WORDS, WORDS),
    _plus_times_high_halves,
    _FEATURES,
)
LOW = Intrinsic("llvm.hexagon.V6.lo.128B", WORDS, (PAIR,), lambda p: p[: len(p) // 2], _FEATURES)
HIGH = Intrinsic("llvm.hexagon.V6.hi.128B", WORDS, (PAIR,), lambda p: p[len(p) // 2 :], _FEATURES)

ALL = (
    *(DOT, DOT_SCALAR, ADD, SUB, AND, OR, XOR, MAX, MIN, ABS, NORM, LEFT, RIGHT, RIGHT_SIGNED),
    *(LEFT_EACH, RIGHT_EACH, TIMES_LOW_HALVES, TIMES_HIGH_HALVES, LOW, HIGH),
    *(SHUFFLE_BYTES, LOOK_UP, TIMES_HALF, PLUS_TIMES_HALF, TIMES_EVEN, TIMES_EVEN_HIGH),
    *(PRODUCT_SCALAR, PLUS_LEFT, PLUS_RIGHT_SIGNED, ZIP, ROTATE),
)
"""Those that a test can call alone; GREATER and CHOOSE hand a predicate on."""
