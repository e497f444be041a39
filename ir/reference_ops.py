"""What the ops of the dialect mean: one numpy function each, in float32.

Slow and clear; kernels and passes are tested against it. Shapes: n tokens, H heads of D channels,
a leading batch of 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from .reference_attention import integer_output, integer_scores, scores_to_weights

Array = NDArray[np.float32]

_erf = np.vectorize(math.erf, otypes=[np.float64])


def erf(x: Array) -> Array:
    """The error function."""
    return _erf(x).astype(np.float32)


def silu(x: Array) -> Array:
    """x * sigmoid(x)."""
    return (x / (1.0 + np.exp(-x.astype(np.float64)))).astype(np.float32)


def gelu(x: Array) -> Array:
    """x times the normal distribution function."""
    return (0.5 * x * (1.0 + _erf(x / math.sqrt(2.0)))).astype(np.float32)


def gelu_tanh(x: Array) -> Array:
    """gelu with tanh in place of the error function."""
    wide = x.astype(np.float64)
    angle = math.sqrt(2.0 / math.pi) * (wide + 0.044715 * wide**3)
    return (0.5 * wide * (1.0 + np.tanh(angle))).astype(np.float32)


def relu(x: Array) -> Array:
    """max(x, 0)."""
    return np.maximum(x, np.float32(0))


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": silu,
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "relu": relu,
}


def embedding(ids: NDArray[np.integer], weight: Array) -> Array:
    """Rows of weight [V, C] for ids (1, n): (1, n, C)."""
    return weight[ids]


def linear(x: Array, weight: Array, bias: Array | None, transposed: bool = False) -> Array:
    """x (1, n, K) times weight [N, K] (or [K, N]) plus bias [N]: (1, n, N)."""
    y = x @ (weight if transposed else weight.T)
    return y if bias is None else y + bias


def rms_norm(x: Array, weight: Array | None, eps: float, offset: float = 0.0) -> Array:
    """x / sqrt(mean(x^2) + eps) * (weight + offset) over the last axis; no weight is zeros."""
    gain = np.float32(offset) if weight is None else weight + np.float32(offset)
    mean = np.mean(np.square(x), axis=-1, keepdims=True, dtype=np.float32)
    return (x / np.sqrt(mean + np.float32(eps)) * gain).astype(np.float32)


def layer_norm(
    x: Array, weight: Array | None, bias: Array | None, eps: float, offset: float = 0.0
) -> Array:
    """(x - mean) / sqrt(variance + eps) * (weight + offset) + bias over the last axis."""
    gain = np.float32(offset) if weight is None else weight + np.float32(offset)
    centered = x - np.mean(x, axis=-1, keepdims=True, dtype=np.float32)
    variance = np.mean(np.square(centered), axis=-1, keepdims=True, dtype=np.float32)
    y = (centered / np.sqrt(variance + np.float32(eps)) * gain).astype(np.float32)
    return y if bias is None else y + bias


def rope(
    x: Array,
    positions: NDArray[np.integer],
    inv_freq: Array,
    scaling: float = 1.0,
    interleaved: bool = False,
) -> Array:
    """Rotate the first R = 2 * len(inv_freq) channels of x (1, n, H, D) by their positions (1, n).

    Channel i turns with channel i + R/2, or 2i with 2i + 1 when interleaved.
    """
    half = inv_freq.shape[0]
    angle = positions[..., None, None].astype(np.float32) * inv_freq  # (1, n, 1, R/2)
    cos, sin = np.cos(angle) * np.float32(scaling), np.sin(angle) * np.float32(scaling)
    y = x.copy()
    if interleaved:
        first, second = slice(0, 2 * half, 2), slice(1, 2 * half, 2)
    else:
        first, second = slice(0, half), slice(half, 2 * half)
    y[..., first] = x[..., first] * cos - x[..., second] * sin
    y[..., second] = x[..., second] * cos + x[..., first] * sin
    return y


def attention(
    q: Array,
    k: Array,
    v: Array,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
    alibi: Array | None = None,
    cache_bits: int = 0,
) -> Array:
    """Causal attention of q (1, n, H, D) to k, v (1, m, Hkv, D) with m >= n: (1, n, H, D).

    Query i has position i + m - n; it sees keys j with position - window < j <= position (window
    0: all j <= position). Head h reads key head h * Hkv // H. Scores are capped to
    softcap * tanh(score / softcap), alibi adds slope * j. With `cache_bits` 8 or 4 both products
    are of integers (`reference_attention.py`).
    """
    weights = _attention_weights(q, k, scale, window, softcap, alibi, cache_bits)
    totals = weights.sum(axis=-1, keepdims=True)
    v = np.repeat(v, q.shape[2] // v.shape[2], axis=2)
    if cache_bits in (8, 4):
        return integer_output(weights, v, cache_bits) / totals.transpose(0, 2, 1, 3)
    return np.einsum("bhij,bjhd->bihd", weights / totals, v, dtype=np.float32)


def importance(
    q: Array,
    k: Array,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
    alibi: Array | None = None,
    cache_bits: int = 0,
    measure: str = "first",
) -> Array:
    """How important each token of a call is to every head: (1, n, H). Arguments of `attention`.

    Args:
        measure: "first", what share of its attention a query pays to key 0, or "received", what
            share of theirs the queries pay to a token, on average over those from its own on.
    """
    weights = _attention_weights(q, k, scale, window, softcap, alibi, cache_bits)
    if measure == "first":
        return (weights[..., 0] / weights.sum(axis=-1)).transpose(0, 2, 1)
    count = q.shape[1]
    shares = (weights / weights.sum(axis=-1, keepdims=True))[..., -count:].sum(axis=-2)
    return (shares / np.arange(count, 0, -1, dtype=np.float32)).transpose(0, 2, 1)


def _attention_weights(
    q: Array,
    k: Array,
    scale: float,
    window: int,
    softcap: float,
    alibi: Array | None,
    cache_bits: int,
) -> Array:
    """Softmax weights (1, H, n, m) before they are divided by their sums."""
    k = np.repeat(k, q.shape[2] // k.shape[2], axis=2)
    if cache_bits in (8, 4):
        scores = integer_scores(q, k, scale, cache_bits)
    else:
        scores = np.einsum("bihd,bjhd->bhij", q, k, dtype=np.float32) * np.float32(scale)
    if softcap:
        scores = np.float32(softcap) * np.tanh(scores / np.float32(softcap))
    key = np.arange(k.shape[1])
    query = key[-q.shape[1] :, None]
    if alibi is not None:
        scores = scores + alibi[:, None, None] * key.astype(np.float32)
    visible = (key <= query) & ((key > query - window) if window else True)
    return scores_to_weights(scores, visible)


def gated(gate: Array, up: Array, activation: str) -> Array:
    """activation(gate) * up."""
    return ACTIVATIONS[activation](gate) * up
