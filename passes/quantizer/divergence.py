"""KL divergence of two distributions of the next token, a few tokens at a time.

Logits of a window take as much memory as a small model; one pass over rows that fit a cache gives
the loss and its gradient together, and nothing of that size is written in between.
"""

from __future__ import annotations

from typing import Any

import torch

_ROWS = 16  # tokens at a time


class Divergence(torch.autograd.Function):
    """KL(softmax(target) || softmax(logits)), mean over rows, in nats.

    Both are float32 [n, V]; only `logits` has a gradient, once, and it takes the place of `target`.
    """

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        total, count = 0.0, len(logits)
        for start in range(0, count, _ROWS):
            rows = target[start : start + _ROWS]
            wanted = torch.log_softmax(rows, -1)
            found = torch.log_softmax(logits[start : start + _ROWS], -1)
            part = wanted.exp()
            total += float(wanted.sub_(found).mul_(part).sum())
            torch.sub(found.exp_(), part, out=rows).div_(count)
        ctx.gradient = target
        return logits.new_tensor(total / count)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        return ctx.gradient.mul_(grads[0]), None
