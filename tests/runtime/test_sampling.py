"""Sampling: what may be drawn, and how often."""

import ctypes

import numpy as np
import pytest
import toy
from c_sampling import COptions

from morendo.ir.errors import InputError, MorendoError
from morendo.runtime.executor import load_library
from morendo.runtime.sampling import Sampler, SamplingSettings


def sampler(*values, seed=0, prompt=(), **settings):
    return Sampler(SamplingSettings(*values, **settings), seed, prompt)


def logits_of(probabilities):
    return np.log(np.array(probabilities, np.float64)).astype(np.float32)


def frequencies(draw, logits, draws=20000):
    counts = np.bincount([draw(logits) for _ in range(draws)], minlength=len(logits))
    return counts / draws


def softmax(logits):
    weights = np.exp(logits.astype(np.float64) - logits.max())
    return weights / weights.sum()


def test_greedy_takes_the_first_of_the_largest():
    assert sampler()(np.array([1, 5, 5, 2], np.float32)) == 1


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_temperature(temperature):
    logits = np.array([2, 1, 0, -1, -2], np.float32)
    got = frequencies(sampler(temperature), logits)
    np.testing.assert_allclose(got, softmax(logits / temperature), atol=0.015)


def test_top_k():
    logits = logits_of([0.1, 0.4, 0.2, 0.3])
    got = frequencies(sampler(1.0, top_k=2), logits)
    np.testing.assert_allclose(got, [0, 4 / 7, 0, 3 / 7], atol=0.015)
    assert set(np.flatnonzero(frequencies(sampler(1.0, top_k=9), logits))) == {0, 1, 2, 3}


def test_top_k_1_is_greedy():
    logits = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    assert {sampler(5.0, top_k=1, seed=seed)(logits) for seed in range(20)} == {logits.argmax()}


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
    got = frequencies(sampler(1.0, top_p=top_p), logits_of([0.1, 0.4, 0.2, 0.3]))
    np.testing.assert_allclose(got, want, atol=0.015)


def test_top_p_after_top_k():
    """Of the two that top-k leaves, 4/7 and 3/7, one is enough for 0.5."""
    got = frequencies(sampler(1.0, top_k=2, top_p=0.5), logits_of([0.1, 0.4, 0.2, 0.3]), 100)
    np.testing.assert_array_equal(got, [0, 1, 0, 0])


@pytest.mark.parametrize("spread", [0.0, 0.1, 3.0])
def test_top_p_over_a_large_vocabulary(spread):
    """Flat distributions need more candidates than are sorted at first."""
    logits = (np.random.default_rng(0).standard_normal(50000) * spread).astype(np.float32)
    order = np.argsort(-logits, kind="stable")
    count = int(np.searchsorted(np.cumsum(softmax(logits)[order]), 0.9)) + 1
    draw = sampler(1.0, top_p=0.9)
    drawn = {draw(logits) for _ in range(300)}
    threshold = logits[order[count]]
    assert all(logits[token] >= threshold for token in drawn)
    assert len(drawn) > 100


def test_seeds():
    logits = np.zeros(1000, np.float32)

    def draw(seed):
        chosen = sampler(1.0, seed=seed)
        return [chosen(logits) for _ in range(10)]

    assert draw(7) == draw(7)
    assert draw(7) != draw(8)
    assert draw(None) != draw(None)


def test_extreme_logits():
    assert sampler(1e-300)(np.array([1, 2, 2.0001], np.float32)) == 2
    assert sampler(1e-6)(np.array([-1e30, 0, -5], np.float32)) == 1
    assert sampler(1.0)(np.array([-np.inf, 3, -np.inf], np.float32)) == 1
    assert sampler(1.0, top_p=1e-9)(np.array([0, 3, 1], np.float32)) == 1


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_broken_logits_are_reported(value, temperature):
    with pytest.raises(MorendoError, match="the model computed (nan|inf) as a logit"):
        sampler(temperature)(np.array([1, value, 2], np.float32))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"temperature": -1}, "temperature must be a finite number of 0 or more .got -1."),
        ({"temperature": float("inf")}, "temperature must be a finite number .* .got inf."),
        ({"temperature": float("nan")}, "temperature must be a finite number of 0 or more"),
        ({"temperature": "0.5"}, "temperature must be a finite number of 0 or more .got '0.5'."),
        ({"temperature": True}, "temperature must be a finite number of 0 or more .got True."),
        ({"top_k": -1}, "top_k must be a whole number, 0 or more"),
        ({"top_k": 1.5}, "top_k must be a whole number, 0 or more"),
        ({"top_k": float("inf")}, "top_k must be a whole number, 0 or more"),
        ({"min_p": -0.1}, "min_p must be 0 to 1"),
        ({"min_p": 1.1}, "min_p must be 0 to 1"),
        ({"repetition_penalty": 0}, "repetition_penalty must be a finite number above 0"),
        (
            {"repetition_penalty": float("inf")},
            "repetition_penalty must be a finite number above 0",
        ),
        ({"top_p": 0}, "top_p must be above 0 and at most 1"),
        ({"top_p": 1.5}, "top_p must be above 0 and at most 1"),
        ({"seed": -1}, "seed must be 0 or more"),
    ],
)
def test_options_are_checked(options, match):
    with pytest.raises(InputError, match=match):
        sampler(**options)


def reference(logits, settings, seen):
    """Probabilities in float64, one step after the other."""
    scores = logits.astype(np.float64)
    for token in set(seen):
        scores[token] *= settings.repetition_penalty ** (1 if scores[token] < 0 else -1)
    scores /= settings.temperature
    order = np.argsort(-scores, kind="stable")
    if settings.top_k:
        scores[order[settings.top_k :]] = -np.inf
    before = np.cumsum(softmax(scores)[order]) - softmax(scores)[order]
    scores[order[before >= settings.top_p]] = -np.inf
    scores[softmax(scores) < settings.min_p * softmax(scores).max()] = -np.inf
    return softmax(scores)


SETTINGS = [
    {"min_p": 0.2},
    {"temperature": 2.0, "min_p": 0.4},
    {"temperature": 0.7, "top_k": 6, "top_p": 0.9, "min_p": 0.1, "repetition_penalty": 1.3},
    {"temperature": 1.5, "top_p": 0.8, "repetition_penalty": 0.7},
    {"top_k": 3, "min_p": 0.9},
    {"min_p": 1.0},
    {"repetition_penalty": 5.0},
]


@pytest.mark.parametrize("options", SETTINGS, ids=str)
def test_draws_follow_the_distribution(options):
    """One draw from each new sampler, so that the text stays the prompt."""
    settings = SamplingSettings(**{"temperature": 1.0, **options})
    logits = np.random.default_rng(3).normal(0, 1.5, 12).astype(np.float32)
    prompt = [0, 3, 3, 7, 11]
    want = reference(logits, settings, prompt)
    got = np.zeros(12)
    draws = 4000
    for seed in range(draws):
        got[Sampler(settings, seed, tuple(prompt))(logits)] += 1 / draws
    np.testing.assert_allclose(got, want, atol=0.03)
    assert not got[want == 0].any()


def test_repetition_penalty_counts_the_prompt_and_what_was_said():
    logits = np.array([2.0, 1.9, -1.0, 1.0], np.float32)
    kept = logits.copy()
    draw = sampler(repetition_penalty=1.5, prompt=(3, 3))
    assert [draw(logits) for _ in range(4)] == [0, 1, 0, 0]  # 2/1.5 is above 1.9/1.5
    np.testing.assert_array_equal(logits, kept)
    assert sampler(repetition_penalty=1.5, prompt=(0, 1))(logits) == 0
    assert sampler(repetition_penalty=4, prompt=(0, 1))(logits) == 3


def test_settings_as_a_text():
    assert str(SamplingSettings()) == "greedy"
    assert str(SamplingSettings(0, top_k=5, repetition_penalty=1.1)) == (
        "greedy, repetition-penalty 1.1"
    )
    assert str(SamplingSettings(0.6, 20, 0.95, 0.05, 1.05)) == (
        "temperature 0.6, top-k 20, top-p 0.95, min-p 0.05, repetition-penalty 1.05"
    )


FEW = [
    {"temperature": 0.0},
    {"temperature": 0.0, "repetition_penalty": 1.3},
    {"top_k": 40},
    {"top_k": 1, "repetition_penalty": 3.0},
    {"temperature": 0.7, "top_k": 50, "top_p": 0.9, "min_p": 0.02, "repetition_penalty": 1.1},
    {"top_p": 0.8},
    {"temperature": 0.5, "top_p": 0.95},
    {"min_p": 0.05},
    {"top_p": 0.9, "min_p": 0.1},
    {"top_k": 256, "top_p": 0.99},
]
ALL = [
    {},
    {"repetition_penalty": 0.8, "top_k": 5},
    {"top_k": 257},
    {"top_p": 0.9, "repetition_penalty": 1.1},
    {"top_k": 0, "repetition_penalty": 1.2},
]


def candidates(logits, sharpness, rng):
    """What a device leaves: ids, logits, and a total that is as exact as it can be."""
    ids = np.argsort(-logits, kind="stable")[:256].astype(np.int32)
    distances = logits.astype(np.float64) - np.float64(logits.max())
    total = np.exp(distances * sharpness).sum() * (1 + 5e-6 * rng.uniform(-1, 1))
    return ids, logits[ids], float(total)


@pytest.mark.parametrize("vocabulary", [100, 256, 3000])
@pytest.mark.parametrize("options", FEW, ids=str)
def test_the_likeliest_tokens_are_enough(options, vocabulary):
    """Both ways draw the same tokens, texts through; ties included."""
    rng, decided = np.random.default_rng(1), 0
    settings = SamplingSettings(**{"temperature": 1.0, **options})
    full, few = Sampler(settings, 5, (3, 50, 51)), Sampler(settings, 5, (3, 50, 51))
    for _ in range(200):
        logits = (rng.standard_normal(vocabulary) * 3).astype(np.float32).round(2)
        found = few.choose(*candidates(logits, few.sharpness(vocabulary), rng), vocabulary)
        decided += found is not None
        assert full(logits) == (few(logits) if found is None else found)
    assert decided > 150


@pytest.mark.parametrize("options", ALL, ids=str)
def test_some_settings_need_all_logits(options):
    assert sampler(**{"temperature": 1.0, **options}).sharpness(3000) is None


def test_flat_logits_are_not_decided_by_a_few():
    draw, logits = sampler(1.0, top_p=0.9), np.zeros(5000, np.float32)
    assert draw.choose(*candidates(logits, 1.0, np.random.default_rng(0)), 5000) is None
    assert draw.choose(np.empty(0, np.int32), np.empty(0, np.float32), 1.0, 5000) is None
    assert sampler(1.0, min_p=0.5).choose(np.arange(256), logits[:256], 5000.0, 5000) is None


def test_broken_candidates_are_reported():
    with pytest.raises(MorendoError, match="the model computed nan as a logit"):
        sampler(1.0, top_k=5).choose(np.arange(3), np.full(3, np.nan, np.float32), 1.0, 9)


def open_c(library, vocabulary, options):
    out = ctypes.c_void_p()
    assert not library.mr_sampler_open(
        vocabulary, ctypes.byref(options), ctypes.c_uint64(9), ctypes.byref(out)
    )
    return out


@pytest.mark.parametrize("options", [(0, 1, 0, 1, 0), (0.8, 0.9, 0, 1.2, 5)], ids=str)
def test_c_draws_the_next_token(toy_artifact, options):
    library, session, next_ = load_library(toy_artifact), ctypes.c_void_p(), ctypes.c_int32(-5)
    logits, drawn = np.empty(toy.VOCABULARY, np.float32), ctypes.c_int32()
    assert not library.mr_open(str(toy_artifact).encode(), 1, ctypes.byref(session))
    ours, theirs = (open_c(library, toy.VOCABULARY, COptions(*options)) for _ in range(2))
    for position, token in enumerate((3, 1, 4)):
        assert not library.mr_decode(session, token, logits.ctypes.data)
        assert not library.mr_sample(
            theirs, ctypes.c_void_p(logits.ctypes.data), ctypes.byref(drawn)
        )
        assert not library.mr_set_position(session, position)
        assert not library.mr_decode_next(session, ours, token, ctypes.byref(next_))
        assert next_.value == drawn.value
        assert library.mr_position(session) == position + 1
    again = np.empty_like(logits)
    assert not library.mr_logits(session, again.ctypes.data)
    np.testing.assert_array_equal(logits, again)
    assert library.mr_decode_next(session, ours, -1, ctypes.byref(next_))
    library.mr_close(session)


def test_c_gives_no_token_of_broken_logits(toy_artifact):
    weights = toy_artifact / "weights.bin"
    weights.write_bytes(np.full(weights.stat().st_size // 4, np.nan, np.float32).tobytes())
    library, session, next_ = load_library(toy_artifact), ctypes.c_void_p(), ctypes.c_int32(-5)
    assert not library.mr_open(str(toy_artifact).encode(), 1, ctypes.byref(session))
    draw = open_c(library, toy.VOCABULARY, COptions(0, 1, 0, 1, 0))
    assert library.mr_decode_next(session, draw, 3, ctypes.byref(next_))
    assert library.mr_error() == b"the model computed a logit that is not finite"
    assert next_.value == -5
    library.mr_close(session)
