"""From logits to figures: perplexity, Kullback-Leibler divergence, agreement. Only numpy.

Divergence from the float model is the finer measure: perplexity sees one probability a token, may
even fall by chance, and needs long texts; the divergence sees the whole distribution. So measure
llama.cpp's `perplexity --kl-divergence` and "Accuracy is Not All You Need" (arXiv 2407.09141).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from morendo.ir.errors import InputError, MorendoError

_ROWS = 8  # tokens at a time in float64: 8 * 128k logits are 8 MB, which caches hold


@dataclass(frozen=True)
class TokenScores:
    """Figures of every scored token; the last two are empty without a reference.

    Attributes:
        loss: float64 [tokens], -log p(next token) in nats.
        divergence: float64 [tokens], KL(reference || model) in nats.
        agrees: bool [tokens], whether both find the same token likeliest.
    """

    loss: NDArray[np.float64]
    divergence: NDArray[np.float64]
    agrees: NDArray[np.bool_]


@dataclass(frozen=True)
class Score:
    """Figures of a text. What needs a reference is None without one.

    Attributes:
        tokens: number of scored tokens.
        loss: mean -log p(next token) in nats.
        kl_mean: mean divergence in nats.
        kl_error: standard error of `kl_mean`, from the spread of the windows' means; None for a
            single window. Tokens of one window are not independent, windows nearly are.
        kl_p99: the divergence that 1 % of the tokens exceed.
        top1: fraction of tokens with the same likeliest next token.
    """

    tokens: int
    loss: float
    kl_mean: float | None = None
    kl_error: float | None = None
    kl_p99: float | None = None
    top1: float | None = None

    @property
    def perplexity(self) -> float:
        """exp(loss): among how many tokens the model hesitates."""
        return math.exp(self.loss) if self.loss < 700 else math.inf


def cut_windows(
    ids: Sequence[int] | NDArray[np.int32],
    window: int,
    limit: int | None = None,
    bos: int | None = None,
) -> NDArray[np.int32]:
    """Token ids as windows that do not overlap: int32 [windows, window]; the rest is left out.

    Args:
        ids: of the whole text, without a beginning-of-text token.
        window: tokens of a window, at least 2.
        limit: most windows to take, from the start of the text.
        bos: token that every window starts with, for models that expect one; then a window takes
            `window - 1` tokens of the text.

    Raises:
        InputError: when the text does not fill one window.
    """
    head = [] if bos is None else [bos]
    body = window - len(head)
    if body < 1 or window < 2:
        raise InputError(f"a window is too short (got {window} tokens, need at least 2)")
    count = len(ids) // body
    if not count:
        raise InputError(
            f"the text is shorter than one window (got {len(ids)} tokens, need {body})",
            hint="take a longer text or a smaller --window",
        )
    count = count if limit is None else min(count, limit)
    text = np.asarray(ids[: count * body], np.int32).reshape(count, body)
    starts = np.tile(np.asarray(head, np.int32), (count, 1))
    return np.ascontiguousarray(np.concatenate([starts, text], axis=1))


def compare(
    logits: NDArray[np.float32],
    targets: NDArray[np.integer],
    reference: NDArray[np.float32] | None = None,
) -> TokenScores:
    """Score every token.

    Args:
        logits: [tokens, vocabulary]; row t predicts targets[t].
        targets: [tokens], the tokens that follow.
        reference: logits of the same shape to compare with.

    Raises:
        MorendoError: when logits are NaN or infinite.
    """
    loss = np.empty(len(targets))
    divergence, agrees = np.empty(0), np.empty(0, np.bool_)
    if reference is not None:
        divergence, agrees = np.empty(len(targets)), np.empty(len(targets), np.bool_)
    for start in range(0, len(targets), _ROWS):
        rows = slice(start, start + _ROWS)
        q = _Distribution(logits[rows])
        loss[rows] = q.log_total - q.shifted[np.arange(len(q.shifted)), targets[rows]]
        if reference is not None:
            p = _Distribution(reference[rows])
            # sum p (log p - log q), with the normalizers taken out of the sum
            gap = np.einsum("tv,tv->t", p.weights, p.shifted - q.shifted) / p.total
            divergence[rows] = gap - p.log_total + q.log_total
            agrees[rows] = p.shifted.argmax(1) == q.shifted.argmax(1)
    return TokenScores(loss, divergence, agrees)


class _Distribution:
    """Softmax in parts, in float64: the divergences of good kernels vanish in float32.

    Attributes:
        shifted: [tokens, vocabulary] logits less their maximum.
        weights: exp(shifted), the probabilities before they are divided by their total.
        total, log_total: [tokens].

    Raises:
        MorendoError: when a logit is NaN or infinite.
    """

    def __init__(self, logits: NDArray[np.float32]) -> None:
        if not np.isfinite(logits).all():
            token, entry = np.argwhere(~np.isfinite(logits))[0]
            raise MorendoError(
                f"a logit is not finite (got {logits[token, entry]} for token id {entry})",
                hint="the weights overflow, or a kernel is wrong",
            )
        self.shifted = logits.astype(np.float64)
        self.shifted -= self.shifted.max(axis=1, keepdims=True)
        self.weights = np.exp(self.shifted)
        self.total = self.weights.sum(axis=1)
        self.log_total = np.log(self.total)


def summarize(windows: Sequence[TokenScores]) -> Score:
    """The figures of a text from those of its windows, which are of equal length."""
    loss = np.concatenate([w.loss for w in windows])
    divergence = np.concatenate([w.divergence for w in windows])
    if not divergence.size:
        return Score(loss.size, float(loss.mean()))
    means = np.array([w.divergence.mean() for w in windows])
    error = means.std(ddof=1) / math.sqrt(means.size) if means.size > 1 else None
    return Score(
        tokens=loss.size,
        loss=float(loss.mean()),
        kl_mean=float(divergence.mean()),
        kl_error=None if error is None else float(error),
        kl_p99=float(np.quantile(divergence, 0.99)),
        top1=float(np.concatenate([w.agrees for w in windows]).mean()),
    )
