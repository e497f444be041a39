"""What quantized activations are: int8 codes with one scale and one sum per token and group.

Every step is one float32 operation, so kernels reproduce the codes bit by bit.
`ir/activation_formats.py` has the formats.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .activation_formats import DEFAULT_ACTIVATIONS, ActivationFormat
from .formats import ceil_div

CODE_LIMIT = 127
"""Codes are -127..127; -128 is not used, so that negation is exact."""

SMALLEST_MAXIMUM = 2.0**-100
"""A group whose largest magnitude is below gets codes 0: the reciprocal would overflow. With 4 bits
that is the distance between its smallest and its largest value."""

STEPS = 15
"""Between the 16 codes of 4 bits."""


def quantize_activation(
    x: NDArray[np.float32],
    group_size: int,
    fmt: ActivationFormat = DEFAULT_ACTIVATIONS,
    factors: NDArray[np.float32] | None = None,
) -> tuple[NDArray[np.int8], NDArray[np.float32], NDArray[np.int32]]:
    """Quantize float32 [M, K] per token and group of `group_size` channels.

    For a group with the largest magnitude a: scale = a / 127; code = x * (127 / a) rounded half to
    even; the padding from K to Kp = G * group_size has codes 0.

    With 4 bits, for a group from low <= 0 to high >= 0: scale = (high - low) / 15; code =
    x * (15 / (high - low)) rounded half to even, within first .. first + 15, where first is low's.

    Args:
        x: float32 [M, K].
        group_size: channels that share a scale.
        fmt: the rounding.
        factors: float32 [K] of a factored format: channel k is x / factors[k] before it is
            rounded, and its codes are multiplied by factors[k].

    Returns:
        codes int8 [M, Kp], scales float32 [M, G], sums int32 [M, G] of a group's codes.
    """
    tokens, features = x.shape
    groups = ceil_div(features, group_size)
    padded = np.zeros((tokens, groups * group_size), np.float32)
    padded[:, :features] = x
    scaling = np.ones(groups * group_size, np.float32)
    if factors is not None:
        scaling[:features] = factors
    grouped = (padded / scaling).reshape(tokens, groups, group_size)
    if fmt.bits == 4:
        codes, scales = _sixteen_steps(grouped)
        codes = codes * scaling.reshape(groups, group_size).astype(np.int8)
    else:
        codes, scales = _by_largest(grouped)
    sums = codes.sum(axis=-1, dtype=np.int32)
    return codes.reshape(tokens, -1), scales, sums


def _by_largest(grouped: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Codes of groups [M, G, g], -127..127, and their scales [M, G]."""
    largest = np.abs(grouped).max(axis=-1)
    limit = np.float32(CODE_LIMIT)
    usable = largest >= np.float32(SMALLEST_MAXIMUM)
    inverse = np.divide(limit, largest, out=np.zeros_like(largest), where=usable)
    return np.rint(grouped * inverse[:, :, None]).astype(np.int8), largest / limit


def _sixteen_steps(grouped: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Codes of groups [M, G, g], 16 of -15..15 in each group, and their scales [M, G]."""
    zero, steps = np.float32(0), np.float32(STEPS)
    low = np.minimum(grouped.min(axis=-1, keepdims=True), zero)
    spread = np.maximum(grouped.max(axis=-1, keepdims=True), zero) - low
    usable = spread >= np.float32(SMALLEST_MAXIMUM)
    inverse = np.divide(steps, spread, out=np.zeros_like(spread), where=usable)
    first = np.rint(low * inverse)
    codes = np.clip(np.rint(grouped * inverse), first, first + steps)
    return codes.astype(np.int8), (spread / steps)[:, :, 0]


def dequantize_activation(
    codes: NDArray[np.int8], scales: NDArray[np.float32]
) -> NDArray[np.float32]:
    """The float32 [M, Kp] that codes and scales stand for."""
    tokens, groups = scales.shape
    grouped = codes.reshape(tokens, groups, -1).astype(np.float32)
    return (grouped * scales[:, :, None]).reshape(tokens, -1)
