"""Elementwise float32 functions on vectors, without calls.

exp: range reduction after Cody and Waite, then a polynomial (coefficients of Cephes' expf, about
2e-7 relative). erfc: Abramowitz and Stegun 7.1.26 (about 1.5e-7 absolute).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from tvm.ir import Expr
from tvm.tirx.script.builder import ir as T

from .vector import splat, splat_float, vector_type

Exp = Callable[[Expr, int], Expr]
"""An exponential of so many lanes."""

_EXP_POLYNOMIAL = (
    1.9875691500e-4,
    1.3981999507e-3,
    8.3334519073e-3,
    4.1665795894e-2,
    1.6666665459e-1,
    5.0000001201e-1,
)
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4  # the high part has 9 bits: n * high is exact
_EXP_LOW, _EXP_HIGH = -87.33, 88.37  # below: the result is no normal number; above: n would be 128
_ERFC_POLYNOMIAL = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)
_ERFC_P = 0.3275911


def _horner(x: Expr, coefficients: Sequence[float], lanes: int) -> Expr:
    result = splat_float(coefficients[0], lanes)
    for coefficient in coefficients[1:]:
        result = result * x + splat_float(coefficient, lanes)
    return result


def fast_exp(x: Expr, lanes: int) -> Expr:
    """The exponential of float32 x lanes; arguments are clamped to [-87.33, 88.37]."""
    x = T.bind(T.min(T.max(x, splat_float(_EXP_LOW, lanes)), splat_float(_EXP_HIGH, lanes)))
    n = T.bind(T.nearbyint(x * splat_float(1 / math.log(2), lanes)))
    r = x - n * splat_float(_LN2_HIGH, lanes)
    r = T.bind(r - n * splat_float(_LN2_LOW, lanes))
    y = _horner(r, _EXP_POLYNOMIAL, lanes) * r * r + r + splat_float(1.0, lanes)
    exponent = T.cast(n, vector_type("int32", lanes)) + splat(T.int32(127), lanes)
    power = T.reinterpret(vector_type("float32", lanes), exponent << splat(T.int32(23), lanes))
    return T.bind(y * power)


def sigmoid(x: Expr, lanes: int, exp: Exp) -> Expr:
    """1 / (1 + exp(-x))."""
    one = splat_float(1.0, lanes)
    return one / (one + exp(splat_float(0.0, lanes) - x, lanes))


def silu(x: Expr, lanes: int, exp: Exp) -> Expr:
    """The product x * sigmoid(x)."""
    return x * sigmoid(x, lanes, exp)


def gelu_tanh(x: Expr, lanes: int, exp: Exp) -> Expr:
    """0.5 x (1 + tanh(u)) = x sigmoid(2u) with u = sqrt(2/pi) (x + 0.044715 x^3)."""
    two_u = x * (x * x * splat_float(0.044715, lanes) + splat_float(1.0, lanes))
    return x * sigmoid(two_u * splat_float(2 * math.sqrt(2 / math.pi), lanes), lanes, exp)


def gelu(x: Expr, lanes: int, exp: Exp) -> Expr:
    """0.5 x (1 + erf(x / sqrt 2)), through erfc so that the negative tail keeps its digits."""
    one, zero = splat_float(1.0, lanes), splat_float(0.0, lanes)
    a = T.bind(T.max(x, zero - x) * splat_float(math.sqrt(0.5), lanes))
    t = T.bind(one / (one + a * splat_float(_ERFC_P, lanes)))
    erfc = _horner(t, _ERFC_POLYNOMIAL, lanes) * t * exp(zero - a * a, lanes)
    tail = T.bind(x * erfc * splat_float(0.5, lanes))
    return T.Select(x < zero, tail, x - tail)


def relu(x: Expr, lanes: int, exp: Exp) -> Expr:
    """max(x, 0)."""
    return T.max(x, splat_float(0.0, lanes))


ACTIVATIONS: dict[str, Callable[[Expr, int, Exp], Expr]] = {
    "silu": silu,
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "relu": relu,
}


def activation(name: str, x: Expr, lanes: int, exp: Exp) -> Expr:
    """The named activation of float32 x lanes, bound to a variable.

    Args:
        exp: the vector unit's exponential.
    """
    return T.bind(ACTIVATIONS[name](T.bind(x), lanes, exp))
