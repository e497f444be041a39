"""The passes that follow normalize do not change what a model computes."""

import numpy as np
import pytest

from morendo.frontend import load_model
from morendo.ir.dialect import OPS
from morendo.ir.evaluate import evaluate
from morendo.ir.evaluate_dialect import DIALECT
from morendo.passes.base import Context, parse_spec
from morendo.passes.pipeline import known_passes, run_passes
from tests.frontend.families import VOCABULARY, save_model

FUSED = "fuse-attention,fuse-linears,specialize-phases"
IDS = np.random.default_rng(1).integers(0, VOCABULARY, (1, 10))
POSITIONS = np.arange(10)[None]


def run(module, passes, weights):
    return run_passes(module, parse_spec(passes, known_passes()), Context(weights=weights))[0]


@pytest.mark.parametrize("family", ["bloom", "gemma3", "phi3"])
def test_phases_over_a_cache(family, tmp_path):
    save_model(family, tmp_path)
    loaded = load_model(tmp_path)
    weights = loaded.weights
    module = run(loaded.module, "normalize", weights)
    want = evaluate(module["main"], [IDS, POSITIONS], weights)
    phases = run(module, FUSED, weights)
    score = evaluate(phases["score"], [IDS, POSITIONS], weights)
    np.testing.assert_allclose(score, want, atol=1e-4)

    cache = {}
    first = evaluate(phases["prefill"], [IDS[:, :7], POSITIONS[:, :7]], weights, cache=cache)
    np.testing.assert_allclose(first, want[:, 6:7], atol=1e-4)
    for i in range(7, 10):
        one = [IDS[:, i : i + 1], POSITIONS[:, i : i + 1]]
        step = evaluate(phases["decode"], one, weights, cache=cache)
        np.testing.assert_allclose(step, want[:, i : i + 1], atol=1e-4)


def test_quantized_model_stays_near(tmp_path):
    save_model("llama", tmp_path)
    loaded = load_model(tmp_path)
    module = run(loaded.module, "normalize", loaded.weights)
    want = evaluate(module["main"], [IDS, POSITIONS], loaded.weights)
    spec = f"quantize-weights{{bits=8}},{FUSED},quantize-activations"
    quantized = run(module, spec, loaded.weights)
    got = evaluate(quantized["score"], [IDS, POSITIONS], loaded.weights)
    error = np.linalg.norm(got - want) / np.linalg.norm(want)
    assert 0 < error < 0.05


def test_every_op_has_a_meaning():
    assert set(DIALECT) == set(OPS)
