"""What the linear kernels of this target compute, in numpy, bit by bit.

The scales of weights are whole numbers already, those of activations become 16 bits relative to the
largest of their token, so that a row's products are added as integers over all groups, and floats
come in once for a row and token:

    ratio[m, g] = scale[m, g] / max_g scale[m, g]           in 65535ths
    sum[m, n]   = sum over g of dot[m, n, g] * scale[n, g] * ratio[m, g] >> 16 >> shift

The dot products are exact. What is lost is half a step of a ratio, and less than one of a shift.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

RATIOS = 65535
"""What the largest scale of a token becomes."""

SMALLEST = np.float32(1e-30)
"""The least largest scale, so that nothing is divided by zero."""


def sum_shift(columns: int) -> int:
    """Bits that products lose so that their sum over `columns` padded channels fits a word.

    A code with its zero and an activation are 127 at most, a scale is 255.
    """
    return max(0, (columns * 127 * 127 * 255 + columns).bit_length() - 31)


def token_unit(columns: int, scale_unit: int) -> np.float32:
    """What a sum's unit is for a token whose largest scale is 1, but for the row's scale."""
    return np.float32(2.0 ** (16 + sum_shift(columns)) / (RATIOS * scale_unit))


def token_ratios(scales: NDArray[np.float32]) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """(ratios [M, G], largest scales [M]) of the scales [M, G] of activations."""
    largest = np.maximum(scales.max(1), SMALLEST)
    factor = np.float32(2 * RATIOS) / largest
    halves = (scales * factor[:, None]).astype(np.int32)
    return (halves + 1) >> 1, largest


def fixed_point_sums(
    dots: NDArray[np.int64], scale: NDArray[np.uint8], ratios: NDArray[np.int32], columns: int
) -> NDArray[np.int32]:
    """The sums [M, N].

    Args:
        dots: exact products [M, N, G] of codes less zeros with the codes of activations.
        scale: of rows and groups, [N, G].
        ratios: [M, G].
        columns: padded channels.
    """
    scaled = (dots * scale[None]) * ratios[:, None] >> 16
    half = scale.shape[1] // 2  # cutting off loses half a unit on average
    return (half + (scaled >> sum_shift(columns)).sum(-1)).astype(np.int32)


def to_floats(
    sums: NDArray[np.int32],
    largest: NDArray[np.float32],
    row_scale: NDArray[np.float32],
    columns: int,
    scale_unit: int,
) -> NDArray[np.float32]:
    """The rows' results [M, N]: sums times units times the scales of rows.

    All three have 31 bits or 24; of the products the upper word is kept, which is rounded once.
    """
    unit = (largest * token_unit(columns, scale_unit))[:, None]
    (x, ex), (y, ey) = map(_parts, (unit, row_scale[None]))
    size, es = _parts(np.abs(sums.astype(np.float64)))
    product = ((size * x >> 32) * 2) * y >> 32
    exact = np.ldexp(product.astype(np.float64), es + ex + ey + 63)
    sign = np.sign(sums) * np.sign(unit) * np.sign(row_scale[None])
    return (sign * exact).astype(np.float32)


def _parts(values: NDArray) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """(words below 2^31 that fill it, exponents) of the magnitudes of numbers of 31 bits."""
    fraction, exponent = np.frexp(np.abs(values).astype(np.float64))
    return (fraction * 2.0**31).astype(np.int64), exponent - 31


def error_bound(
    dots: NDArray[np.int64],
    scale: NDArray[np.uint8],
    largest: NDArray[np.float32],
    row_scale: NDArray[np.float32],
    columns: int,
    scale_unit: int,
) -> NDArray[np.float64]:
    """How far results [M, N] may be from exact ones, before they are rounded to floats."""
    ratio = (0.5 + 2.0**-7) / RATIOS * np.abs(dots * scale[None]).sum(-1)
    shifts = scale.shape[1] * 2.0 ** (16 + sum_shift(columns)) / RATIOS
    steps = (ratio + shifts) * largest[:, None].astype(np.float64)
    return steps * np.abs(row_scale)[None] / scale_unit
