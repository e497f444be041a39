"""Sampling: what may be drawn, and how often."""

import numpy as np
import pytest

from morendo.ir.errors import InputError, MorendoError
from morendo.runtime.sampling import Sampler


def logits_of(probabilities):
    return np.log(np.array(probabilities, np.float64)).astype(np.float32)


def frequencies(sampler, logits, draws=20000):
    counts = np.bincount([sampler(logits) for _ in range(draws)], minlength=len(logits))
    return counts / draws


def softmax(logits):
    weights = np.exp(logits.astype(np.float64) - logits.max())
    return weights / weights.sum()


def test_greedy_takes_the_first_of_the_largest():
    assert Sampler()(np.array([1, 5, 5, 2], np.float32)) == 1


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_temperature(temperature):
    logits = np.array([2, 1, 0, -1, -2], np.float32)
    got = frequencies(Sampler(temperature), logits)
    np.testing.assert_allclose(got, softmax(logits / temperature), atol=0.015)


def test_top_k():
    logits = logits_of([0.1, 0.4, 0.2, 0.3])
    got = frequencies(Sampler(1.0, top_k=2), logits)
    np.testing.assert_allclose(got, [0, 4 / 7, 0, 3 / 7], atol=0.015)
    assert set(np.flatnonzero(frequencies(Sampler(1.0, top_k=9), logits))) == {0, 1, 2, 3}


def test_top_k_1_is_greedy():
    logits = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    assert {Sampler(5.0, top_k=1, seed=seed)(logits) for seed in range(20)} == {logits.argmax()}


@pytest.mark.parametrize(
    ("top_p", "want"),
    [
        (0.3, [0, 1, 0, 0]),
        (0.6, [0, 4 / 7, 0, 3 / 7]),
        (0.75, [0, 4 / 9, 2 / 9, 3 / 9]),
        (0.95, [0.1, 0.4, 0.2, 0.3]),
    ],
)
def test_top_p(top_p, want):
    got = frequencies(Sampler(1.0, top_p=top_p), logits_of([0.1, 0.4, 0.2, 0.3]))
    np.testing.assert_allclose(got, want, atol=0.015)


def test_top_p_after_top_k():
    """Of the two that top-k leaves, 4/7 and 3/7, one is enough for 0.5."""
    got = frequencies(Sampler(1.0, top_k=2, top_p=0.5), logits_of([0.1, 0.4, 0.2, 0.3]), 100)
    np.testing.assert_array_equal(got, [0, 1, 0, 0])


@pytest.mark.parametrize("spread", [0.0, 0.1, 3.0])
def test_top_p_over_a_large_vocabulary(spread):
    """Flat distributions need more candidates than are sorted at first."""
    logits = (np.random.default_rng(0).standard_normal(50000) * spread).astype(np.float32)
    order = np.argsort(-logits, kind="stable")
    count = int(np.searchsorted(np.cumsum(softmax(logits)[order]), 0.9)) + 1
    sampler = Sampler(1.0, top_p=0.9)
    drawn = {sampler(logits) for _ in range(300)}
    threshold = logits[order[count]]
    assert all(logits[token] >= threshold for token in drawn)
    assert len(drawn) > 100


def test_seeds():
    logits = np.zeros(1000, np.float32)

    def draw(seed):
        sampler = Sampler(1.0, seed=seed)
        return [sampler(logits) for _ in range(10)]

    assert draw(7) == draw(7)
    assert draw(7) != draw(8)
    assert draw(None) != draw(None)


def test_extreme_logits():
    assert Sampler(1e-6)(np.array([-1e30, 0, -5], np.float32)) == 1
    assert Sampler(1.0)(np.array([-np.inf, 3, -np.inf], np.float32)) == 1
    assert Sampler(1.0, top_p=1e-9)(np.array([0, 3, 1], np.float32)) == 1


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_broken_logits_are_reported(value, temperature):
    with pytest.raises(MorendoError, match="the model computed (nan|inf) as a logit"):
        Sampler(temperature)(np.array([1, value, 2], np.float32))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"temperature": -1}, "temperature must be 0 or more .got -1."),
        ({"temperature": float("nan")}, "temperature must be 0 or more"),
        ({"top_k": -1}, "top_k must be 0 or more"),
        ({"top_p": 0}, "top_p must be above 0 and at most 1"),
        ({"top_p": 1.5}, "top_p must be above 0 and at most 1"),
        ({"seed": -1}, "seed must be 0 or more"),
    ],
)
def test_options_are_checked(options, match):
    with pytest.raises(InputError, match=match):
        Sampler(**options)
