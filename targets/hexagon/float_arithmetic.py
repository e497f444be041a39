"""Arithmetic of 32 floats at once with integer instructions of HVX.

HVX of v67 has no floating point, and LLVM takes a vector of floats apart: 66 packets for one
multiplication of 32. Here it is about 12. Results are those of IEEE 754, rounded to nearest, ties
to even, except that numbers below the least normal one are zero. An operand that is infinite or no
number gives any result; what overflows is infinite.

Functions take and give the bits of floats as words. They are written for a `Machine`, so that tests
run them in numpy on what the instructions mean.
"""

from __future__ import annotations

import math
import struct
from typing import Any, Protocol

from morendo.codegen.cpu.vectors.intrinsic import Intrinsic

from . import intrinsics as hvx

_SIGN, _MAGNITUDE = -(1 << 31), (1 << 31) - 1
_FRACTION, _ONE = (1 << 23) - 1, 1 << 23  # the bits of a mantissa, and the one that is not stored
_INFINITY = 0x7F800000
_BIAS = 127
_LOG2_E = 1 / math.log(2)
_POWERS_OF_2 = (0.0013276472, 0.0096755413, 0.0555071327, 0.2402211972, 0.6931469671, 1.0000000717)
"""2^x = ... + c_1 x + c_0 on [-1/2, 1/2], the highest power first."""
_NEGATIVE_POWERS = (0.0095701017, -0.0559178621, 0.2402474485, -0.6931218145, 0.9999992614)
"""2^-x there, within 3e-6."""
_INVERSE_ROOTS = (-0.15234058, 1.06638611)
"""1 / sqrt(x) on [1, 4], within 0.09."""
_RECIPROCALS = (0.1522448945, -0.5328574588, 0.8658936148, -0.9848350387, 0.9997026570)
"""1 / (1 + x) on [0, 1], within 3e-4."""


class Machine(Protocol):
    """Executes or emits instructions; operands are vectors, or ints that stand in all lanes."""

    def __call__(self, instruction: Intrinsic, *operands: Any) -> Any:
        """The result of one instruction."""
        ...


def multiply(m: Machine, a: Any, b: Any) -> Any:
    """The product a * b."""
    sizes = [m(hvx.AND, x, _MAGNITUDE) for x in (a, b)]
    sign = m(hvx.AND, m(hvx.XOR, a, b), _SIGN)
    ea, eb = (m(hvx.RIGHT, size, 23) for size in sizes)
    low, high = _product(m, *(m(hvx.LEFT, _mantissa(m, size), 7) for size in sizes))
    # 29 or 30 bits are in the high word; one bit says whether there are any in the low one.
    high = m(hvx.OR, high, m(hvx.MIN, m(hvx.RIGHT, low, 1), 1))
    carry = m(hvx.RIGHT, high, 29)
    mantissa = _rounded(m, m(hvx.LEFT_EACH, high, m(hvx.SUB, 1, carry)), 6)
    exponent = m(hvx.ADD, m(hvx.ADD, ea, eb), carry)
    bits = m(hvx.SUB, m(hvx.ADD, m(hvx.LEFT, exponent, 23), mantissa), (_BIAS + 1) << 23)
    exponent = m(hvx.SUB, exponent, _BIAS)
    bits = m(hvx.CHOOSE, m(hvx.GREATER, exponent, 254), _INFINITY, bits)
    normal = m(hvx.GREATER, m(hvx.MIN, m(hvx.MIN, ea, eb), exponent), 0)
    return m(hvx.OR, m(hvx.CHOOSE, normal, bits, 0), sign)


def add(m: Machine, a: Any, b: Any) -> Any:
    """The sum a + b."""
    ua, ub = (m(hvx.AND, x, _MAGNITUDE) for x in (a, b))
    sign = m(hvx.AND, m(hvx.CHOOSE, m(hvx.GREATER, ub, ua), b, a), _SIGN)
    large, small = m(hvx.MAX, ua, ub), m(hvx.MIN, ua, ub)
    exponent, lower = m(hvx.RIGHT, large, 23), m(hvx.RIGHT, small, 23)
    x, y = (m(hvx.LEFT, _mantissa(m, size), 6) for size in (large, small))
    y = m(hvx.CHOOSE, m(hvx.GREATER, lower, 0), y, 0)
    y = _shifted_right(m, y, m(hvx.MIN, m(hvx.SUB, exponent, lower), 31))
    y = _negated(m, y, m(hvx.XOR, a, b))
    total = m(hvx.ADD, x, y)
    unused = m(hvx.NORM, total)
    mantissa = _rounded(m, m(hvx.LEFT_EACH, total, unused), 7)
    exponent = m(hvx.SUB, exponent, unused)
    bits = m(hvx.MIN, m(hvx.ADD, m(hvx.LEFT, exponent, 23), mantissa), _INFINITY)
    normal = m(hvx.GREATER, m(hvx.MIN, total, m(hvx.ADD, exponent, 1)), 0)
    return m(hvx.CHOOSE, normal, m(hvx.OR, bits, sign), 0)


def subtract(m: Machine, a: Any, b: Any) -> Any:
    """The difference a - b."""
    return add(m, a, m(hvx.XOR, b, _SIGN))


def divide(m: Machine, a: Any, b: Any) -> Any:
    """The quotient a / b; Newton's iteration for the reciprocal, then the exact remainder."""
    sizes = [m(hvx.AND, x, _MAGNITUDE) for x in (a, b)]
    sign = m(hvx.AND, m(hvx.XOR, a, b), _SIGN)
    ea, eb = (m(hvx.RIGHT, size, 23) for size in sizes)
    x, y = (_mantissa(m, size) for size in sizes)
    quotient, more = _quotient(m, x, y)
    carry = m(hvx.RIGHT, quotient, 25)
    shifted = m(hvx.LEFT_EACH, quotient, m(hvx.SUB, 2, carry))
    mantissa = _rounded(m, m(hvx.OR, shifted, more), 3)
    exponent = m(hvx.ADD, m(hvx.SUB, ea, eb), m(hvx.ADD, carry, _BIAS - 1))
    bits = m(hvx.ADD, m(hvx.LEFT, m(hvx.SUB, exponent, 1), 23), mantissa)
    finite = m(hvx.GREATER, m(hvx.MIN, eb, m(hvx.SUB, 255, exponent)), 0)
    bits = m(hvx.CHOOSE, finite, bits, _INFINITY)
    normal = m(hvx.GREATER, m(hvx.MIN, ea, exponent), 0)
    return m(hvx.OR, m(hvx.CHOOSE, normal, bits, 0), sign)


def exponential(m: Machine, a: Any) -> Any:
    """The exponential of a, within 3e-7 of it; a is clamped to [-87.33, 88.37].

    2 to the power a * log2(e), a number of 8 and 24 bits: the nearest integer is the exponent, of
    the rest there is a polynomial (minimax on [-1/2, 1/2]).
    """
    limit = m(hvx.CHOOSE, m(hvx.GREATER, 0, a), _bits(87.33), _bits(88.37))
    size = m(hvx.MIN, m(hvx.AND, a, _MAGNITUDE), limit)
    # The mantissa * 2^30 times log2(e) * 2^30: the high word is the product * 2^28.
    product = _product(m, m(hvx.LEFT, _mantissa(m, size), 7), round(_LOG2_E * 2**30))[1]
    count = m(hvx.MIN, m(hvx.SUB, _BIAS + 4, m(hvx.RIGHT, size, 23)), 31)
    power = _negated(m, m(hvx.RIGHT_EACH, product, count), a)
    whole = m(hvx.RIGHT_SIGNED, m(hvx.ADD, power, 1 << 23), 24)
    rest = m(hvx.LEFT, m(hvx.SUB, power, m(hvx.LEFT, whole, 24)), 8)  # * 2^32
    value = round(_POWERS_OF_2[0] * 2**30)
    for coefficient in _POWERS_OF_2[1:]:
        value = m(hvx.ADD, _product(m, rest, value)[1], round(coefficient * 2**30))
    unused = m(hvx.NORM, value)
    mantissa = _rounded(m, m(hvx.LEFT_EACH, value, unused), 7)
    exponent = m(hvx.ADD, m(hvx.SUB, whole, unused), _BIAS - 1)
    return m(hvx.ADD, m(hvx.LEFT, exponent, 23), mantissa)


def inverse_root(m: Machine, a: Any) -> Any:
    """1 / sqrt(a) of normal numbers above 0, within 1e-7 of it: a line, then Newton's iteration.

    a is x * 4^k with x in [1, 4).
    """
    exponent = m(hvx.RIGHT, a, 23)
    odd = m(hvx.AND, m(hvx.ADD, exponent, 1), 1)
    k = m(hvx.RIGHT_SIGNED, m(hvx.SUB, m(hvx.SUB, exponent, odd), _BIAS), 1)
    x = m(hvx.LEFT_EACH, m(hvx.LEFT, _mantissa(m, a), 6), odd)  # * 2^29
    slope, start = (round(coefficient * 2**30) for coefficient in _INVERSE_ROOTS)
    root = m(hvx.ADD, m(hvx.LEFT, _product(m, x, slope)[1], 3), start)  # * 2^30
    for _ in range(4):
        square = m(hvx.LEFT, _product(m, root, root)[1], 2)
        error = m(hvx.SUB, 1 << 30, m(hvx.LEFT, _product(m, x, square)[1], 3))
        root = m(hvx.ADD, root, m(hvx.LEFT, _product(m, root, error)[1], 1))
    unused = m(hvx.NORM, root)
    mantissa = _rounded(m, m(hvx.LEFT_EACH, root, unused), 7)
    lower = m(hvx.SUB, _BIAS - 1, m(hvx.ADD, unused, k))
    return m(hvx.ADD, m(hvx.LEFT, lower, 23), mantissa)


def silu_times(m: Machine, a: Any, b: Any) -> Any:
    """The product of a, b and 1 / (1 + exp(-a)), within 3e-6 of it.

    With t = exp(-|a|) as 2 to the power of a number of 10 and 22 bits, the sigmoid is
    r = 1 / (1 + t) or t r. Its reciprocal is a polynomial of 16 bits of t and one step of Newton's
    iteration, and all three factors are multiplied before anything is rounded.
    """
    sizes = [m(hvx.AND, x, _MAGNITUDE) for x in (a, b)]
    sign = m(hvx.AND, m(hvx.XOR, a, b), _SIGN)
    ea, eb = (m(hvx.RIGHT, size, 23) for size in sizes)
    x, y = (m(hvx.LEFT, _mantissa(m, size), 7) for size in sizes)
    t, whole = _negative_power(m, sizes[0])
    above = m(hvx.RIGHT_EACH, t, m(hvx.MIN, m(hvx.ADD, whole, 1), 31))  # t / 2^whole * 2^29
    r = _reciprocal_above_one(m, above)
    negative = m(hvx.GREATER, 0, a)
    sigmoid = m(hvx.CHOOSE, negative, _product(m, t, m(hvx.LEFT, r, 1))[1], m(hvx.RIGHT, r, 1))
    value = _product(m, m(hvx.LEFT, _product(m, x, sigmoid)[1], 3), y)[1]
    lower = m(hvx.ADD, m(hvx.CHOOSE, negative, whole, 0), _BIAS - 2)
    return m(hvx.OR, _float_of(m, value, ea, eb, lower), sign)


def scaled(m: Machine, count: Any, a: Any, b: Any) -> Any:
    """The product of an integer and two floats, rounded once behind 27 bits or more of it."""
    sizes = [m(hvx.AND, x, _MAGNITUDE) for x in (a, b)]
    sign = m(hvx.AND, m(hvx.XOR, m(hvx.XOR, a, b), count), _SIGN)
    ea, eb = (m(hvx.RIGHT, size, 23) for size in sizes)
    x, y = (m(hvx.LEFT, _mantissa(m, size), 7) for size in sizes)
    size = m(hvx.ABS, count)
    unused = m(hvx.NORM, size)
    first = _product(m, m(hvx.LEFT_EACH, size, unused), x)[1]
    value = _product(m, m(hvx.LEFT, first, 1), y)[1]
    return m(hvx.OR, _float_of(m, value, ea, eb, m(hvx.ADD, unused, _BIAS - 32)), sign)


def _float_of(m: Machine, value: Any, ea: Any, eb: Any, lower: Any) -> Any:
    """The float value * 2^(ea + eb - lower - 29 - 127) of a word that is not negative.

    It is zero where the word is, or where the exponent of one factor, `ea` or `eb`, is.
    """
    unused = m(hvx.NORM, value)
    mantissa = _rounded(m, m(hvx.LEFT_EACH, value, unused), 7)
    exponent = m(hvx.SUB, m(hvx.ADD, ea, eb), m(hvx.ADD, lower, unused))
    bits = m(hvx.ADD, m(hvx.LEFT, exponent, 23), mantissa)
    bits = m(hvx.CHOOSE, m(hvx.GREATER, exponent, 253), _INFINITY, bits)
    normal = m(hvx.MIN, m(hvx.MIN, ea, eb), m(hvx.MIN, value, m(hvx.ADD, exponent, 1)))
    return m(hvx.CHOOSE, m(hvx.GREATER, normal, 0), bits, 0)


def _negative_power(m: Machine, size: Any) -> tuple[Any, Any]:
    """(t * 2^30, n) with exp(-size) = t / 2^n and t in [0.7, 1.42]; sizes are 300 at most."""
    size = m(hvx.MIN, size, _bits(300.0))
    product = _product(m, m(hvx.LEFT, _mantissa(m, size), 7), round(_LOG2_E * 2**30))[1]
    count = m(hvx.MIN, m(hvx.SUB, _BIAS + 6, m(hvx.RIGHT, size, 23)), 31)
    power = m(hvx.RIGHT_EACH, product, count)  # * 2^22
    whole = m(hvx.RIGHT, m(hvx.ADD, power, 1 << 21), 22)
    rest = m(hvx.LEFT, power, 10)  # what is left is in [-1/2, 1/2], times 2^32
    value = round(_NEGATIVE_POWERS[0] * 2**30)
    for coefficient in _NEGATIVE_POWERS[1:]:
        value = m(hvx.ADD, _product(m, rest, value)[1], round(coefficient * 2**30))
    return value, whole


def _reciprocal_above_one(m: Machine, x: Any) -> Any:
    """2^29 / (1 + x / 2^29) for x in [0, 2^29]."""
    upper = m(hvx.MIN, m(hvx.RIGHT, x, 13), 65535)
    value = round(_RECIPROCALS[0] * 2**30)
    for coefficient in _RECIPROCALS[1:]:
        scaled = m(hvx.TIMES_EVEN_HIGH, value, upper)
        value = m(hvx.ADD, scaled, round(coefficient * 2**30))
    first = m(hvx.RIGHT, value, 14)  # * 2^16
    error = m(hvx.SUB, 1 << 29, m(hvx.TIMES_EVEN_HIGH, m(hvx.ADD, x, 1 << 29), first))
    return m(hvx.ADD, m(hvx.LEFT, first, 13), m(hvx.TIMES_EVEN_HIGH, error, first))


def maximum(m: Machine, a: Any, b: Any) -> Any:
    """The larger of a and b."""
    return m(hvx.CHOOSE, m(hvx.GREATER, order(m, a), order(m, b)), a, b)


def minimum(m: Machine, a: Any, b: Any) -> Any:
    """The smaller of a and b."""
    return m(hvx.CHOOSE, m(hvx.GREATER, order(m, a), order(m, b)), b, a)


def absolute(m: Machine, a: Any) -> Any:
    """The magnitude |a|."""
    return m(hvx.AND, a, _MAGNITUDE)


def order(m: Machine, a: Any) -> Any:
    """Words that are ordered as the floats are."""
    return m(hvx.XOR, a, m(hvx.RIGHT, m(hvx.RIGHT_SIGNED, a, 31), 1))


def from_integer(m: Machine, a: Any) -> Any:
    """The float nearest to each word."""
    size = m(hvx.ABS, a)
    unused = m(hvx.NORM, size)
    mantissa = _rounded(m, m(hvx.LEFT_EACH, size, unused), 7)
    bits = m(hvx.ADD, m(hvx.LEFT, m(hvx.SUB, _BIAS + 29, unused), 23), mantissa)
    bits = m(hvx.OR, bits, m(hvx.AND, a, _SIGN))
    return m(hvx.CHOOSE, m(hvx.GREATER, size, 0), bits, 0)


def to_nearest_integer(m: Machine, a: Any) -> Any:
    """The integer nearest to each float, ties to even; magnitudes are below 2^30."""
    halves, rest = _integer_part(m, a, _BIAS + 29)
    odd = m(hvx.AND, m(hvx.OR, m(hvx.RIGHT, halves, 1), rest), 1)
    return _negated(m, m(hvx.RIGHT, m(hvx.ADD, halves, odd), 1), a)


def to_integer(m: Machine, a: Any) -> Any:
    """Each float without its fraction, as an integer; magnitudes are below 2^30."""
    return _negated(m, _integer_part(m, a, _BIAS + 30)[0], a)


def _integer_part(m: Machine, a: Any, exponent: int) -> tuple[Any, Any]:
    """(|a| * 2^(127 + 30 - exponent) without its fraction, 1 where there is one)."""
    size = m(hvx.AND, a, _MAGNITUDE)
    count = m(hvx.SUB, exponent, m(hvx.RIGHT, size, 23))
    count = m(hvx.MIN, m(hvx.MAX, count, 0), 31)
    mantissa = m(hvx.LEFT, _mantissa(m, size), 7)
    whole = m(hvx.RIGHT_EACH, mantissa, count)
    return whole, m(hvx.MIN, m(hvx.XOR, mantissa, m(hvx.LEFT_EACH, whole, count)), 1)


def _bits(value: float) -> int:
    """A float as a word."""
    return struct.unpack("<i", struct.pack("<f", value))[0]


def _mantissa(m: Machine, size: Any) -> Any:
    """24 bits of a magnitude, the highest of which is not stored."""
    return m(hvx.OR, m(hvx.AND, size, _FRACTION), _ONE)


def _product(m: Machine, a: Any, b: Any) -> tuple[Any, Any]:
    """The low and the high words of products of words."""
    pair = m(hvx.TIMES_HIGH_HALVES, m(hvx.TIMES_LOW_HALVES, a, b), a, b)
    return m(hvx.LOW, pair), m(hvx.HIGH, pair)


def _rounded(m: Machine, a: Any, bits: int) -> Any:
    """Words without their lowest bits, rounded to nearest, ties to even."""
    even = m(hvx.AND, m(hvx.RIGHT, a, bits), 1)
    return m(hvx.RIGHT, m(hvx.ADD, a, m(hvx.ADD, even, (1 << (bits - 1)) - 1)), bits)


def _shifted_right(m: Machine, a: Any, count: Any) -> Any:
    """Words shifted right; the lowest bit is set where a bit was lost."""
    shifted = m(hvx.RIGHT_EACH, a, count)
    lost = m(hvx.XOR, a, m(hvx.LEFT_EACH, shifted, count))
    return m(hvx.OR, shifted, m(hvx.MIN, lost, 1))


def _negated(m: Machine, a: Any, sign: Any) -> Any:
    """Words, negated where `sign` is negative."""
    mask = m(hvx.RIGHT_SIGNED, sign, 31)
    return m(hvx.SUB, m(hvx.XOR, a, mask), mask)


def _quotient(m: Machine, x: Any, y: Any) -> tuple[Any, Any]:
    """(floor(2^25 x / y), 1 where that is not all) of mantissas."""
    divisor = m(hvx.LEFT, y, 7)  # d in [1/2, 1) as d * 2^31
    # The reciprocal r of d as r * 2^29: 48/17 - 32/17 d is within 1/17 of it.
    first = _product(m, divisor, round(32 / 17 * 2**30))[1]
    inverse = m(hvx.SUB, round(48 / 17 * 2**29), first)
    for _ in range(3):
        error = m(hvx.SUB, 1 << 28, _product(m, divisor, inverse)[1])
        inverse = m(hvx.ADD, inverse, _product(m, inverse, m(hvx.LEFT, error, 4))[1])
    quotient = m(hvx.RIGHT, _product(m, m(hvx.LEFT, x, 7), inverse)[1], 3)
    rest = m(hvx.SUB, m(hvx.LEFT, x, 25), _product(m, quotient, y)[0])
    for _ in range(2):  # it may be one too large or too small
        below = m(hvx.RIGHT_SIGNED, rest, 31)
        quotient, rest = m(hvx.ADD, quotient, below), m(hvx.ADD, rest, m(hvx.AND, below, y))
    for _ in range(2):
        above = m(hvx.RIGHT_SIGNED, m(hvx.SUB, m(hvx.SUB, y, 1), rest), 31)
        quotient, rest = m(hvx.SUB, quotient, above), m(hvx.SUB, rest, m(hvx.AND, above, y))
    return quotient, m(hvx.MIN, rest, 1)
