"""The generic Relax ops that a model may have besides the dialect: what each computes, in numpy,
and along which axes.

An op that is not here is refused (`passes/normalize.py`): everything that compiles can be evaluated
and calibrated.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm import relax

from . import reference_ops as ref

Axes = Callable[[relax.Call], tuple[int, ...]]


def _elementwise(call: relax.Call) -> tuple[int, ...]:
    return ()


@dataclass(frozen=True)
class GenericOp:
    """One op.

    Attributes:
        compute: of the call and the values of its operands.
        axes: of the first operand, along which an element of the result depends on more than the
            element at its own place; negative ones count from the end.
        fills: makes its result from a shape alone, the same everywhere.
    """

    compute: Callable[..., Any]
    axes: Axes = _elementwise
    fills: bool = False


def _plain(function: Callable[..., Any], axes: Axes = _elementwise) -> GenericOp:
    return GenericOp(lambda call, *args: function(*args), axes)


def _axes(attr: Any) -> tuple[int, ...] | None:
    return None if attr is None else tuple(int(a) for a in attr)


def _reduced(call: relax.Call) -> tuple[int, ...]:
    axes = _axes(call.attrs.axis)
    return tuple(range(len(call.args[0].ty.shape))) if axes is None else axes


def _one(call: relax.Call) -> tuple[int, ...]:
    return (int(call.attrs.axis),)


def _sliced(call: relax.Call) -> tuple[int, ...]:
    return tuple(int(a) for a in call.args[1].fields)


def _normed(call: relax.Call) -> tuple[int, ...]:
    return tuple(int(a) for a in call.attrs.axes)


def _reduction(function: Callable[..., Any]) -> GenericOp:
    def compute(call: relax.Call, x: Any) -> Any:
        return function(x, axis=_axes(call.attrs.axis), keepdims=bool(call.attrs.keepdims))

    return GenericOp(compute, _reduced)


def _strided_slice(call: relax.Call, x: Any, axes: Any, begin: Any, end: Any, *step: Any) -> Any:
    picks = [slice(None)] * x.ndim
    for i, axis in enumerate(axes):
        picks[axis] = slice(begin[i], end[i], step[0][i] if step else None)
    return x[tuple(picks)]


def _split(call: relax.Call, x: Any) -> Any:
    how = call.attrs.indices_or_sections
    sections = int(how) if isinstance(how, tvm.tirx.IntImm) else [int(i) for i in how]
    return tuple(np.split(x, sections, axis=int(call.attrs.axis)))


def _layer_norm(call: relax.Call, x: Any, weight: Any, bias: Any) -> Any:
    return ref.layer_norm(x, weight, bias, float(call.attrs.epsilon))


def _softmax(call: relax.Call, x: Any) -> Any:
    axis = int(call.attrs.axis)
    exp = np.exp(x - x.max(axis=axis, keepdims=True))
    return exp / exp.sum(axis=axis, keepdims=True)


def _softplus(call: relax.Call, x: Any) -> Any:
    beta, threshold = float(call.attrs.beta), float(call.attrs.threshold)
    soft = np.log1p(np.exp(np.minimum(beta * x, threshold))) / beta
    return np.where(beta * x > threshold, x, soft).astype(x.dtype)


def _leakyrelu(call: relax.Call, x: Any) -> Any:
    return np.where(x > 0, x, np.float32(call.attrs.alpha) * x)


def _full(call: relax.Call, shape: Any, value: Any) -> Any:
    return np.full(shape, value, str(call.attrs.dtype))


GENERIC: dict[str, GenericOp] = {
    "abs": _plain(np.abs),
    "add": _plain(np.add),
    "astype": GenericOp(lambda call, x: x.astype(str(call.attrs.dtype))),
    "broadcast_to": _plain(np.broadcast_to),
    "ceil": _plain(np.ceil),
    "clip": _plain(lambda x, low, high: np.clip(x, low, high).astype(x.dtype)),
    "concat": GenericOp(lambda call, parts: np.concatenate(parts, int(call.attrs.axis)), _one),
    "cos": _plain(np.cos),
    "divide": _plain(np.divide),
    "equal": _plain(np.equal),
    "erf": _plain(ref.erf),
    "exp": _plain(np.exp),
    "expand_dims": GenericOp(lambda call, x: np.expand_dims(x, _axes(call.attrs.axis) or ())),
    "floor": _plain(np.floor),
    "full": GenericOp(_full, fills=True),
    "gather_elements": GenericOp(
        lambda call, x, i: np.take_along_axis(x, i, int(call.attrs.axis)), _one
    ),
    "greater": _plain(np.greater),
    "greater_equal": _plain(np.greater_equal),
    "less": _plain(np.less),
    "less_equal": _plain(np.less_equal),
    "log": _plain(np.log),
    "logical_not": _plain(np.logical_not),
    "matmul": _plain(np.matmul),
    "max": _reduction(np.max),
    "maximum": _plain(np.maximum),
    "mean": _reduction(np.mean),
    "min": _reduction(np.min),
    "minimum": _plain(np.minimum),
    "multiply": _plain(np.multiply),
    "negative": _plain(np.negative),
    "nn.gelu": _plain(ref.gelu),
    "nn.gelu_tanh": _plain(ref.gelu_tanh),
    "nn.layer_norm": GenericOp(_layer_norm, _normed),
    "nn.leakyrelu": GenericOp(_leakyrelu),
    "nn.relu": _plain(ref.relu),
    "nn.silu": _plain(ref.silu),
    "nn.softmax": GenericOp(_softmax, _one),
    "nn.softplus": GenericOp(_softplus),
    "not_equal": _plain(np.not_equal),
    "permute_dims": GenericOp(lambda call, x: np.transpose(x, _axes(call.attrs.axes))),
    "power": _plain(np.power),
    "repeat": GenericOp(
        lambda call, x: np.repeat(x, int(call.attrs.repeats), int(call.attrs.axis)), _one
    ),
    "reshape": _plain(np.reshape),
    "rsqrt": _plain(lambda x: 1 / np.sqrt(x)),
    "sigmoid": _plain(lambda x: 1 / (1 + np.exp(-x))),
    "sign": _plain(np.sign),
    "sin": _plain(np.sin),
    "split": GenericOp(_split, _one),
    "sqrt": _plain(np.sqrt),
    "square": _plain(np.square),
    "squeeze": GenericOp(lambda call, x: np.squeeze(x, _axes(call.attrs.axis))),
    "stack": GenericOp(lambda call, parts: np.stack(parts, int(call.attrs.axis))),
    "strided_slice": GenericOp(_strided_slice, _sliced),
    "subtract": _plain(np.subtract),
    "sum": _reduction(np.sum),
    "take": GenericOp(lambda call, x, i: np.take(x, i, int(call.attrs.axis)), _one),
    "tanh": _plain(np.tanh),
    "tile": GenericOp(lambda call, x: np.tile(x, _axes(call.attrs.repeats) or ())),
    "variance": _reduction(np.var),
    "where": _plain(np.where),
    "zeros": GenericOp(lambda call, shape: np.zeros(shape, str(call.attrs.dtype)), fills=True),
}
"""By name, without the prefix "relax."."""
