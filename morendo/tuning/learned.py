"""The learned schedule: a network sees a prompt's cache and chooses among falls.

As in PMPD (arXiv 2410.13461), labels come from generating and classes are balanced. A prompt's
label is the fall that reads least for it, where reading less and losing quality are weighed so that
the mean over all prompts keeps the bound.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from morendo.ir.plan import row_caches
from morendo.progress import Progress
from morendo.runtime.schedule import Fall, Learned

from .answers import TOP, Counts
from .bound import Bound, Mean
from .candidates import Candidate
from .network import Network
from .trials import Figures, Half, Trials

WINDOW = 256
"""Tokens at the end of a prompt that the network sees the mean of."""
_CHOICES = 5
_FOLDS = 8

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Accuracy:
    """How often the network chooses a prompt's own label.

    Attributes:
        tuning: of prompts that were left out in turn while it was trained on the others.
        held_out: of the held-out prompts.
        majority: of always choosing the commonest label of the tuning prompts, on the held-out.
    """

    tuning: float
    held_out: float
    majority: float


@dataclass(frozen=True)
class _Measured:
    """What each choice gives for each prompt of a half.

    Attributes:
        quality, read: [prompts, choices]; `read` is bytes of all steps.
        steps: [prompts][choices] steps of each level.
        features: [prompts, inputs].
    """

    quality: Array
    read: Array
    steps: list[list[Counts]]
    features: Array

    def labels(self, price: float) -> list[int]:
        """What reads least for each prompt, at a price in bytes for losing all quality."""
        cost = self.read + price * (1 - self.quality)
        return [int(best) for best in cost.argmin(axis=1)]

    def mean_quality(self, chosen: Sequence[int]) -> Mean:
        """Of these choices."""
        return Mean.of(self.quality[np.arange(len(chosen)), list(chosen)])


def learn(
    trials: Trials,
    front: Sequence[Candidate],
    found: Fall,
    bound: Bound,
    progress: Progress,
) -> tuple[Learned, dict[Half, Figures], Accuracy]:
    """Train the network.

    Args:
        trials: measures.
        front: falls that are best for their bytes, fewest bytes first.
        found: the static schedule.
        bound: what it has to keep on tuning prompts that are left out of its training in turn.
        progress: a step for each answer.

    Returns:
        The schedule, its figures on both halves and the network's accuracy.
    """
    choices = _choices(front, found)
    cache = max(row_caches(trials.model.session.plan))
    count = sum(map(len, trials.prompts.values())) * len(choices)
    with progress.task("measure the learned schedule's choices", count) as advance:
        halves = {half: _measure(trials, half, choices, cache, advance) for half in trials.prompts}
    tuning, held_out = halves["tuning"], halves["held_out"]
    price = _price(tuning, bound)
    labels = tuning.labels(price)
    unseen = _unseen_scores(tuning.features, labels, len(choices))
    caution = _caution(unseen, tuning, bound)
    layers = Network(tuning.features, labels, len(choices)).layers(caution)
    schedule = Learned(cache, WINDOW, layers, choices)
    chosen = [choices.index(schedule.choose(row)) for row in held_out.features]
    figures = {
        "tuning": _figures(trials, tuning, (unseen + caution).argmax(axis=1)),
        "held_out": _figures(trials, held_out, chosen),
    }
    wanted = held_out.labels(price)
    common = int(np.bincount(labels).argmax())
    accuracy = Accuracy(
        tuning=float(np.mean(unseen.argmax(axis=1) == labels)),
        held_out=float(np.mean(np.asarray(chosen) == wanted)),
        majority=float(np.mean(np.asarray(wanted) == common)),
    )
    return schedule, figures, accuracy


def _choices(front: Sequence[Candidate], found: Fall) -> tuple[Fall, ...]:
    """The top level, the static schedule, some that read more and less; most careful first."""
    falls = [c.schedule for c in reversed(front) if isinstance(c.schedule, Fall)]
    at = falls.index(found) if found in falls else len(falls) // 2
    picked = {at // 2, at, (at + len(falls)) // 2, len(falls) - 1}
    chosen = [falls[index] for index in sorted(picked)][: _CHOICES - 1]
    return TOP, *chosen


def _measure(
    trials: Trials,
    half: Half,
    choices: Sequence[Fall],
    cache: int,
    advance: Callable[[], None],
) -> _Measured:
    quality, read, steps, features = [], [], [], []
    for number, prompt in enumerate(trials.prompts[half]):
        outcomes = []
        for choice in choices:
            outcomes.append(trials.outcome(choice, half, number))
            advance()
        quality.append([each for each, _ in outcomes])
        steps.append([counts for _, counts in outcomes])
        read.append([_bytes_read(trials, counts) for _, counts in outcomes])
        features.append(trials.model.features(prompt, cache, WINDOW))
    return _Measured(np.asarray(quality), np.asarray(read), steps, np.asarray(features))


def _bytes_read(trials: Trials, counts: Counts) -> float:
    return float(sum(trials.cost.level_bytes[level] * steps for level, steps in counts.items()))


def _price(measured: _Measured, bound: Bound) -> float:
    """The least price of quality at which the best choices keep the bound."""
    low, high = 0.0, float(measured.read.max()) * 1e6
    for _ in range(80):
        price = (low + high) / 2
        if bound.kept(measured.mean_quality(measured.labels(price))):
            high = price
        else:
            low = price
    return high


def _unseen_scores(features: Array, labels: Sequence[int], classes: int) -> Array:
    """Scores of each sample by a network that was trained without it."""
    scores = np.zeros((len(labels), classes))
    folds = min(_FOLDS, len(labels))
    for fold in range(folds):
        left_out = np.arange(len(labels)) % folds == fold
        seen = [label for label, out in zip(labels, left_out, strict=True) if not out]
        if seen:
            network = Network(features[~left_out], seen, classes)
            scores[left_out] = network.scores(features[left_out])
    return scores


def _caution(scores: Array, measured: _Measured, bound: Bound) -> Array:
    """What to add to the scores of careful choices so that those for unseen prompts keep the bound;
    the first choice is the most careful one, the top level.
    """
    classes = scores.shape[1]
    slope = np.arange(classes - 1, -1, -1) / max(1, classes - 1)
    for strength in np.concatenate([[0.0], np.geomspace(0.05, 1e4, 100)]):
        chosen = (scores + strength * slope).argmax(axis=1)
        if bound.kept(measured.mean_quality(chosen.tolist())):
            return strength * slope
    raise AssertionError("the top level keeps every bound")


def _figures(trials: Trials, measured: _Measured, chosen: Sequence[int]) -> Figures:
    counts: Counts = {}
    for number, choice in enumerate(chosen):
        for level, steps in measured.steps[number][int(choice)].items():
            counts[level] = counts.get(level, 0) + steps
    return trials.summarize(measured.mean_quality([int(choice) for choice in chosen]), counts)
