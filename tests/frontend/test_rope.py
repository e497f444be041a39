"""Rope whose frequencies depend on a text's length is settled for the artifact's context."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from morendo.frontend import load_model
from morendo.frontend.float_model import open_float_model
from morendo.ir.evaluate import evaluate
from morendo.progress import Progress
from morendo.quality.measure import _Measurement
from morendo.quality.reference import Reference
from tests.frontend.families import VOCABULARY, save_config

LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "original_max_position_embeddings": 16,
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [4.0, 5.0, 6.0, 7.0],
}
IDS = np.random.default_rng(0).integers(0, VOCABULARY, (1, 20))


def logits(folder: Path, context: int, tokens: int) -> tuple[np.ndarray, tuple[str, ...]]:
    loaded = load_model(folder, context)
    inputs = [IDS[:, :tokens], np.arange(tokens)[None]]
    return evaluate(loaded.module["main"], inputs, loaded.weights), loaded.notes


@pytest.fixture(scope="module")
def longrope(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.nn.Module]:
    folder = tmp_path_factory.mktemp("longrope")
    options = {"rope_parameters": LONGROPE, "original_max_position_embeddings": 16}
    return folder, save_config("phi3", options, folder)


@pytest.mark.parametrize(
    ("context", "tokens", "kind"), [(16, 12, "up to 16"), (64, 20, "the long factors")]
)
def test_longrope_has_the_factors_of_its_context(longrope, context, tokens, kind) -> None:
    folder, model = longrope
    with torch.no_grad():
        want = model(torch.tensor(IDS[:, :tokens])).logits.numpy()
    got, notes = logits(folder, context, tokens)
    np.testing.assert_allclose(got, want, atol=1e-4)
    assert any(kind in note for note in notes)


def test_the_float_model_has_the_same_factors(longrope) -> None:
    folder, _ = longrope
    got, _ = logits(folder, 64, 8)
    with torch.no_grad():
        want = open_float_model(folder, 64).build()(torch.tensor(IDS[:, :8])).logits.numpy()
    np.testing.assert_allclose(got, want, atol=1e-4)


def test_dynamic_rope_is_plain_within_the_context(tmp_path: Path) -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
    model = save_config("llama", {"rope_parameters": rope}, tmp_path)
    with torch.no_grad():
        want = model(torch.tensor(IDS)).logits.numpy()
    got, notes = logits(tmp_path, 64, 20)
    np.testing.assert_allclose(got, want, atol=1e-4)
    assert any("plain rope up to 64" in note for note in notes)


@pytest.mark.parametrize("kind", ["linear", "proportional"])
def test_other_kinds_are_buffers(kind: str, tmp_path: Path) -> None:
    part = 0.5 if kind == "proportional" else 1.0
    rope = {"rope_type": kind, "rope_theta": 10000.0, "factor": 4.0, "partial_rotary_factor": part}
    model = save_config("llama", {"rope_parameters": rope}, tmp_path)
    with torch.no_grad():
        want = model(torch.tensor(IDS)).logits.numpy()
    np.testing.assert_allclose(logits(tmp_path, 64, 20)[0], want, atol=1e-4)


@pytest.mark.parametrize("context", [16, 64])
def test_the_reference_of_an_artifact_has_its_factors(
    longrope, context: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logits kept for one context are not those of another."""
    folder, _ = longrope
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    ids = IDS[0, :8].astype(np.int32)
    for other in (80 - context, context):
        got = Reference(folder, True, Progress(), other).logits(ids)
    want, _ = logits(folder, context, 8)
    np.testing.assert_allclose(got, want[0, :-1], atol=1e-4)
    assert Reference(folder, True, Progress(), context).model.factors in ("short", "long")


def test_eval_opens_the_reference_at_the_context_that_was_asked_for(longrope) -> None:
    """An artifact's cache may be rounded up beyond the original length; its factors are not."""
    folder, _ = longrope
    facts = {"model": {"context": 16}, "tokenizer": {"vocabulary": VOCABULARY}}
    plan = SimpleNamespace(pruned=())
    session: Any = SimpleNamespace(manifest=facts, context=32, plan=plan)
    for asked, factors in ((16, "short"), (None, "long")):
        facts["model"] = {"context": asked} if asked else {}
        measure = _Measurement(session, IDS, 0, Progress())
        measure.open_reference(folder, cached=False, dequantized=False, any_reference=False)
        assert measure.reference.model.factors == factors
