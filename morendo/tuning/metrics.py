"""How near an answer under a schedule is to that of the top level: 1 is the same."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from morendo.quality.scores import compare
from morendo.runtime.schedule import Schedule

from .answers import Answer, Counts, Model

METRICS = ("rouge-l", "top1", "kl")


def measure(
    model: Model, metric: str, prompt: Sequence[int], top: Answer, schedule: Schedule
) -> tuple[float, Counts]:
    """The quality of an answer, 0 to 1, and the steps of each level.

    Args:
        model: the artifact.
        metric: "rouge-l": the model answers, and its text is compared with the top level's.
            "top1": along the top level's answer, how often a step finds its next token likeliest.
            "kl": exp of minus the mean divergence of the steps' predictions from the top level's,
            along its answer.
        prompt: what is answered.
        top: the answer of the top level.
        schedule: that answers.
    """
    if metric == "rouge-l":
        answer = model.answer(prompt, schedule)
        return answer_rouge(model, answer, top), answer.counts
    if len(top.tokens) < 2:
        return 1.0, {}
    rows, counts = model.follow(prompt, top.tokens, schedule)
    if metric == "top1":
        return float((rows.argmax(axis=1) == top.tokens[1:]).mean()), counts
    reference = model.score(prompt, top.tokens)[1:]
    scores = compare(rows, np.asarray(top.tokens[1:]), reference)
    return float(np.exp(-max(0.0, scores.divergence.mean()))), counts


def answer_rouge(model: Model, answer: Answer, top: Answer) -> float:
    """ROUGE-L of an answer against the top level's."""
    return rouge_l(_text(model, answer), _text(model, top))


def _text(model: Model, answer: Answer) -> tuple[int, ...]:
    ended = answer.tokens[-1] in model.stops
    return answer.tokens[:-1] if ended else answer.tokens


def rouge_l(got: Sequence[int], want: Sequence[int]) -> float:
    """ROUGE-L of two texts' tokens: the F1 score of their longest common subsequence (Lin, "ROUGE:
    A Package for Automatic Evaluation of Summaries", 2004).
    """
    if not len(got) or not len(want):
        return float(len(got) == len(want))
    longest = np.zeros(len(want) + 1, np.int64)  # of what was seen of `got`, by prefixes of `want`
    target = np.asarray(want)
    for token in got:
        longer = np.where(target == token, longest[:-1] + 1, longest[1:])
        longest[1:] = np.maximum.accumulate(longer)
    return 2 * float(longest[-1]) / (len(got) + len(want))
