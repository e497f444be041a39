"""What dialect ops compute when nothing is rounded: the yardstick for what rounding loses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from morendo.ir.evaluate_dialect import DIALECT, State
from morendo.ir.reference_activation import dequantize_activation

Attrs = dict[str, Any]
Rule = Callable[..., Any]
Rules = Mapping[str, Rule]


def _unrounded(name: str) -> Rule:
    """The op where neither weights nor keys and values are rounded."""
    rule = DIALECT[name]

    def run(state: State, attrs: Attrs, *operands: Any) -> Any:
        exact = {"format": "f32", "cache_bits": 32}
        return rule(state, {k: exact.get(k, v) for k, v in attrs.items()}, *operands)

    return run


def _norm(name: str) -> Rule:
    """A norm that quantizes, without quantizing: the value and nothing for scales and sums."""

    def run(state: State, attrs: Attrs, x: Any) -> Any:
        return _in_order(state, attrs, DIALECT[name](state, attrs, x)), None, None

    return run


def _in_order(state: State, attrs: Attrs, x: Any) -> Any:
    return x[..., state.weight(attrs["order"])] if attrs["order"] else x


def _activation(state: State, attrs: Attrs, x: Any) -> Any:
    return _in_order(state, attrs, x), None, None


def _linear(
    state: State, attrs: Attrs, codes: Any, scales: Any, sums: Any, residual: Any = None
) -> Any:
    """Takes quantized activations, and those that were left as they are."""
    if scales is not None:
        return _unrounded("quantized_linear")(state, attrs, codes, scales, sums, residual)
    x = codes
    if attrs["order"]:
        x = x[..., np.argsort(state.weight(attrs["order"]))]
    return DIALECT["fused_linear"](state, {**attrs, "format": "f32", "order": ""}, x, residual)


_ROUNDED = (
    "embedding", "linear", "fused_linear", "cached_attention", "cached_stacked_attention"
)  # fmt: skip
FLOAT_RULES: Rules = {
    **{name: _unrounded(name) for name in _ROUNDED},
    "quantized_linear": _linear,
    "quantize_activation": _activation,
    "rms_norm_quantize": _norm("rms_norm"),
    "layer_norm_quantize": _norm("layer_norm"),
}
"""They take the place of `DIALECT`'s."""


def as_array(value: Any) -> np.ndarray | None:
    """A value of an op as float numbers to compare; None for what has none, such as a shape.

    Quantized activations are what they stand for, without the padding of the last group.
    """
    if isinstance(value, tuple) and len(value) == 3:
        codes, scales, _ = value
        return codes if scales is None else dequantize_activation(codes[0], scales[0])[None]
    if isinstance(value, tuple):  # an attention and what it found important, tokens and positions
        value = value[0]
    return value if isinstance(value, np.ndarray) and value.dtype.kind == "f" else None
