"""Schedules: what may be one, the levels of an answer, and C against Python token by token."""

import ctypes
import itertools
import json
import math

import numpy as np
import pytest
import toy
from toy import LEVELS, VOCABULARY, WIDTH, toy_logits

from morendo.ir.errors import ArtifactError, InputError
from morendo.runtime.artifact import SCHEDULE
from morendo.runtime.executor import load_library
from morendo.runtime.schedule import (
    Entropy,
    Fall,
    Layer,
    Learned,
    describe_schedules,
    entropy,
    parse_schedules,
)
from morendo.runtime.session import Session
from morendo.runtime.stats import LevelRuns

IDS = [3, 1, 4, 1, 5, 9]
CACHE = 3  # the toy's tensor


def write_schedules(out, library, schedules, levels=LEVELS, **more):
    data = {**describe_schedules(schedules, levels, {}), **more}
    text = json.dumps(data)
    toy.write_toy(out, library, toy.toy_manifest(), lambda p: (p / SCHEDULE).write_text(text))
    return out


def random_fall(rng, levels=LEVELS, tokens=10):
    count = int(rng.integers(0, levels))
    at = sorted(rng.choice(np.arange(1, tokens), count, replace=False).tolist())
    to = sorted(rng.choice(np.arange(1, levels), count, replace=False).tolist())
    return Fall(tuple(zip(at, to, strict=True)))


def random_network(rng, window):
    sizes = [WIDTH, *rng.integers(1, 9, int(rng.integers(0, 3))).tolist(), 3]
    layers = [
        Layer(
            tuple(map(tuple, rng.integers(-90000, 90000, (after, before)).tolist())),
            tuple(rng.integers(-90000, 90000, after).tolist()),
        )
        for before, after in itertools.pairwise(sizes)
    ]
    return Learned(CACHE, window, tuple(layers), tuple(random_fall(rng) for _ in range(3)))


def c_levels(directory, name, ids, tokens):
    """The levels that the C runtime computes `tokens` with, after a prefill of `ids`."""
    library = load_library(directory)
    session, schedule = ctypes.c_void_p(), ctypes.c_void_p()
    path, logits = str(directory).encode(), np.empty(VOCABULARY, np.float32)
    at = ctypes.c_void_p(logits.ctypes.data)
    prompt = np.asarray(ids, np.int32)
    assert not library.mr_open(path, 1, ctypes.byref(session))
    try:
        code = library.mr_schedule_open(session, path, name.encode(), ctypes.byref(schedule))
        assert not code, library.mr_error().decode()
        assert not library.mr_schedule_begin(schedule)
        assert library.mr_level(session) == 0
        assert not library.mr_prefill(session, prompt.ctypes.data, len(prompt), at)
        levels = []
        for token in tokens:
            assert not library.mr_schedule_next(schedule, at), library.mr_error().decode()
            levels.append(library.mr_level(session))
            assert not library.mr_decode(session, token, at)
        return levels
    finally:
        library.mr_schedule_close(schedule)
        library.mr_close(session)


def c_refusal(directory, name):
    """What the C runtime says of a schedule that it refuses."""
    library = load_library(directory)
    session, schedule = ctypes.c_void_p(), ctypes.c_void_p()
    assert not library.mr_open(str(directory).encode(), 1, ctypes.byref(session))
    path = str(directory).encode()
    code = library.mr_schedule_open(session, path, name.encode(), ctypes.byref(schedule))
    said = library.mr_error().decode()
    library.mr_close(session)
    assert code
    assert not schedule
    return said


def spread(runs: LevelRuns) -> list[int]:
    return [level for level, steps in runs.runs for _ in range(steps)]


@pytest.mark.parametrize("seed", range(12))
def test_c_and_python_choose_the_same_levels(toy_library, tmp_path, seed):
    rng = np.random.default_rng(seed)
    schedules = {
        "static": random_fall(rng),
        "entropy": Entropy(random_fall(rng), int(rng.integers(1000, 3600))),
        "learned": random_network(rng, window=int(rng.integers(1, 9))),
    }
    artifact = write_schedules(tmp_path / "a", toy_library, schedules)
    ids = rng.integers(0, VOCABULARY, int(rng.integers(1, 8))).tolist()
    for executor in ("c", "python"):
        with Session(artifact, threads=1, executor=executor) as session:
            for name in [*schedules, "fixed:0", "fixed:2"]:
                options = {"max_tokens": 12, "ignore_eos": True, "temperature": 2.0, "seed": seed}
                tokens = list(session.generate(ids, schedule=name, **options))
                levels = spread(session.stats.levels)
                assert len(levels) == 11
                assert c_levels(artifact, name, ids, tokens[:-1]) == levels, name


@pytest.mark.parametrize("executor", ["c", "python"])
def test_levels_compute_what_they_say(toy_library, tmp_path, executor):
    fall = Fall(((2, 1), (4, 2)))
    artifact = write_schedules(tmp_path / "a", toy_library, {"static": fall})
    ids = list(IDS)
    for token in range(7):
        ids.append(int(np.argmax(toy_logits(ids, fall.level(token))[-1])))
    with Session(artifact, executor=executor) as session:
        session.set_level(1)  # which the prefill does not heed, and which is there afterwards
        got = list(session.generate(IDS, max_tokens=7, ignore_eos=True, schedule="static"))
        assert got == ids[len(IDS) :]
        assert str(session.stats.levels) == "0 x1, 1 x2, 2 x3"
        assert np.allclose(session.logits(IDS), toy_logits(IDS, 1), atol=1e-5)


def test_without_a_schedule_the_level_is_the_sessions(toy_artifact):
    with Session(toy_artifact) as session:
        session.set_level(2)
        for schedule in (None, "off"):
            list(session.generate(IDS, max_tokens=4, ignore_eos=True, schedule=schedule))
            assert str(session.stats.levels) == "2 x3"


def test_means_of_the_cache(toy_artifact):
    table = toy.toy_weights()[IDS].astype(np.float64)
    for executor in ("c", "python"):
        with Session(toy_artifact, executor=executor) as session:
            session.executor.prefill(IDS)
            for window in (1, 4, 6, 100):
                got = session.executor.cache_means(CACHE, window)
                assert got.dtype == np.float64
                np.testing.assert_allclose(got, table[-window:].mean(axis=0), rtol=1e-12)
            for tensor in (-1, 0, 1, 99):
                with pytest.raises(InputError, match=f"tensor {tensor} is no cache of one row"):
                    session.executor.cache_means(tensor, 4)
            session.executor.set_position(0)
            with pytest.raises(InputError, match="no tokens to take the mean of .got 0, the last"):
                session.executor.cache_means(CACHE, 4)


def test_entropy_is_what_the_definition_says():
    rng = np.random.default_rng(0)
    for size in (1, 5, 37, 1000, 50000):
        logits = rng.normal(0, 4, size).astype(np.float32)
        p = np.exp(logits.astype(np.float64) - logits.max())
        p /= p.sum()
        assert entropy(logits) == pytest.approx(-(p * np.log(p)).sum(), abs=2e-4)
    assert entropy(np.zeros(64, np.float32)) == pytest.approx(math.log(64))


def test_runs_of_levels_are_shown_compactly():
    runs = LevelRuns()
    for level in [0, 0, 1, 2, 2, 2]:
        runs.add(level)
    assert str(runs) == "0 x2, 1 x1, 2 x3"
    assert runs.counts == {0: 2, 1: 1, 2: 3}
    for _ in range(10):
        runs.add(0)
        runs.add(1)
    assert str(runs).endswith("0 x1, ... 11 more")


@pytest.mark.parametrize(
    ("switches", "match"),
    [
        (((0, 1),), "a switch is at token 1 or later, to level 1 or more .got 0, 1."),
        (((3, 0),), "to level 1 or more .got 3, 0."),
        (((3, 1), (3, 2)), "switches must be in order .got token 3 after 3."),
        (((3, 2), (5, 1)), "a schedule may not rise .got level 1 after 2 at token 5."),
    ],
)
def test_a_schedule_only_falls(switches, match):
    with pytest.raises(InputError, match=match):
        Fall(switches)


def test_files_say_what_was_written():
    rng = np.random.default_rng(1)
    schedules = {
        "static": random_fall(rng),
        "entropy": Entropy(Fall(((1, 2),)), 700),
        "learned": random_network(rng, 8),
    }
    text = json.dumps(describe_schedules(schedules, LEVELS, {}))
    assert parse_schedules(json.loads(text), LEVELS) == schedules


NETWORK = {
    "cache": CACHE,
    "window": 4,
    "layers": [{"weights": [[1] * WIDTH] * 2, "bias": [0, 0]}],
    "choices": [{"switches": []}, {"switches": [[1, 2]]}],
}


def learned(**changes):
    return {"learned": {**NETWORK, **changes}}


@pytest.mark.parametrize(
    ("kind", "data", "said", "c_said"),
    [
        ("static", {"version": 2}, "another version .got 2.", "bad version"),
        ("static", {"levels": 5}, "for another artifact .got 5 levels, need 3.", "need 3 levels"),
        ("static", {"static": {"switches": [[2, 2], [4, 1]]}}, "may not rise", "may only fall"),
        ("static", {"static": {"switches": [[2, 1], [1, 2]]}}, "in order", "may only fall"),
        ("static", {"static": {"switches": [[2, 3]]}}, "no such level 3", "within the artifact"),
        ("static", {"static": {"switches": [[2]]}}, "a token and a level", "may only fall"),
        ("static", {"static": {"switches": [[2, 0.5]]}}, "must be an integer", "may only fall"),
        ("static", {"static": {}}, "static.switches is missing", "bad switches"),
        (
            "entropy",
            {"entropy": {"switches": [], "threshold": -1}},
            "entropy.threshold must be a count .got -1.",
            "bad threshold",
        ),
        ("learned", learned(layers=[]), "do not fit its choices", "bad network"),
        ("learned", learned(choices=[{"switches": []}]), "do not fit its choices", "bad choices"),
        ("learned", learned(window="a"), "learned.window must be a count", "bad network"),
        (
            "learned",
            learned(layers=[{"weights": [[1] * WIDTH, [1]], "bias": [0, 0]}]),
            "layers do not fit each other",
            "bad weights",
        ),
        (
            "learned",
            learned(layers=[{"weights": [[1] * WIDTH] * 2, "bias": [0]}]),
            "layers do not fit each other",
            "bad bias",
        ),
        (
            "learned",
            learned(layers=[*NETWORK["layers"], {"weights": [[1] * 3] * 2, "bias": [0, 0]}]),
            "layers do not fit each other",
            "bad layer",
        ),
    ],
)
def test_damaged_files_are_refused(toy_library, tmp_path, kind, data, said, c_said):
    artifact = write_schedules(tmp_path / "a", toy_library, {}, **data)
    with Session(artifact) as session:
        with pytest.raises(ArtifactError, match=f"schedule.json .*{said}.*; run morendo tune"):
            session.generate(IDS, schedule=kind)
    assert c_said in c_refusal(artifact, kind)


def test_what_is_no_json_is_refused(toy_library, tmp_path):
    toy.write_toy(
        tmp_path / "a",
        toy_library,
        toy.toy_manifest(),
        lambda p: (p / SCHEDULE).write_text('{"version": 1,'),
    )
    with Session(tmp_path / "a") as session:
        with pytest.raises(ArtifactError, match="schedule.json is damaged"):
            session.schedule("static")
    assert c_refusal(tmp_path / "a", "static").startswith("schedule.json: a key is missing")


def test_a_network_of_another_model_is_refused(toy_library, tmp_path):
    layers = [{"weights": [[1] * 4] * 2, "bias": [0, 0]}]
    artifact = write_schedules(tmp_path / "a", toy_library, {}, **learned(layers=layers))
    with Session(artifact) as session:
        with pytest.raises(ArtifactError, match="the network takes 4 numbers .need 5."):
            next(session.generate(IDS, schedule="learned"))


@pytest.mark.parametrize(
    ("name", "said", "c_said"),
    [
        ("static", "the artifact has no static schedule; make one with: morendo tune", "no sched"),
        ("learned", "no learned schedule; .* --prompts FILE --learned", "has no schedules; make"),
        ("slow", "unknown schedule .got slow, need static, entropy, learned, fixed", "got slow"),
        ("fixed:3", "fixed schedule is out of range .got 3, need 0 to 2.", "got 3, need 0 to 2"),
        ("fixed:", "fixed schedule is out of range .got , need 0 to 2.", "got , need 0 to 2"),
        ("fixed:-1", "fixed schedule is out of range .got -1, need 0", "got -1, need 0 to 2"),
    ],
)
def test_unknown_schedules_are_refused(toy_artifact, name, said, c_said):
    with Session(toy_artifact) as session:
        with pytest.raises(InputError, match=said):
            session.generate(IDS, schedule=name)
    assert c_said in c_refusal(toy_artifact, name)


def test_another_kind_than_there_is(toy_library, tmp_path):
    artifact = write_schedules(tmp_path / "a", toy_library, {"static": Fall(((1, 2),))})
    with Session(artifact) as session:
        with pytest.raises(InputError, match="the artifact has no entropy schedule"):
            session.schedule("entropy")
    assert "has no entropy schedule; make one with: morendo tune" in c_refusal(artifact, "entropy")


def test_an_unlisted_file_of_schedules_is_refused(toy_artifact):
    (toy_artifact / SCHEDULE).write_text("{}")
    with pytest.raises(ArtifactError, match=r"schedule.json is there, but manifest.json does not"):
        Session(toy_artifact)


def test_next_needs_a_begun_answer(toy_artifact):
    library = load_library(toy_artifact)
    session, schedule = ctypes.c_void_p(), ctypes.c_void_p()
    path = str(toy_artifact).encode()
    assert not library.mr_open(path, 1, ctypes.byref(session))
    assert not library.mr_schedule_open(session, path, b"fixed:1", ctypes.byref(schedule))
    assert not library.mr_schedule_needs_logits(schedule)
    assert library.mr_schedule_next(schedule, None)
    assert b"the schedule has not begun an answer" in library.mr_error()
    library.mr_schedule_close(schedule)
    library.mr_close(session)
