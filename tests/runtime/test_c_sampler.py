"""The C runtime's sampler draws what it should, as often as it should."""

import ctypes

import numpy as np
import pytest
from c_sampling import COptions

from morendo.runtime.sampling import Sampler as PythonSampler
from morendo.runtime.sampling import SamplingSettings

VOCABULARY, DRAWS = 600, 4000


@pytest.fixture(scope="module")
def library(toy_library):
    found = ctypes.CDLL(str(toy_library))
    found.mr_error.restype = ctypes.c_char_p
    found.mr_sampler_close.argtypes = [ctypes.c_void_p]
    return found


class Refused(Exception):
    pass


class Sampler:
    def __init__(self, library, seed=1, vocabulary=VOCABULARY, **options):
        neutral = {"temperature": 1.0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}
        sampling = COptions(**{**neutral, "top_k": 0, **options})
        self.library, self.state = library, ctypes.c_void_p()
        self._check(
            library.mr_sampler_open(
                vocabulary, ctypes.byref(sampling), ctypes.c_uint64(seed), ctypes.byref(self.state)
            )
        )

    def __del__(self):
        self.library.mr_sampler_close(self.state)

    def _check(self, code):
        if code:
            raise Refused(code, self.library.mr_error().decode())

    def see(self, *tokens):
        ids = (ctypes.c_int32 * len(tokens))(*tokens)
        self._check(self.library.mr_sampler_see(self.state, ids, len(tokens)))

    def forget(self):
        self.library.mr_sampler_forget(self.state)

    def draw(self, logits):
        logits, drawn = np.ascontiguousarray(logits, np.float32), ctypes.c_int32(-1)
        values = logits.ctypes.data_as(ctypes.c_void_p)
        self._check(self.library.mr_sample(self.state, values, ctypes.byref(drawn)))
        return drawn.value


def reference(logits, seen=(), temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, penalty=1.0):
    """The probabilities, by transformers' definitions."""
    logits = logits.astype(np.float64).copy()
    for token in seen:
        logits[token] = logits[token] / penalty if logits[token] > 0 else logits[token] * penalty
    order = np.argsort(-logits, kind="stable")
    kept = order[: top_k or None]
    weights = np.exp((logits[kept] - logits.max()) / temperature)
    count = (
        int(np.searchsorted(np.cumsum(weights), top_p * weights.sum())) + 1 if top_p < 1 else None
    )
    kept, weights = kept[:count], weights[:count]
    weights[weights < min_p] = 0
    probabilities = np.zeros(len(logits))
    probabilities[kept] = weights / weights.sum()
    return probabilities


def random_logits(seed, spread=3.0):
    return np.random.default_rng(seed).normal(size=VOCABULARY).astype(np.float32) * spread


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 2.0},  # a flat one: top-p then needs more than the first 256
        {"top_k": 5},
        {"top_k": 700},
        {"top_p": 0.8},
        {"top_p": 0.99, "temperature": 2.0},
        {"min_p": 0.1},
        {"top_k": 50, "top_p": 0.9, "min_p": 0.02, "temperature": 0.8},
    ],
)
def test_distribution(library, options):
    logits = random_logits(3)
    sampler, want = Sampler(library, **options), reference(logits, **options)
    drawn = np.bincount([sampler.draw(logits) for _ in range(DRAWS)], minlength=VOCABULARY)
    assert not drawn[want == 0].any()
    expected = DRAWS * want
    likely = expected >= 5
    rest = expected[~likely].sum()
    squares = ((drawn[likely] - expected[likely]) ** 2 / expected[likely]).sum()
    if rest > 0:
        squares += (drawn[~likely].sum() - rest) ** 2 / rest
    freedom = max(int(likely.sum()), 1)
    assert squares < freedom + 5 * np.sqrt(2 * freedom) + 5  # chi-squared, seeded


def test_greedy_takes_the_first_of_the_likeliest(library):
    logits = np.zeros(VOCABULARY)
    logits[[40, 7]] = 2.0
    assert Sampler(library, temperature=0.0).draw(logits) == 7


def test_repetition_penalty(library):
    logits = np.full(VOCABULARY, -9.0)
    logits[3], logits[5], logits[8] = 2.0, 1.5, -1.0
    sampler = Sampler(library, temperature=0.0, repetition_penalty=1.5)
    assert sampler.draw(logits) == 3
    assert sampler.draw(logits) == 5  # what was drawn counts
    assert sampler.draw(logits) == 3  # 2 / 1.5 against 1.5 / 1.5
    sampler.forget()
    sampler.see(3, 3)
    assert sampler.draw(logits) == 5
    logits[[3, 5]] = -1.0, -1.1
    assert sampler.draw(logits) == 8  # what is negative grows more so


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_refused(library, value):
    logits = np.zeros(VOCABULARY)
    logits[5] = value
    with pytest.raises(Refused, match="3, 'the model computed a logit that is not finite"):
        Sampler(library).draw(logits)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, "temperature is out of range .got -1, need a finite number of 0"),
        ({"temperature": np.nan}, "temperature is out of range .got -?nan"),
        ({"temperature": np.inf}, "temperature is out of range .got inf"),
        ({"top_p": 0.0}, "top_p is out of range .got 0, need above 0 and at most 1"),
        ({"top_p": 1.5}, "top_p is out of range .got 1.5"),
        ({"min_p": -0.5}, "min_p is out of range .got -0.5, need 0 to 1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is out of range .got 0, need a finite"),
        ({"repetition_penalty": np.inf}, "repetition_penalty is out of range .got inf"),
        ({"top_k": -1}, "top_k is out of range .got -1, need 0 or more"),
        ({"vocabulary": 0}, "the vocabulary is out of range .got 0, need 1 or more"),
    ],
)
def test_settings_out_of_range(library, options, message):
    with pytest.raises(Refused, match=f"1, '{message}"):
        Sampler(library, **options)


@pytest.mark.parametrize("token", [-1, VOCABULARY])
def test_tokens_outside_of_the_vocabulary_are_not_seen(library, token):
    sampler = Sampler(library, temperature=0.0, repetition_penalty=9.0)
    with pytest.raises(Refused, match=f"token at place 1 is not in the .* .got id {token}, voc"):
        sampler.see(3, token)
    assert sampler.draw(np.eye(VOCABULARY)[3]) == 3


@pytest.mark.parametrize("seed", [0, 1, 2**63])
def test_bounds_are_those_of_python(library, seed):
    """Where bounds leave one token, both samplers have to take it."""
    for number in range(40):
        logits = random_logits(number)
        options = {"temperature": 0.7, "top_p": 1e-6, "repetition_penalty": 1.4}
        prompt = [int(i) for i in np.argsort(-logits)[:3]]
        ours = Sampler(library, seed, **options)
        ours.see(*prompt)
        settings = SamplingSettings(**options)
        assert ours.draw(logits) == PythonSampler(settings, seed, prompt)(logits)


def test_logits_of_minus_infinity_are_never_drawn(library):
    logits = np.full(VOCABULARY, -np.inf)
    logits[[4, 9]] = 0.0
    sampler = Sampler(library, top_p=0.999)
    assert {sampler.draw(logits) for _ in range(100)} == {4, 9}


def test_seed_decides(library):
    logits = random_logits(5)
    first, again, other = (
        [s.draw(logits) for _ in range(20)]
        for s in (Sampler(library, 4), Sampler(library, 4), Sampler(library, 5))
    )
    assert first == again != other
