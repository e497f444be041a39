"""Prompts whose tokens are pruned on the way: every phase, executor and turn on the small llama."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import morendo
from morendo.debug import debug
from morendo.frontend import load_model
from morendo.ir.errors import InputError
from morendo.ir.evaluate import evaluate
from morendo.ir.plan import row_caches
from morendo.ir.text import parse_module
from morendo.runtime.artifact import GRAPH, read_plan
from morendo.runtime.executor import CExecutor, Executor
from morendo.runtime.interpreter import PythonExecutor
from morendo.runtime.session import Session
from tests.e2e.conftest import TINY, target_cases

SHARE = 0.3
IDS = np.random.default_rng(3).integers(2, 512, size=77)
Turns = list[tuple[str, int]]
TURNS: Turns = [
    *[("prefill", 50), ("decode", 51), ("score", 57), ("prefill", 59)],
    *[("prefill", 60), ("prefill", 70), ("decode", 71), ("score", 77)],
]
"""(function, where it ends): turns, calls of one and two tokens, and of more than a chunk of 32."""


def said(executor: Executor, turns: Turns) -> list[np.ndarray]:
    """The logits of every turn."""
    found = []
    for function, end in turns:
        ids = IDS[executor.position : end]
        given = int(ids[0]) if function == "decode" else ids
        found.append(np.array(getattr(executor, function)(given)).reshape(-1, 512))
    return found


class Meant:
    """What the graph of an artifact means."""

    def __init__(self, artifact: Path) -> None:
        self.module = parse_module((artifact / GRAPH).read_text(encoding="utf-8"))
        self.weights, self.cache = load_model(TINY).weights, {}

    def said(self, turns: Turns, chunk: int = 32) -> list[np.ndarray]:
        found, start = [], 0
        for function, end in turns:
            rows = [
                self._call(function, at, min(at + chunk, end)) for at in range(start, end, chunk)
            ]
            found.append(np.concatenate(rows) if function == "score" else rows[-1])
            start = end
        return found

    def _call(self, function: str, start: int, end: int) -> np.ndarray:
        inputs = [IDS[None, start:end], np.arange(start, end)[None]]
        return evaluate(self.module[function], inputs, self.weights, cache=self.cache)[0]


@pytest.fixture(scope="module")
def artifact(compile_tiny: Callable[..., Path]) -> Path:
    return compile_tiny(bits="f32", prune_tokens=SHARE)


@pytest.fixture(scope="module")
def meant(artifact: Path) -> tuple[list[np.ndarray], dict]:
    """(logits of the turns, what each layer's cache holds behind them)."""
    meaning = Meant(artifact)
    return meaning.said(TURNS), meaning.cache


@pytest.mark.parametrize("kind", ["c", "python"])
def test_every_phase_computes_what_the_graph_means(artifact: Path, meant, kind: str) -> None:
    executor = CExecutor(artifact, 2) if kind == "c" else PythonExecutor(artifact, 1, poison=True)
    with_stages = [cache[1].shape[1] for _, cache in sorted(meant[1].items())]
    assert with_stages[:2] == [77, 77]
    assert 77 > with_stages[2] > with_stages[3] > 50
    for got, want in zip(said(executor, TURNS), meant[0], strict=True):
        assert np.abs(got - want).max() < 2e-5
    executor.close()


def test_a_text_goes_back_to_where_a_prefill_began(artifact: Path) -> None:
    for executor in (CExecutor(artifact, 1), PythonExecutor(artifact, 1)):
        first = said(executor, TURNS)
        for position in (65, 40, 1):
            with pytest.raises(InputError, match=f"position {position} lies within a prefill"):
                executor.set_position(position)
        assert executor.position == 77
        for position in (72, 60, 59, 58, 57, 55, 50, 32):  # chunks are prefills of their own
            executor.set_position(position)
        executor.set_position(0)
        np.testing.assert_array_equal(np.concatenate(said(executor, TURNS)), np.concatenate(first))
        executor.set_position(57)
        for got, want in zip(said(executor, TURNS[3:]), first[3:], strict=True):
            np.testing.assert_array_equal(got, want)
        executor.close()


def test_means_of_a_cache_are_of_the_tokens_that_it_holds(artifact: Path, meant) -> None:
    layers = row_caches(read_plan(artifact))
    for executor in (CExecutor(artifact, 1), PythonExecutor(artifact, 1)):
        said(executor, TURNS)
        for layer, tensor in enumerate(layers):
            values = meant[1][layer][1][0]  # (tokens, heads, width)
            for window in (7, 1000):
                want = values[-window:].mean(axis=0).reshape(-1)
                np.testing.assert_allclose(
                    executor.cache_means(tensor, window), want, rtol=1e-4, atol=1e-5
                )
        executor.close()


def test_executors_agree_at_all_levels_and_with_schedules(
    compile_tiny: Callable[..., Path],
) -> None:
    artifact = compile_tiny(bits=4, cache_bits=8, prune_tokens=SHARE, prune_importance="received")
    found: dict[str, list] = {}
    for kind in ("c", "python"):
        with Session(artifact, executor=kind) as session:  # type: ignore[arg-type]
            options = {"max_tokens": 9, "temperature": 0.0, "ignore_eos": True}
            texts = [list(session.generate(IDS[:60], schedule="fixed:2", **options))]
            for level in range(session.executor.levels):
                session.set_level(level)
                texts.append(list(session.generate(IDS[:45], **options)))
            found[kind] = texts
    assert found["c"] == found["python"]
    assert all(len(text) == 9 for text in found["c"])


def test_debug_finds_no_wrong_op(artifact: Path) -> None:
    report = debug(artifact, str(TINY), IDS.tolist())
    assert report.first_wrong is None
    checks = [c for c in report.checks if c.op == "prune_tokens"]
    assert len(checks) == 2 * 3  # in each of three chunks
    assert all(c.excess == 0 for c in checks)


def test_score_sees_all_tokens(artifact: Path, compile_tiny: Callable[..., Path]) -> None:
    with morendo.load(artifact) as session, morendo.load(compile_tiny(bits="f32")) as whole:
        np.testing.assert_array_equal(session.logits(IDS), whole.logits(IDS))
        pruned, full = session.logits(IDS, prompt=60), whole.logits(IDS, prompt=60)
        assert pruned.shape == full.shape == (18, 512)
        np.testing.assert_allclose(full, whole.logits(IDS)[59:], atol=2e-5)
        assert 1e-3 < np.abs(pruned - full).max() < 10
        assert np.array_equal(session.logits(IDS[:60], prompt=60), pruned[:1])
        with pytest.raises(InputError, match="prompt is out of range .got 78, need 0 to 77."):
            session.logits(IDS, prompt=78)


@pytest.mark.slow
@pytest.mark.parametrize("target", target_cases(["arm", "arm-v8.0", "arm-i8mm", "hexagon:v67"]))
def test_other_machines_prune_alike(target: str, compile_tiny: Callable[..., Path]) -> None:
    options = {"bits": 4, "cache_bits": 8, "prune_tokens": SHARE}
    turns = TURNS[:3]
    with morendo.load(compile_tiny(**options)) as session:
        want = said(session.executor, turns)
    try:
        other = morendo.load(compile_tiny(target=target, **options))
    except morendo.ArtifactError as error:
        pytest.skip(f"compiled, but cannot run here: {error}")
    with other as session:
        for got, meant in zip(said(session.executor, turns), want, strict=True):
            assert np.linalg.norm(got - meant) < 0.02 * np.linalg.norm(meant)
        with pytest.raises(InputError, match="position 40 lies within a prefill"):
            session.executor.set_position(40)
