"""Attention over keys and values of 8 or 4 bits: the semantics that every target's kernels follow.

Each key and each value of a head has int8 codes and one scale, as `reference_activation` makes
them of activations. Queries are rounded the same way, so that a score is an integer dot product
times three factors. Softmax weights become codes too, chunk by chunk of `CHUNK` keys, after each
was multiplied by the scale of its value: the weighted sum of a chunk's values is an integer as
well. Integer attention as in Agile-Quant (arXiv 2312.05693), over blocks instead of whole rows.

With 4 bits a key or value is middle + scale * code, codes -8..7 the 16 steps from its smallest to
its largest element. What the middles add to a score is the sum of the query's codes times one
number, and what they add to the output one number for all elements. Few channels of keys are
large: queries and keys are turned by a Hadamard matrix first, which leaves their products as they
are and spreads what is large over all (as in QuaRot, arXiv 2404.00456).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .reference_activation import CODE_LIMIT, SMALLEST_MAXIMUM, STEPS, quantize_activation

Array = NDArray[np.float32]

MIDDLE = 8
"""What is taken off the steps of 4 bits, so that codes are small and their sums' errors too."""

CHUNK = 64
"""Keys whose weights share a scale: those of positions 64*i .. 64*i + 63."""


def scores_to_weights(scores: Array, visible: NDArray[np.bool_]) -> Array:
    """exp(score - the row's largest) float32 [..., m], 0 for keys that are not visible."""
    scores = np.where(visible, scores, -np.inf)
    return np.exp(scores - scores.max(axis=-1, keepdims=True))


def quantized_heads(x: Array) -> tuple[NDArray[np.int8], Array]:
    """(codes int8 [1, n, H, D], scales float32 [1, n, H]) of heads float32 [1, n, H, D]."""
    codes, scales, _ = quantize_activation(x.reshape(-1, x.shape[-1]), x.shape[-1])
    return codes.reshape(x.shape), scales.reshape(x.shape[:-1])


def centered_heads(x: Array) -> tuple[NDArray[np.int8], Array, Array]:
    """(codes int8 [1, n, H, D] of -8..7, scales and middles float32 [1, n, H]) of heads float32."""
    low = x.min(axis=-1, keepdims=True)
    spread, steps = x.max(axis=-1, keepdims=True) - low, np.float32(STEPS)
    usable = spread >= np.float32(SMALLEST_MAXIMUM)
    inverse = np.divide(steps, spread, out=np.zeros_like(spread), where=usable)
    codes = np.minimum(np.rint((x - low) * inverse), steps).astype(np.int8) - np.int8(MIDDLE)
    scales = spread / steps
    return codes, scales[..., 0], (low + np.float32(MIDDLE) * scales)[..., 0]


def is_rotated(head_dim: int, bits: int) -> bool:
    """Whether queries and keys are turned before they are rounded: for 4 bits, powers of two."""
    return bits == 4 and head_dim & (head_dim - 1) == 0


def hadamard(x: Array) -> Array:
    """x [..., D] times the Hadamard matrix of 1 and -1, D a power of two: products grow D times.

    In log2(D) steps of sums and differences, neighbours first: kernels get the same numbers.
    """
    half = 1
    while half < x.shape[-1]:
        pairs = x.reshape(*x.shape[:-1], -1, 2, half)
        first, second = pairs[..., 0, :], pairs[..., 1, :]
        x = np.stack([first + second, first - second], axis=-2).reshape(x.shape)
        half *= 2
    return x


def stored_keys(k: Array, bits: int) -> tuple[NDArray[np.int8], Array, Array]:
    """`stored_heads` of keys, turned where they are."""
    return stored_heads(hadamard(k) if is_rotated(k.shape[-1], bits) else k, bits)


def stored_heads(x: Array, bits: int) -> tuple[NDArray[np.int8], Array, Array]:
    """Codes int8 [1, n, H, D], scales and middles float32 [1, n, H] of keys or values."""
    if bits == 4:
        return centered_heads(x)
    codes, scales = quantized_heads(x)
    return codes, scales, np.zeros_like(scales)


def integer_scores(q: Array, k: Array, scale: float, bits: int) -> Array:
    """Scores float32 [1, H, n, m] of queries (1, n, H, D) and keys (1, m, H, D), all rounded.

    Args:
        bits: of the keys, 8 or 4; queries have 8.
    """
    if is_rotated(q.shape[-1], bits):
        q, scale = hadamard(q), scale / q.shape[-1]
    (q_codes, q_scales), (k_codes, k_scales, middles) = quantized_heads(q), stored_keys(k, bits)
    products = np.einsum("bihd,bjhd->bhij", q_codes, k_codes, dtype=np.int32).astype(np.float32)
    q_factor = (q_scales * np.float32(scale)).transpose(0, 2, 1)[..., None]
    k_scales, middles = (each.transpose(0, 2, 1)[:, :, None] for each in (k_scales, middles))
    if bits == 8:
        return products * q_factor * k_scales
    sums = q_codes.sum(axis=-1, dtype=np.int32).astype(np.float32).transpose(0, 2, 1)[..., None]
    return (products * k_scales + sums * middles) * q_factor


def integer_output(weights: Array, v: Array, bits: int) -> Array:
    """The weighted sums (1, n, H, D) of values (1, m, H, D), not yet divided by the sum of weights.

    Args:
        weights: float32 [1, H, n, m], of keys at positions 0 .. m-1.
        bits: of the values, 8 or 4.
    """
    codes, scales, middles = stored_heads(v, bits)
    total = np.zeros((*weights.shape[:-1], v.shape[-1]), np.float32)  # (1, H, n, D)
    limit = np.float32(CODE_LIMIT)
    for start in range(0, v.shape[1], CHUNK):
        part = slice(start, start + CHUNK)
        scaled = weights[..., part] * scales.transpose(0, 2, 1)[:, :, None, part]
        largest = scaled.max(axis=-1, keepdims=True)
        usable = largest >= np.float32(SMALLEST_MAXIMUM)
        inverse = np.divide(limit, largest, out=np.zeros_like(largest), where=usable)
        rounded = np.rint(scaled * inverse).astype(np.int32)
        sums = np.einsum("bhij,bjhd->bhid", rounded, codes[:, part], dtype=np.int32)
        total += sums.astype(np.float32) * (largest / limit)
    if bits == 4:
        total += np.einsum("bhij,bjh->bhi", weights, middles)[..., None]
    return total.transpose(0, 2, 1, 3)
