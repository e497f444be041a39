"""Text that a model writes: what is drawn, by distributions that whole windows give as well."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from morendo import calibration_text
from morendo.ir.errors import CompileError
from morendo.ir.evaluate_dialect import State
from morendo.passes.base import Context
from morendo.passes.normalize import Normalize
from morendo.passes.pipeline import run_passes
from morendo.passes.streaming import writer
from morendo.passes.streaming.float_weights import FloatWeights
from morendo.passes.streaming.torch_ops import TORCH_RULES, TorchFunction, attention
from morendo.passes.streaming.writer import RULES, _Cache, write_windows
from morendo.progress import Progress

from .test_fast_ops import OPTIONS, SLOPES

LENGTH = 12


@pytest.fixture(scope="module")
def function(loaded) -> TorchFunction:
    module, _ = run_passes(loaded.module, [Normalize()], Context(weights=loaded.weights))
    return TorchFunction(module["main"])


@pytest.fixture
def exact(monkeypatch) -> None:
    monkeypatch.setattr(writer, "fastest_dtype", lambda: torch.float32)


def write(function: TorchFunction, loaded, first: list[int], temperature: float = 1.0):
    track = Progress().task
    return write_windows(
        function, loaded.weights, np.array(first), LENGTH, track, temperature=temperature
    )


def test_without_chance_each_token_is_the_likeliest(function, loaded, exact) -> None:
    """By logits of the whole window; windows that are written together do not see each other."""
    windows = write(function, loaded, [5, 77, 300], 1e-6)
    for window in windows:
        logits = function(FloatWeights(loaded.weights), window)
        assert np.array_equal(window[1:], logits.argmax(-1)[:-1])
    alone = write(function, loaded, [77], 1e-6)
    assert np.array_equal(alone[0], windows[1])


def test_tokens_are_drawn_by_their_likelihood(function, loaded, exact) -> None:
    """The second tokens of many windows that begin alike."""
    count = 4000
    parts = torch.softmax(function(FloatWeights(loaded.weights), np.array([5]))[0], -1).numpy()
    writes = write_windows(
        function, loaded.weights, np.full(count, 5), 2, Progress().task, temperature=1.0
    )
    found = np.bincount(writes[:, 1], minlength=len(parts)) / count
    assert np.abs(found - parts).max() < 5 * 0.5 / np.sqrt(count)


def test_few_windows_at_once_when_keys_and_values_are_large(
    function, loaded, exact, monkeypatch
) -> None:
    together = write(function, loaded, [5, 77, 300], 1e-6)
    monkeypatch.setattr(writer, "CACHE_BYTES", 1)
    assert np.array_equal(write(function, loaded, [5, 77, 300], 1e-6), together)


@pytest.mark.parametrize("options", OPTIONS)
def test_attention_token_by_token(options: dict[str, Any], exact) -> None:
    """Two windows of 17 tokens against attention of each one whole."""
    tokens, attrs = 17, {"scale": 0.3, "window": 0, "softcap": 0.0, "alibi": "", **options}
    rng = np.random.default_rng()
    q, k, v = (
        torch.from_numpy(rng.normal(size=(2, tokens, heads, 8)).astype(np.float32))
        for heads in (4, 2, 2)
    )
    cache = _Cache({"slopes": SLOPES}, tokens)  # type: ignore[arg-type]
    state: Any = State(cache)  # type: ignore[arg-type]
    got = torch.full_like(q, torch.nan)
    for cache.position in range(tokens):
        at = (values[:, cache.position][None] for values in (q, k, v))
        got[:, cache.position] = RULES["attention"](state, {**attrs, "layer": 3}, *at)[0]
    slopes = torch.from_numpy(SLOPES) if attrs["alibi"] else None
    for index in range(2):
        one = slice(index, index + 1)
        want = attention(attrs, q[one], k[one], v[one], slopes)
        assert torch.allclose(got[index], want[0], atol=1e-5)


@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.1.mlp.up_proj.weight"])
def test_a_weight_that_is_not_finite_is_named(function, loaded, name: str) -> None:
    class Damaged:
        def get(self, wanted: str) -> np.ndarray:
            values = loaded.weights.get(wanted)
            return np.full_like(values, np.nan) if wanted == name else values

        def rows(self, wanted: str, rows: slice | np.ndarray) -> np.ndarray:
            return self.get(wanted)[rows]

    with pytest.raises(CompileError, match=f"weight is not finite .* at {name}"):
        write_windows(function, Damaged(), np.array([5]), LENGTH, Progress().task)


def test_a_model_that_overflows_is_refused(function, loaded) -> None:
    class Large:
        def get(self, name: str) -> np.ndarray:
            return loaded.weights.get(name) * np.float32(1e38 if name == "model.norm.weight" else 1)

        def rows(self, name: str, rows: slice | np.ndarray) -> np.ndarray:
            return self.get(name)[rows]

    with pytest.raises(CompileError, match="logits are not finite"):
        write_windows(function, Large(), np.array([5]), LENGTH, Progress().task)


def test_a_model_that_is_too_large_is_compiled_and_writes_one_by_one(
    loaded, tmp_path, monkeypatch
) -> None:
    import morendo

    from .test_streaming import TINY

    compiled = []

    def compile_model(folder):
        compiled.append(folder)
        return morendo.compile(TINY, bits=8, out=folder)

    monkeypatch.setattr(calibration_text, "WINDOW", LENGTH)
    together = calibration_text.write_windows(loaded, compile_model, 2, Progress())
    assert not compiled
    monkeypatch.setattr(calibration_text, "MEMORY", 0)
    one_by_one = calibration_text.write_windows(loaded, compile_model, 2, Progress())
    assert len(compiled) == 1 and not compiled[0].exists()
    assert together.shape == one_by_one.shape == (2, LENGTH)
    assert np.array_equal(together[:, 0], one_by_one[:, 0])


def test_only_attention_differs_from_whole_windows() -> None:
    assert {name for name in RULES if RULES[name] is not TORCH_RULES[name]} == {"attention"}
