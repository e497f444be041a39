"""The executable's sampler draws what it should, as often as it should."""

import ctypes
import subprocess
import sys

import numpy as np
import pytest

from morendo.codegen.link import RUNTIME_SOURCES, _environment

VOCABULARY, DRAWS = 600, 4000


class Sampling(ctypes.Structure):
    _fields_ = (
        ("temperature", ctypes.c_float),
        ("top_p", ctypes.c_float),
        ("min_p", ctypes.c_float),
        ("repetition_penalty", ctypes.c_float),
        ("top_k", ctypes.c_int),
    )


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    out = tmp_path_factory.mktemp("sampler") / "sampler.so"
    command = [sys.executable, "-m", "ziglang", "cc", "-std=c11", "-O2", "-shared", "-fPIC"]
    command += [f"-I{RUNTIME_SOURCES}", str(RUNTIME_SOURCES / "run" / "sampler.c"), "-o", str(out)]
    subprocess.run([*command, "-lm"], env=_environment(), check=True)
    return ctypes.CDLL(str(out))


class Sampler:
    def __init__(self, library, seed=1, **options):
        names = {"temperature": 1.0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}
        sampling = Sampling(**{**names, "top_k": 0, **options})
        self.library, self.state = library, ctypes.create_string_buffer(256)
        seed_, size = ctypes.c_uint64(seed), ctypes.c_int(VOCABULARY)
        assert library.sampler_start(self.state, sampling, seed_, size)

    def see(self, token):
        self.library.sampler_see(self.state, token)

    def draw(self, logits):
        logits = np.ascontiguousarray(logits, np.float32)
        return self.library.sampler_draw(self.state, logits.ctypes.data_as(ctypes.c_void_p))


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
    sampler.see(3)
    assert sampler.draw(logits) == 5
    sampler.see(5)
    assert sampler.draw(logits) == 3  # 2 / 1.5 against 1.5 / 1.5
    logits[[3, 5]] = -1.0, -1.1
    assert sampler.draw(logits) == 8  # what is negative grows more so


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_refused(library, value):
    logits = np.zeros(VOCABULARY)
    logits[5] = value
    assert Sampler(library).draw(logits) == -1


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
