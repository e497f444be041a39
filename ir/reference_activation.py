"""What quantized activations are: int8 codes with one scale and one sum per token and group.

Every step is one float32 operation, so kernels reproduce the codes bit by bit.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .formats import ceil_div

CODE_LIMIT = 127
"""Codes are -127..127; -128 is not used, so that negation is exact."""

SMALLEST_MAXIMUM = 2.0**-100
"""A group whose largest magnitude is below gets codes 0: the reciprocal would overflow."""


def quantize_activation(
    x: NDArray[np.float32], group_size: int
) -> tuple[NDArray[np.int8], NDArray[np.float32], NDArray[np.int32]]:
    """Quantize float32 [M, K] per token and group of `group_size` channels.

    For a group with the largest magnitude a: scale = a / 127; code = x * (127 / a) rounded half to
    even; the padding from K to Kp = G * group_size has codes 0.

    Returns:
        codes int8 [M, Kp], scales float32 [M, G], sums int32 [M, G] of a group's codes.
    """
    tokens, features = x.shape
    groups = ceil_div(features, group_size)
    padded = np.zeros((tokens, groups * group_size), np.float32)
    padded[:, :features] = x
    grouped = padded.reshape(tokens, groups, group_size)
    largest = np.abs(grouped).max(axis=-1)
    limit = np.float32(CODE_LIMIT)
    usable = largest >= np.float32(SMALLEST_MAXIMUM)
    inverse = np.divide(limit, largest, out=np.zeros_like(largest), where=usable)
    codes = np.rint(grouped * inverse[:, :, None]).astype(np.int8)
    sums = codes.sum(axis=-1, dtype=np.int32)
    return codes.reshape(tokens, -1), largest / limit, sums


def dequantize_activation(
    codes: NDArray[np.int8], scales: NDArray[np.float32]
) -> NDArray[np.float32]:
    """The float32 [M, Kp] that codes and scales stand for."""
    tokens, groups = scales.shape
    grouped = codes.reshape(tokens, groups, -1).astype(np.float32)
    return (grouped * scales[:, :, None]).reshape(tokens, -1)
