"""Families of every kind compiled to machine code: logits of the artifact against transformers'.

What all families mean is tested on their graphs (tests/frontend/test_families.py), which is faster.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import morendo
from tests.e2e.quality import torch_logits
from tests.frontend.families import COMPILED, QUANTIZED, VOCABULARY, save_model


@pytest.mark.parametrize("family", COMPILED)
def test_artifact_computes_what_transformers_does(family: str, tmp_path: Path) -> None:
    """float32, a text longer than a chunk and than the sliding windows: within 1e-4."""
    model = save_model(family, tmp_path / "model")
    artifact = morendo.compile(
        tmp_path / "model", bits="f32", out=tmp_path / "artifact", chunk=16, context=48
    )
    ids = np.random.default_rng().integers(VOCABULARY, size=41)
    want = torch_logits(model, ids)
    with morendo.load(artifact) as session:
        score = session.logits(ids)
        session.executor.set_position(0)
        prefill = session.executor.prefill(ids[:-1]).copy()
        decode = session.executor.decode(int(ids[-1]))
    tolerance = 1e-4 * max(1.0, np.abs(want).max())
    assert np.abs(score - want).max() < tolerance
    assert np.abs(prefill - want[-2]).max() < tolerance
    assert np.abs(decode - want[-1]).max() < tolerance


@pytest.mark.parametrize("family", QUANTIZED)
def test_quantized_artifact_stays_close(family: str, tmp_path: Path) -> None:
    """8-bit weights and activations behind layer norms, on weights of every size."""
    model = save_model(family, tmp_path / "model")
    artifact = morendo.compile(
        tmp_path / "model", bits=8, out=tmp_path / "artifact", chunk=16, context=48
    )
    ids = np.random.default_rng().integers(VOCABULARY, size=41)
    want = torch_logits(model, ids)
    with morendo.load(artifact) as session:
        got = session.logits(ids)
    assert np.linalg.norm(got - want) < 0.05 * np.linalg.norm(want)
