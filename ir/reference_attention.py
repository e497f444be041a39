"""Attention over keys and values of 8 bits: the semantics that every target's kernels follow.

Each key and each value of a head has int8 codes and one scale, as `reference_activation` makes
them of activations. Queries are rounded the same way, so that a score is an integer dot product
times three factors. Softmax weights become codes too, chunk by chunk of `CHUNK` keys, after each
was multiplied by the scale of its value: the weighted sum of a chunk's values is an integer as
well. Integer attention as in Agile-Quant (arXiv 2312.05693), over blocks instead of whole rows.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .reference_activation import CODE_LIMIT, SMALLEST_MAXIMUM, quantize_activation

Array = NDArray[np.float32]

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


def integer_scores(q: Array, k: Array, scale: float) -> Array:
    """Scores float32 [1, H, n, m] of queries (1, n, H, D) and keys (1, m, H, D), both rounded."""
    (q_codes, q_scales), (k_codes, k_scales) = quantized_heads(q), quantized_heads(k)
    products = np.einsum("bihd,bjhd->bhij", q_codes, k_codes, dtype=np.int32).astype(np.float32)
    q_factor = (q_scales * np.float32(scale)).transpose(0, 2, 1)[..., None]
    return products * q_factor * k_scales.transpose(0, 2, 1)[:, :, None]


def integer_output(weights: Array, v: Array) -> Array:
    """The weighted sums (1, n, H, D) of values (1, m, H, D), not yet divided by the sum of weights.

    Args:
        weights: float32 [1, H, n, m], of keys at positions 0 .. m-1.
    """
    codes, scales = quantized_heads(v)
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
    return total.transpose(0, 2, 1, 3)
