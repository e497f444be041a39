"""The numpy meaning of generic Relax ops (`ir/generic_ops.py`) in torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import tvm
from torch.nn import functional
from tvm import relax

Rule = Callable[..., Any]

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": functional.silu,
    "relu": functional.relu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
}


def _tensor(value: Any) -> Any:
    """Constants among operands are numpy arrays."""
    return torch.from_numpy(np.array(value)) if isinstance(value, np.ndarray) else value


def _with_call(function: Rule) -> Rule:
    return lambda call, *args: function(call, *map(_tensor, args))


def _plain(function: Rule) -> Rule:
    return _with_call(lambda call, *args: function(*args))


def _ints(attr: Any) -> list[int]:
    return [int(a) for a in attr]


def _reduction(function: Rule, **options: Any) -> Rule:
    def rule(call: relax.Call, x: torch.Tensor) -> torch.Tensor:
        axis = call.attrs.axis
        axes = list(range(x.ndim)) if axis is None else _ints(axis)
        return function(x, dim=axes, keepdim=bool(call.attrs.keepdims), **options)

    return _with_call(rule)


def _dtype(call: relax.Call) -> torch.dtype:
    return getattr(torch, str(call.attrs.dtype))


def _expand_dims(call: relax.Call, x: torch.Tensor) -> torch.Tensor:
    axes = _ints(call.attrs.axis)
    rank = x.ndim + len(axes)
    for axis in sorted(a % rank for a in axes):
        x = x.unsqueeze(axis)
    return x


def _squeeze(call: relax.Call, x: torch.Tensor) -> torch.Tensor:
    return x.squeeze() if call.attrs.axis is None else x.squeeze(_ints(call.attrs.axis))


def _permute(call: relax.Call, x: torch.Tensor) -> torch.Tensor:
    axes = call.attrs.axes
    return x.permute(list(range(x.ndim))[::-1] if axes is None else _ints(axes))


def _layer_norm(call: relax.Call, x: Any, weight: Any, bias: Any) -> torch.Tensor:
    shape = x.shape[-len(call.attrs.axes) :]
    return functional.layer_norm(x, shape, weight, bias, float(call.attrs.epsilon))


def _split(call: relax.Call, x: torch.Tensor) -> Any:
    how = call.attrs.indices_or_sections
    sections = int(how) if isinstance(how, tvm.tirx.IntImm) else _ints(how)
    return torch.tensor_split(x, sections, int(call.attrs.axis))


def _strided_slice(
    call: relax.Call, x: torch.Tensor, axes: Any, begin: Any, end: Any, *step: Any
) -> torch.Tensor:
    picks = [slice(None)] * x.ndim
    for i, axis in enumerate(axes):
        picks[axis] = slice(begin[i], end[i], step[0][i] if step else None)
    return x[tuple(picks)]


def _take(call: relax.Call, x: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    axis = int(call.attrs.axis) % x.ndim
    return x[(slice(None),) * axis + (indices.long(),)]


def _softplus(call: relax.Call, x: torch.Tensor) -> torch.Tensor:
    return functional.softplus(x, float(call.attrs.beta), float(call.attrs.threshold))


TORCH_GENERIC: dict[str, Rule] = {
    "abs": _plain(torch.abs),
    "add": _plain(torch.add),
    "astype": _with_call(lambda call, x: x.to(_dtype(call))),
    "broadcast_to": _plain(torch.broadcast_to),
    "ceil": _plain(torch.ceil),
    "clip": _plain(torch.clamp),
    "concat": lambda call, parts: torch.cat([_tensor(p) for p in parts], int(call.attrs.axis)),
    "cos": _plain(torch.cos),
    "divide": _plain(torch.div),
    "equal": _plain(torch.eq),
    "erf": _plain(torch.erf),
    "exp": _plain(torch.exp),
    "expand_dims": _with_call(_expand_dims),
    "floor": _plain(torch.floor),
    "full": lambda call, shape, value: torch.full(shape, float(value)).to(_dtype(call)),
    "gather_elements": _with_call(lambda call, x, i: torch.gather(x, int(call.attrs.axis), i)),
    "greater": _plain(torch.gt),
    "greater_equal": _plain(torch.ge),
    "less": _plain(torch.lt),
    "less_equal": _plain(torch.le),
    "log": _plain(torch.log),
    "logical_not": _plain(torch.logical_not),
    "matmul": _plain(torch.matmul),
    "max": _reduction(torch.amax),
    "maximum": _plain(torch.maximum),
    "mean": _reduction(torch.mean),
    "min": _reduction(torch.amin),
    "minimum": _plain(torch.minimum),
    "multiply": _plain(torch.mul),
    "negative": _plain(torch.neg),
    "nn.layer_norm": _with_call(_layer_norm),
    "nn.leakyrelu": _with_call(lambda call, x: functional.leaky_relu(x, float(call.attrs.alpha))),
    "nn.softmax": _with_call(lambda call, x: torch.softmax(x, int(call.attrs.axis))),
    "nn.softplus": _with_call(_softplus),
    "not_equal": _plain(torch.ne),
    "permute_dims": _with_call(_permute),
    "power": _plain(torch.pow),
    "repeat": _with_call(
        lambda call, x: x.repeat_interleave(int(call.attrs.repeats), int(call.attrs.axis))
    ),
    "reshape": _plain(torch.reshape),
    "rsqrt": _plain(torch.rsqrt),
    "sigmoid": _plain(torch.sigmoid),
    "sign": _plain(torch.sign),
    "sin": _plain(torch.sin),
    "split": _with_call(_split),
    "sqrt": _plain(torch.sqrt),
    "square": _plain(torch.square),
    "squeeze": _with_call(_squeeze),
    "stack": lambda call, parts: torch.stack([_tensor(p) for p in parts], int(call.attrs.axis)),
    "strided_slice": _with_call(_strided_slice),
    "subtract": _plain(torch.sub),
    "sum": _reduction(torch.sum),
    "take": _with_call(_take),
    "tanh": _plain(torch.tanh),
    "tile": _with_call(lambda call, x: torch.tile(x, _ints(call.attrs.repeats))),
    "variance": _reduction(torch.var, correction=0),
    "where": _plain(torch.where),
    "zeros": lambda call, shape: torch.zeros(shape, dtype=_dtype(call)),
    **{f"nn.{name}": _plain(function) for name, function in ACTIVATIONS.items()},
}
