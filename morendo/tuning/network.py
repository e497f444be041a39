"""A small network that chooses a class, trained in numpy: there are dozens of samples, not more."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from morendo.runtime.schedule import WEIGHT_UNIT, Layer

Array = NDArray[np.float64]

_HIDDEN, _STEPS, _RATE, _DECAY = 8, 400, 0.02, 0.05
_MOST = 2**31 - 1  # of a number in the file


class Network:
    """Standardized inputs, one hidden layer with rectified sums, a score for each class.

    Args:
        features: float64 [samples, inputs].
        labels: class of each sample.
        classes: how many there are.
        seed: of the first weights.
    """

    def __init__(self, features: Array, labels: Sequence[int], classes: int, seed: int = 0) -> None:
        self._mean = features.mean(axis=0)
        spread = features.std(axis=0)
        self._spread = np.where(spread > 1e-6 * max(1e-9, spread.max()), spread, np.inf)
        rng = np.random.default_rng(seed)
        inputs = features.shape[1]
        self._weights = [
            rng.normal(0, inputs**-0.5, (_HIDDEN, inputs)),
            rng.normal(0, _HIDDEN**-0.5, (classes, _HIDDEN)),
        ]
        self._bias = [np.zeros(_HIDDEN), np.zeros(classes)]
        self._train(self._standard(features), np.asarray(labels), classes)

    def scores(self, features: Array) -> Array:
        """[samples, classes]; the largest is chosen."""
        return self._forward(self._standard(features))[1]

    def layers(self, caution: Array) -> tuple[Layer, ...]:
        """As `Learned` takes them, for inputs as they are.

        Args:
            caution: is added to the scores, [classes].
        """
        scaled = self._weights[0] / self._spread
        bias = self._bias[0] - scaled @ self._mean
        return _as_layer(scaled, bias), _as_layer(self._weights[1], self._bias[1] + caution)

    def _standard(self, features: Array) -> Array:
        return (features - self._mean) / self._spread

    def _forward(self, inputs: Array) -> tuple[Array, Array]:
        hidden = np.maximum(inputs @ self._weights[0].T + self._bias[0], 0)
        return hidden, hidden @ self._weights[1].T + self._bias[1]

    def _train(self, inputs: Array, labels: NDArray[np.int64], classes: int) -> None:
        """Cross-entropy, each class weighing the same; Adam (arXiv 1412.6980) with decay."""
        counts = np.bincount(labels, minlength=classes)
        weights = (1 / np.maximum(counts, 1))[labels]
        weights /= weights.sum()
        wanted = np.eye(classes)[labels]
        parameters = [*self._weights, *self._bias]
        means = [np.zeros_like(p) for p in parameters]
        squares = [np.zeros_like(p) for p in parameters]
        for step in range(1, _STEPS + 1):
            gradients = self._gradients(inputs, wanted, weights)
            for p, g, mean, square in zip(parameters, gradients, means, squares, strict=True):
                mean += 0.1 * (g - mean)
                square += 0.001 * (g * g - square)
                moved = mean / (1 - 0.9**step)
                p -= _RATE * (moved / (np.sqrt(square / (1 - 0.999**step)) + 1e-8) + _DECAY * p)

    def _gradients(self, inputs: Array, wanted: Array, weights: Array) -> list[Array]:
        hidden, scores = self._forward(inputs)
        likely = np.exp(scores - scores.max(axis=1, keepdims=True))
        likely /= likely.sum(axis=1, keepdims=True)
        wrong = (likely - wanted) * weights[:, None]
        back = (wrong @ self._weights[1]) * (hidden > 0)
        return [back.T @ inputs, wrong.T @ hidden, back.sum(axis=0), wrong.sum(axis=0)]


def _as_layer(weights: Array, bias: Array) -> Layer:
    return Layer(tuple(map(_as_integers, weights)), _as_integers(bias))


def _as_integers(values: Array) -> tuple[int, ...]:
    scaled = np.clip(np.rint(values / WEIGHT_UNIT), -_MOST, _MOST)
    return tuple(int(value) for value in scaled)
