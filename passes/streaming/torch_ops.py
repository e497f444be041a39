"""The numpy meaning of the dialect (`ir/evaluate_dialect.py`) in torch, so that it has gradients.

For normalized modules; values are float32 tensors, token ids and positions int64 ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import torch
import tvm
from torch.nn import functional
from tvm import relax

from morendo.ir.dialect import PREFIX, op_name
from morendo.ir.evaluate import Interpreter, Prepared
from morendo.ir.evaluate_dialect import DIALECT, State
from morendo.ir.text import bindings_of

from .stages import Attrs
from .torch_generic import ACTIVATIONS, TORCH_GENERIC

ELEMENTWISE = [
    tvm.ir.Op.get(f"relax.{name}")
    for name in ("add", "subtract", "multiply", "divide", "tanh", "sigmoid")
]


class TorchWeights(Protocol):
    """What a function reads besides its inputs.

    Attributes:
        dtype: that products are computed in; values between ops are float32.
    """

    dtype: torch.dtype

    def get(self, name: str) -> torch.Tensor:
        """A vector, or what a generic op reads."""
        ...

    def rows(self, attrs: Attrs, ids: torch.Tensor) -> torch.Tensor:
        """Rows of an embedding's table by ids [1, n]: [1, n, C]."""
        ...

    def linear(self, attrs: Attrs, x: torch.Tensor) -> torch.Tensor:
        """x [1, n, K] times a linear's matrix, without bias: [1, n, N]."""
        ...


class TorchFunction:
    """A function of token ids and positions that torch runs and differentiates.

    Args:
        function: main of a normalized module.
    """

    def __init__(self, function: relax.Function) -> None:
        self.function = function
        self.bindings = bindings_of(function)
        self.prepared = Prepared()
        last: dict[relax.Var, int] = {}
        for index, binding in enumerate(self.bindings):
            for var in relax.analysis.free_vars(binding.value):
                last[var] = index
        for var in relax.analysis.free_vars(function.body.body):
            last.pop(var, None)
        self.dead: list[list[relax.Var]] = [[] for _ in self.bindings]
        for var, index in last.items():
            self.dead[index].append(var)
        self.head = self._find_head()

    def _find_head(self) -> relax.Var | None:
        """The last linear's result, if what follows it works on its elements alone."""
        linears = [i for i, b in enumerate(self.bindings) if op_name(b.value) == "linear"]
        if not linears:
            return None
        rest = self.bindings[linears[-1] :]
        known = {binding.var for binding in rest}
        for value in (binding.value for binding in rest[1:]):
            elements = isinstance(value, relax.Call) and value.op in ELEMENTWISE
            copied = isinstance(value, relax.Var)
            if not (elements or copied) or not known.issuperset(relax.analysis.free_vars(value)):
                return None
        return rest[0].var

    @property
    def unknown(self) -> list[str]:
        """Ops that have no rule here."""
        calls = [b.value for b in self.bindings if isinstance(b.value, relax.Call)]
        names = {op_name(c) or str(c.op.name).removeprefix("relax."): c for c in calls}
        missing = set(names) - set(TORCH_RULES)
        return sorted(PREFIX + n if op_name(names[n]) else f"relax.{n}" for n in missing)

    def __call__(
        self, weights: TorchWeights, ids: np.ndarray, tokens: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Logits float32 of token ids int64 [n]: [n, V], or [t, V] of some tokens int64 [t]."""
        positions = torch.arange(len(ids))
        return self.run(weights, torch.from_numpy(ids), positions, TORCH_RULES, tokens)

    def run(
        self,
        weights: TorchWeights,
        ids: torch.Tensor,
        positions: torch.Tensor,
        rules: Mapping[str, Callable[..., Any]],
        tokens: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Logits float32 [n, V] of ids and positions, int64 [n]; values go after their last use.

        With `tokens`, int64 [t], only theirs are made, [t, V], as far as the head can be found.
        """
        state: Any = State(weights)  # type: ignore[arg-type]  # tensors take the arrays' place
        interpreter = Interpreter(state, rules, self.prepared)
        inputs = ids[None], positions[None]
        for param, value in zip(self.function.params, inputs, strict=True):
            interpreter.bind(param, value)
        for binding, dead in zip(self.bindings, self.dead, strict=True):
            if tokens is not None and binding.var.same_as(self.head):
                source = binding.value.args[0]
                interpreter.bind(source, interpreter.env[source][:, tokens])
            interpreter.bind(binding.var, interpreter.value(binding.value))
            for var in dead:
                interpreter.env.pop(var, None)
        logits = interpreter.value(self.function.body.body)[0]
        return logits if tokens is None or self.head is not None else logits[tokens]


def _embedding(state: Any, attrs: Attrs, ids: torch.Tensor) -> torch.Tensor:
    return state.weights.rows(attrs, ids)


def _linear(state: Any, attrs: Attrs, x: torch.Tensor) -> torch.Tensor:
    y = state.weights.linear(attrs, x)
    bias = state.weight(attrs["bias"])
    return y if bias is None else y + bias


def _rms_norm(state: State, attrs: Attrs, x: torch.Tensor) -> torch.Tensor:
    return functional.rms_norm(x, x.shape[-1:], _gain(state, attrs, x), attrs["eps"])


def _layer_norm(state: State, attrs: Attrs, x: torch.Tensor) -> torch.Tensor:
    gain, bias = _gain(state, attrs, x), state.weight(attrs["bias"])
    return functional.layer_norm(x, x.shape[-1:], gain, bias, attrs["eps"])


def _gain(state: Any, attrs: Attrs, x: torch.Tensor) -> torch.Tensor:
    """What a norm multiplies each channel with."""
    weight = state.weight(attrs["weight"])
    if weight is None:
        return torch.full(x.shape[-1:], attrs["offset"])
    return weight + attrs["offset"] if attrs["offset"] else weight


def _rope(state: State, attrs: Attrs, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    frequencies: Any = state.weight(attrs["inv_freq"])
    angle = positions[..., None, None].float() * frequencies  # (1, n, 1, R/2)
    cos, sin = angle.cos() * attrs["scaling"], angle.sin() * attrs["scaling"]
    turned, rest = x.split([2 * len(frequencies), x.shape[-1] - 2 * len(frequencies)], -1)
    if attrs["interleaved"]:
        first, second = turned[..., 0::2], turned[..., 1::2]
    else:
        first, second = turned.chunk(2, -1)
    pair = first * cos - second * sin, second * cos + first * sin
    turned = torch.stack(pair, -1).flatten(-2) if attrs["interleaved"] else torch.cat(pair, -1)
    return torch.cat([turned, rest], -1) if rest.shape[-1] else turned


def _attention(
    state: State, attrs: Attrs, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
) -> torch.Tensor:
    weights: Any = state.weights
    slopes, dtype = state.weight(attrs["alibi"]), weights.dtype
    return attention(attrs, q.to(dtype), k.to(dtype), v.to(dtype), slopes).to(q.dtype)


def attention(
    attrs: Attrs, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, alibi: Any
) -> torch.Tensor:
    """Of whole windows, as many keys as queries: (1, n, H, D); alibi float32 [H] or None."""
    if attrs["window"] or attrs["softcap"] or attrs["alibi"] or q.dtype == torch.bfloat16:
        return _explicit_attention(attrs, q, k, v, alibi)  # its gradients are 3 times as fast
    repeats = q.shape[2] // k.shape[2]
    k, v = (t.repeat_interleave(repeats, 2) if repeats > 1 else t for t in (k, v))
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))  # (1, H, n, D)
    y = functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=attrs["scale"])
    return y.transpose(1, 2)


def _explicit_attention(
    attrs: Attrs, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, alibi: Any
) -> torch.Tensor:
    """The same; query heads that share keys are rows of one product."""
    _, count, heads, size = q.shape
    shared = k.shape[2]
    rows = (q[0] * attrs["scale"]).transpose(0, 1).reshape(shared, -1, size)
    scores = torch.bmm(rows, k[0].permute(1, 2, 0)).view(heads, count, count)
    if attrs["softcap"]:
        scores = attrs["softcap"] * torch.tanh(scores / attrs["softcap"])
    key = torch.arange(count)
    if alibi is not None:
        scores = scores + alibi[:, None, None] * key.float()
    behind = key[:, None] - key
    hidden = (behind < 0) | (behind >= (attrs["window"] or count))
    mask = torch.zeros(count, count, dtype=q.dtype).masked_fill_(hidden, -torch.inf)
    parts = torch.softmax(scores + mask, -1).to(v.dtype).view(shared, -1, count)
    y = torch.bmm(parts, v[0].transpose(0, 1)).view(heads, count, size)
    return y.transpose(0, 1)[None]


def _gated(state: State, attrs: Attrs, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    return ACTIVATIONS[attrs["activation"]](gate) * up


TORCH_RULES: dict[str, Callable[..., Any]] = {
    "weight": DIALECT["weight"],
    "embedding": _embedding,
    "linear": _linear,
    "rms_norm": _rms_norm,
    "layer_norm": _layer_norm,
    "rope": _rope,
    "attention": _attention,
    "gated": _gated,
    **TORCH_GENERIC,
}
