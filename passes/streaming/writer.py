"""A model that writes many windows of text at once.

Token by token, all windows in one run of its function: what a normalized module calls the tokens
of one window are here the next tokens of different ones. All ops treat tokens one by one but
attention, whose rule here lets each token look back at its own window.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from tvm import relax

from morendo.ir.dialect import op_name
from morendo.ir.errors import CompileError
from morendo.ir.text import bindings_of
from morendo.ir.weights import Weights

from . import WRITING
from .fast_ops import fastest_dtype
from .float_weights import FloatWeights
from .stages import Attrs
from .torch_ops import TORCH_RULES, TorchFunction

CACHE_BYTES = 3 << 29
"""Of keys and values in memory: what decides how many windows are written at once."""
Track = Callable[[str, int], AbstractContextManager[Callable[[], None]]]


class _Cache(FloatWeights):
    """The model's weights, with keys and values of the windows that are being written.

    Args:
        weights: of the model.
        length: tokens of a window.

    Attributes:
        position: of the next token, the same in all windows.
        layers: keys [B, KV heads, D, n], as products with them are fastest, and values
            [B, KV heads, n, D] of each layer; cleared for other windows.
    """

    def __init__(self, weights: Weights, length: int) -> None:
        super().__init__(weights, fastest_dtype())
        self.length, self.position = length, 0
        self.layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def add(
        self, layer: int, k: torch.Tensor, v: torch.Tensor, window: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Put in a token's keys and values [B, KV heads, D].

        Returns:
            Keys [B, KV heads, D, t] and values [B, KV heads, t, D] so far, the last `window` of
            them, all if that is 0.
        """
        if layer not in self.layers:
            batch, heads, size = k.shape
            self.layers[layer] = (
                k.new_empty(batch, heads, size, self.length),
                v.new_empty(batch, heads, self.length, size),
            )
        keys, values = self.layers[layer]
        keys[..., self.position], values[:, :, self.position] = k, v
        stop = self.position + 1
        seen = slice(max(stop - window, 0) if window else 0, stop)
        return keys[..., seen], values[:, :, seen]


def _attention(
    state: Any, attrs: Attrs, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
) -> torch.Tensor:
    """Of one token of each of B windows, (1, B, H, D), over its window."""
    cache: _Cache = state.weights
    _, count, heads, size = q.shape
    new = k[0].to(cache.dtype), v[0].to(cache.dtype)
    keys, values = cache.add(attrs["layer"], *new, attrs["window"])
    shared, tokens = values.shape[1:3]
    rows = (q[0] * attrs["scale"]).to(cache.dtype).view(count, shared, -1, size)
    scores = torch.matmul(rows, keys).float()
    if attrs["softcap"]:
        scores = attrs["softcap"] * torch.tanh(scores / attrs["softcap"])
    slopes = state.weight(attrs["alibi"])
    if slopes is not None:
        scores += (slopes[:, None] * torch.arange(tokens)).view(shared, -1, tokens)
    parts = torch.softmax(scores, -1).to(cache.dtype)
    return torch.matmul(parts, values).to(q.dtype).reshape(1, count, heads, size)


RULES = {**TORCH_RULES, "attention": _attention}


@torch.no_grad()
def write_windows(
    function: TorchFunction,
    weights: Weights,
    first: np.ndarray,
    length: int,
    track: Track,
    temperature: float = 1.0,
) -> np.ndarray:
    """Windows of text that a model samples.

    Args:
        function: of the model, normalized, without ops that torch has no rule for.
        weights: of the model; all are kept in memory, matrices in the fastest dtype.
        first: token that each window begins with, int64 [W].
        length: n, tokens of a window.
        track: shows progress; its steps are tokens of all windows that are written at once.
        temperature: of the distributions that tokens are drawn from.

    Returns:
        Token ids, int64 [W, n].

    Raises:
        CompileError: when logits are not finite.
    """
    random = torch.Generator().manual_seed(0)
    cache = _Cache(weights, length)
    window_bytes = cache.dtype.itemsize * length * _cached_numbers(function.function)
    windows = torch.empty(len(first), length, dtype=torch.int64)
    windows[:, 0] = torch.from_numpy(first)
    needed = -(-len(first) * window_bytes // CACHE_BYTES)
    batches = windows.tensor_split(min(needed, len(first)))
    with track(WRITING, len(batches) * (length - 1)) as advance:
        for batch in batches:
            cache.layers.clear()
            for cache.position in range(length - 1):
                ids = batch[:, cache.position]
                logits = function.run(cache, ids, torch.full_like(ids, cache.position), RULES)
                upto = torch.softmax(logits.div_(temperature), -1).cumsum_(-1)
                if not torch.isfinite(upto[:, -1]).all():
                    raise CompileError(
                        "the float model's logits are not finite, so it cannot write a text",
                        hint="it overflows in float32, or a weight is damaged",
                    )
                drawn = torch.rand(len(ids), 1, generator=random) * upto[:, -1:]
                batch[:, cache.position + 1] = torch.searchsorted(upto, drawn)[:, 0]
                advance()
    return windows.numpy()


def _cached_numbers(function: relax.Function) -> int:
    """Keys and values of one token in all layers."""
    calls = [b.value for b in bindings_of(function) if op_name(b.value) == "attention"]
    shapes = [each.ty.shape.values for call in calls for each in call.args[1:]]
    return sum(int(heads) * int(size) for *_, heads, size in shapes)
