"""The parts of `morendo tune`, without a model: metrics, candidates, search, network, store."""

import itertools

import numpy as np
import pytest

from morendo.ir.errors import InputError
from morendo.runtime.schedule import Entropy, Fall, Learned
from morendo.runtime.step_cost import StepCost
from morendo.tuning.bound import Bound, Mean
from morendo.tuning.candidates import Candidate, Forecast, best_for_their_bytes, useful_levels
from morendo.tuning.metrics import rouge_l
from morendo.tuning.network import Network
from morendo.tuning.prompts import read_prompts
from morendo.tuning.search import bisect
from morendo.tuning.store import Store
from morendo.tuning.trials import Profile

COST = StepCost((100, 80, 80, 50), 200)


@pytest.mark.parametrize(
    ("got", "want", "score"),
    [
        ([1, 2, 3], [1, 2, 3], 1.0),
        ([], [], 1.0),
        ([], [1], 0.0),
        ([4, 5], [1, 2, 3], 0.0),
        ([1, 9, 3, 2], [1, 2, 3, 4], 0.5),  # 1 3, or 1 2
        ([2, 1, 2, 3], [1, 2, 3], 6 / 7),
    ],
)
def test_rouge_l(got, want, score):
    assert rouge_l(got, want) == pytest.approx(score)


def longest_common(a, b):
    """By the definition: the longest of the subsequences of one that are one of the other."""
    for size in range(min(len(a), len(b)), 0, -1):
        own = set(itertools.combinations(a, size))
        if own & set(itertools.combinations(b, size)):
            return size
    return 0


@pytest.mark.parametrize("seed", range(20))
def test_rouge_l_of_random_texts(seed):
    rng = np.random.default_rng(seed)
    a, b = (rng.integers(0, 4, rng.integers(1, 9)).tolist() for _ in range(2))
    assert rouge_l(a, b) == pytest.approx(2 * longest_common(a, b) / (len(a) + len(b)))


def test_levels_that_read_no_less_are_left_out():
    assert useful_levels(COST) == [0, 1, 3]
    with pytest.raises(
        InputError, match=r"one precision level, .* \(each of its 5 levels reads 7 B.*; compile it"
    ):
        useful_levels(StepCost((7,) * 5, 1))


@pytest.fixture
def forecast():
    """Two answers of 9 and 3 decode steps; level 1 loses 1 a step, level 3 loses 10."""
    doubts = np.linspace(0, 4, 9), np.array([0.1, 0.2, 4.5])
    profiles = [
        Profile(doubt, {1: np.full(len(doubt), 1.0), 3: np.full(len(doubt), 10.0)})
        for doubt in doubts
    ]
    return Forecast(profiles, COST, [0, 1, 3])


def test_forecast_of_falls(forecast):
    found = {candidate.schedule: candidate for candidate in forecast.falls()}
    assert len(found) == 5 * 6 // 2 - 1  # places 1, 2, 4, 8 and never; not never, never
    both = found[Fall(((2, 1), (4, 3)))]  # steps 1 | 2 3 | 4..9, and 1 | 2 3
    assert both.bytes == pytest.approx((2 * 100 + 4 * 80 + 6 * 50) / 12)
    assert both.loss == pytest.approx(4 * 1 + 6 * 10)
    assert found[Fall(((4, 3),))].loss == 60


def test_forecast_of_thresholds(forecast):
    found = {candidate.schedule: candidate for candidate in forecast.entropies()}
    thresholds = {schedule.threshold for schedule in found}
    assert len(found) == 2 * 4 * len(thresholds)
    threshold = max(t for t in thresholds if t < 4000)
    doubted = [nats > threshold / 1000 for nats in [*np.linspace(0, 4, 9), 0.1, 0.2, 4.5]]
    candidate = found[Entropy(Fall(((1, 3),)), threshold)]
    assert candidate.loss == pytest.approx(10 * (12 - sum(doubted)))
    assert candidate.bytes == pytest.approx((100 * sum(doubted) + 50 * (12 - sum(doubted))) / 12)


def test_a_margin_grows_with_the_spread_and_the_confidence():
    same, spread = Mean.of([0.95] * 16), Mean.of([1.0, 0.9] * 8)
    assert (same.value, same.error) == (pytest.approx(0.95), pytest.approx(0, abs=1e-12))
    assert spread.error == pytest.approx(0.05 * np.sqrt(16 / 15) / 4)
    assert Bound(0.9, 0.5).least(spread) == pytest.approx(0.95)
    # 0.8 and 0.95 of a normal distribution lie below 0.8416 and 1.6449 deviations
    assert Bound(0.9, 0.8).least(spread) == pytest.approx(0.95 - 0.8416 * spread.error, abs=1e-5)
    assert Bound(0.94, 0.8).kept(same)
    assert Bound(0.93, 0.8).kept(spread)
    assert not Bound(0.93, 0.95).kept(spread)
    assert Mean.of([0.7]) == Mean(0.7, 0.0)


def test_answers_without_a_step_are_refused():
    empty = Profile(np.empty(0), {1: np.empty(0), 3: np.empty(0)})
    with pytest.raises(InputError, match="the model ends all answers at once"):
        Forecast([empty], COST, [0, 1, 3])


def test_only_the_best_for_their_bytes_are_measured():
    points = [(5, 1), (1, 9), (3, 4), (2, 9), (4, 4), (3, 5)]
    front = best_for_their_bytes([Candidate(Fall(), *point) for point in points])
    assert [(c.bytes, c.loss) for c in front] == [(1, 9), (3, 4), (5, 1)]


@pytest.mark.parametrize("count", [1, 2, 7, 100])
def test_bisection_finds_the_least_that_keeps_the_bound(count):
    for least in range(count + 1):
        asked = []

        def keeps(index, least=least, asked=asked):
            asked.append(index)
            return index >= least

        assert bisect(count, keeps) == least
        assert asked[0] == count - 1
        assert len(asked) <= 2 + np.log2(count + 1)


def test_a_network_learns_and_is_written_as_it_is():
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    features = rng.normal(0, 1e-3, (60, 20))
    features[:, :3] += 0.01 * np.eye(3)[labels]
    features[:, 19] = 5  # says nothing
    network = Network(features, labels.tolist(), 3)
    chosen = network.scores(features).argmax(axis=1)
    assert np.array_equal(chosen, labels)
    falls = tuple(Fall(((1, level),)) for level in (1, 2, 3))
    schedule = Learned(0, 8, network.layers(np.zeros(3)), falls)
    assert [falls.index(schedule.choose(row)) for row in features] == labels.tolist()
    careful = Learned(0, 8, network.layers(np.array([1e4, 0, 0])), falls)
    assert {careful.choose(row) for row in features} == {falls[0]}


def test_a_rare_class_counts_as_much():
    """Where features say nothing, balanced classes are equally likely."""
    labels = [0] * 30 + [1] * 2
    network = Network(np.zeros((32, 4)), labels, 2)
    scores = network.scores(np.zeros((1, 4)))[0]
    assert scores[0] == pytest.approx(scores[1], abs=0.05)


def test_what_was_measured_is_there_again(tmp_path):
    path = tmp_path / "a" / "store.jsonl"
    Store(path).put("x", [1, 2.5])
    with path.open("a") as file:
        file.write('["y", 3')  # an end without warning
    store = Store(path)
    assert (store.get("x"), store.get("y"), store.problem) == ([1, 2.5], None, "")


def test_a_full_disk_is_no_error(tmp_path):
    (tmp_path / "a").write_text("a file where a folder should be")
    store = Store(tmp_path / "a" / "store.jsonl")
    store.put("x", 1)
    assert store.get("x") == 1
    assert "in" in store.problem


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", r"too few prompts \(got 0, need 2 or more\) at .*; write one a line"),
        (b"\n \n", r"too few prompts \(got 0, need"),
        (b"one\n\n", r"too few prompts \(got 1, need"),
        (b"one\ntw\xff\n", r"the prompts are not UTF-8 \(byte 6\) at .*; convert the file"),
    ],
)
def test_prompts_that_are_none(tmp_path, content, said):
    (tmp_path / "p.txt").write_bytes(content)
    with pytest.raises(InputError, match=said):
        read_prompts(tmp_path / "p.txt")


def test_prompts_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match="there is no such file of prompts at .*nothing"):
        read_prompts(tmp_path / "nothing")
    with pytest.raises(InputError, match="cannot read the prompts .Is a directory"):
        read_prompts(tmp_path)
