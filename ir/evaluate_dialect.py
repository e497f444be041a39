"""Running dialect ops on numpy arrays: one function each, over `ir/reference_ops.py`.

A matrix is used as its format stores it: quantized and dequantized by `ir/reference.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from . import reference
from . import reference_ops as ref
from .activation_formats import ActivationFormat
from .formats import WeightFormat
from .pruning import kept_rows
from .reference_activation import dequantize_activation, quantize_activation
from .weights import NamedWeights

Attrs = dict[str, Any]


@dataclass
class State:
    """What ops read besides their operands.

    Attributes:
        weights: by name.
        cache: keys and values (1, tokens, heads, head_dim) of each layer; grows.
    """

    weights: NamedWeights
    cache: dict[int, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)

    def weight(self, name: str) -> Any:
        """A weight, None for no name."""
        return self.weights.get(name) if name else None

    def matrix(self, attrs: Attrs, name: str) -> np.ndarray:
        """A linear's matrix [N, K] with the values that its format can hold."""
        weight = self.weights.get(name)
        weight = weight.T if attrs["transposed"] else weight
        if not attrs["order"]:
            return formatted(weight, attrs["format"])
        order = self.weights.get(attrs["order"])
        natural = np.empty_like(weight)
        natural[:, order] = formatted(weight[:, order], attrs["format"])
        return natural


def formatted(matrix: np.ndarray, spec: str) -> np.ndarray:
    """Float32 [N, K] after a round trip through a weight format."""
    fmt = WeightFormat.parse(spec)
    if fmt.quantized:
        return reference.dequantize(reference.quantize(matrix, fmt), fmt, matrix.shape[1])
    return matrix.astype(np.float16).astype(np.float32) if fmt.kind == "f16" else matrix


def _weight(state: State, attrs: Attrs) -> Any:
    return state.weight(attrs["name"])


def _embedding(state: State, attrs: Attrs, ids: Any) -> Any:
    return ref.embedding(ids, formatted(state.weight(attrs["weight"]), attrs["format"]))


def _linear(state: State, attrs: Attrs, x: Any) -> Any:
    matrix = state.matrix(attrs, attrs["weight"])
    return ref.linear(x, matrix, state.weight(attrs["bias"]))


def _fused_linear(state: State, attrs: Attrs, x: Any, residual: Any = None) -> Any:
    biases = attrs["biases"] or [""] * len(attrs["weights"])
    parts = []
    for name, bias in zip(attrs["weights"], biases, strict=True):
        parts.append(ref.linear(x, state.matrix(attrs, name), state.weight(bias)))
    y = (
        ref.gated(parts[0], parts[1], attrs["gate"])
        if attrs["gate"]
        else np.concatenate(parts, axis=-1)
    )
    return y if residual is None else y + residual


def _quantized_linear(
    state: State, attrs: Attrs, codes: Any, scales: Any, sums: Any, residual: Any = None
) -> Any:
    x = dequantize_activation(codes[0], scales[0])[None, :, : attrs["in_features"]]
    if attrs["order"]:
        x = x[:, :, np.argsort(state.weight(attrs["order"]))]
    return _fused_linear(state, attrs, x, residual)


def _quantize_activation(state: State, attrs: Attrs, x: Any) -> Any:
    x = x[..., state.weight(attrs["order"])] if attrs["order"] else x
    fmt = ActivationFormat.parse(attrs["activations"])
    rounded = quantize_activation(x[0], attrs["group_size"], fmt, state.weight(attrs["factors"]))
    return tuple(part[None] for part in rounded)


def _rms_norm(state: State, attrs: Attrs, x: Any) -> Any:
    return ref.rms_norm(x, state.weight(attrs["weight"]), attrs["eps"], attrs["offset"])


def _rms_norm_quantize(state: State, attrs: Attrs, x: Any) -> Any:
    return _quantize_activation(state, attrs, _rms_norm(state, attrs, x))


def _layer_norm(state: State, attrs: Attrs, x: Any) -> Any:
    weight, bias = state.weight(attrs["weight"]), state.weight(attrs["bias"])
    return ref.layer_norm(x, weight, bias, attrs["eps"], attrs["offset"])


def _layer_norm_quantize(state: State, attrs: Attrs, x: Any) -> Any:
    return _quantize_activation(state, attrs, _layer_norm(state, attrs, x))


def _rope(state: State, attrs: Attrs, x: Any, positions: Any) -> Any:
    frequencies = state.weight(attrs["inv_freq"])
    return ref.rope(x, positions, frequencies, attrs["scaling"], attrs["interleaved"])


def _attention(state: State, attrs: Attrs, q: Any, k: Any, v: Any) -> Any:
    rest = {key: attrs[key] for key in ("scale", "window", "softcap")}
    q = q[:, -1:] if attrs.get("last") else q
    rest |= {"cache_bits": attrs.get("cache_bits", 0), "alibi": state.weight(attrs["alibi"])}
    out = ref.attention(q, k, v, **rest)
    measure = attrs.get("importance", "")
    return (out, ref.importance(q, k, **rest, measure=measure)) if measure else out


def _cached_attention(state: State, attrs: Attrs, q: Any, k: Any, v: Any) -> Any:
    if attrs["layer"] in state.cache:
        old = state.cache[attrs["layer"]]
        k, v = (np.concatenate(pair, axis=1) for pair in zip(old, (k, v), strict=True))
    state.cache[attrs["layer"]] = k, v
    return _attention(state, attrs, q, k, v)


def _stacked(attention: Callable[..., Any]) -> Callable[..., Any]:
    def run(state: State, attrs: Attrs, qkv: Any, positions: Any) -> Any:
        heads, kv_heads, size = (attrs[key] for key in ("heads", "kv_heads", "head_dim"))
        split = qkv.reshape(*qkv.shape[:2], heads + 2 * kv_heads, size)
        q, k, v = np.split(split, [heads, heads + kv_heads], axis=2)
        q, k = (_rope(state, attrs, x, positions) for x in (q, k))
        out = attention(state, attrs, q, k, v)
        if isinstance(out, tuple):
            return out[0].reshape(*qkv.shape[:2], heads * size), out[1]
        return out.reshape(*out.shape[:2], heads * size)

    return run


def _gated(state: State, attrs: Attrs, gate: Any, up: Any) -> Any:
    return ref.gated(gate, up, attrs["activation"])


def _prune_tokens(state: State, attrs: Attrs, x: Any, positions: Any, importance: Any) -> Any:
    rows = kept_rows(importance[0], positions[0], attrs["dropped"])
    return x[:, rows], positions[:, rows]


def _last_token(state: State, attrs: Attrs, x: Any) -> Any:
    return x[:, -1:]


DIALECT: dict[str, Callable[..., Any]] = {
    "weight": _weight,
    "embedding": _embedding,
    "linear": _linear,
    "rms_norm": _rms_norm,
    "layer_norm": _layer_norm,
    "rope": _rope,
    "attention": _attention,
    "gated": _gated,
    "fused_linear": _fused_linear,
    "stacked_attention": _stacked(_attention),
    "quantize_activation": _quantize_activation,
    "rms_norm_quantize": _rms_norm_quantize,
    "layer_norm_quantize": _layer_norm_quantize,
    "quantized_linear": _quantized_linear,
    "cached_attention": _cached_attention,
    "cached_stacked_attention": _stacked(_cached_attention),
    "prune_tokens": _prune_tokens,
    "last_token": _last_token,
}
