"""Floats computed with integer instructions: IEEE's numbers, bit by bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from morendo.codegen.cpu.vectors.intrinsic import Intrinsic
from morendo.targets.hexagon import float_arithmetic as floats


class Numpy:
    """Executes what instructions mean."""

    def __call__(self, instruction: Intrinsic, *operands: Any) -> Any:
        sizes = [int(dtype.partition("x")[2] or 1) for dtype in instruction.operands]
        given = next(i for i, x in enumerate(operands) if isinstance(x, np.ndarray))
        vectors = np.size(operands[given]) // sizes[given]
        values = [
            x
            if isinstance(x, np.ndarray)
            else np.full(vectors * size if size > 1 else 1, x, np.int64).astype(np.int32)
            for x, size in zip(operands, sizes, strict=True)
        ]
        with np.errstate(over="ignore"):
            return instruction.meaning(*values)


def operands(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of floats: random bits, near each other, few bits (ties), zeros."""
    rng = np.random.default_rng(seed)
    count = 64_000

    def bits(low: int, high: int) -> np.ndarray:
        exponent = rng.integers(low, high, count).astype(np.uint32) << 23
        mantissa = rng.integers(0, 1 << 23, count).astype(np.uint32)
        mantissa[::3] &= 0x7FF000  # products and sums with exact ties
        mantissa[::7] = 0
        sign = rng.integers(0, 2, count).astype(np.uint32) << 31
        return (sign | exponent | mantissa).view(np.float32)

    a = np.concatenate([bits(1, 255), bits(100, 150), bits(120, 130)])
    b = np.concatenate([bits(1, 255), bits(100, 150), bits(120, 130)])
    b[-count // 2 :] = -a[-count // 2 :] * np.float32(1 + 2**-20)
    a[::97], b[::89] = 0, 0
    a[::1013] = b[::1013] = 0
    return a, b


def flushed(x: np.ndarray) -> np.ndarray:
    return np.where(np.abs(x) < np.finfo(np.float32).tiny, np.float32(0), x)


def check(got: np.ndarray, want: np.ndarray, where: np.ndarray | None = None) -> None:
    got, want = flushed(got.view(np.float32)), flushed(want)
    # A number that rounds up to the least normal one may count as smaller.
    least = (np.abs(want) == np.finfo(np.float32).tiny) & (got == 0)
    keep = ~least if where is None else where & ~least
    np.testing.assert_array_equal(got[keep], want[keep])


@pytest.mark.parametrize(
    ("name", "exact"),
    [
        ("multiply", np.multiply), ("add", np.add), ("subtract", np.subtract),
        ("maximum", np.maximum), ("minimum", np.minimum),
    ],
)  # fmt: skip
def test_operations(name: str, exact: Any) -> None:
    a, b = operands(3)
    with np.errstate(all="ignore"):
        want = exact(a, b)
    check(getattr(floats, name)(Numpy(), a.view(np.int32), b.view(np.int32)), want)


def test_divisions() -> None:
    a, b = operands(4)
    with np.errstate(all="ignore"):
        want = a / b
    got = floats.divide(Numpy(), a.view(np.int32), b.view(np.int32))
    check(got, want, (a != 0) | (b != 0))


def test_from_integers() -> None:
    rng = np.random.default_rng(5)
    scale = 1 << rng.integers(0, 32, 128_000)
    words = (rng.integers(-(1 << 31) + 1, 1 << 31, 128_000) // scale).astype(np.int32)
    words[:3] = 0, 1, -1
    check(floats.from_integer(Numpy(), words), words.astype(np.float32))


def test_to_integers() -> None:
    rng = np.random.default_rng(6)
    x = (rng.normal(size=128_000) * 2.0 ** rng.integers(-40, 28, 128_000)).astype(np.float32)
    x[:1000] = np.arange(-500, 500) / 2
    x[1000] = 0
    words = floats.to_nearest_integer(Numpy(), x.view(np.int32))
    np.testing.assert_array_equal(words, np.rint(x).astype(np.int32))
    np.testing.assert_array_equal(floats.to_integer(Numpy(), x.view(np.int32)), x.astype(np.int32))


def test_the_exponential_is_close_and_clamped() -> None:
    rng = np.random.default_rng(5)
    a = np.concatenate(
        [rng.uniform(-87.3, 88.3, 64_000), rng.normal(size=64_000), [0.0, -0.0, 1e-38]]
    )
    a = a[: len(a) // 32 * 32].astype(np.float32)
    got = floats.exponential(Numpy(), a.view(np.int32)).view(np.float32)
    np.testing.assert_allclose(got, np.exp(a.astype(np.float64)), rtol=3e-7)
    ends = np.array([-3e38, -88.0, -87.33, 88.37, 88.7, 3e38, 0.0, -0.0] * 4, np.float32)
    got = floats.exponential(Numpy(), ends.view(np.int32)).view(np.float32)
    expected = np.exp(np.clip(ends.astype(np.float64), -87.33, 88.37))
    np.testing.assert_allclose(got, expected, rtol=3e-6)


def test_a_scaled_integer_is_rounded_once() -> None:
    rng = np.random.default_rng(7)
    count = (rng.integers(-(1 << 31) + 1, 1 << 31, 64_000) >> rng.integers(0, 31, 64_000)).astype(
        np.int32
    )
    a, b = (
        (10.0 ** rng.uniform(-12, 3, 64_000) * rng.choice([-1, 1], 64_000)).astype(np.float32)
        for _ in range(2)
    )
    a[::97], b[::89] = 0, 0
    got = floats.scaled(Numpy(), count, a.view(np.int32), b.view(np.int32)).view(np.float32)
    want = count.astype(np.float64) * a * b
    np.testing.assert_allclose(got, want, rtol=1.1 * 2.0**-24, atol=1.2e-38)
    ends = np.array([3e38, 1e-30] * 16, np.float32)
    got = floats.scaled(Numpy(), np.full(32, 1000, np.int32), *[ends.view(np.int32)] * 2)
    np.testing.assert_array_equal(got.view(np.float32), [np.inf, 0] * 16)


def test_gates_are_close_and_keep_their_tails() -> None:
    rng = np.random.default_rng(8)
    a = np.concatenate([rng.uniform(-90, 90, 64_000), 10.0 ** rng.uniform(-12, 6, 32_000)])
    a[64_000::2] *= -1
    a[:3] = 0.0, -0.0, -1e30
    b = rng.normal(size=a.size) * 10.0 ** rng.uniform(-8, 8, a.size)
    a, b = a.astype(np.float32), b.astype(np.float32)
    got = floats.silu_times(Numpy(), a.view(np.int32), b.view(np.int32)).view(np.float32)
    x = a.astype(np.float64)
    want = x / (1 + np.exp(np.minimum(-x, 700))) * b
    np.testing.assert_allclose(got, want, rtol=3e-6, atol=1.2e-38)


def test_inverse_roots() -> None:
    rng = np.random.default_rng(9)
    a = np.concatenate([2.0 ** rng.uniform(-126, 127, 64_000), np.linspace(1, 4, 32_000)])
    a = np.append(a, 4.0 ** np.arange(-16, 16)).astype(np.float32)
    got = floats.inverse_root(Numpy(), a.view(np.int32)).view(np.float32)
    np.testing.assert_allclose(got, a.astype(np.float64) ** -0.5, rtol=1e-7)
