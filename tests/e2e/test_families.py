"""Families of every kind compiled to machine code: logits of the artifact against what they should
be, at every precision.

What all families mean is tested on their graphs (tests/frontend/test_families.py), which is faster.
At `f32` the truth is transformers' model; below, the same model with the weights that the artifact
holds, so that what rounding costs is no part of the difference.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import morendo
from morendo.progress import Progress
from morendo.quality.dequantized import DequantizedWeights
from morendo.quality.reference import Reference
from tests.e2e.quality import torch_logits
from tests.frontend.families import (
    COMPILED,
    FAMILIES,
    LEAST_BITS,
    PRECISIONS,
    VOCABULARY,
    save_model,
)

TOKENS = 41  # longer than a chunk and than the sliding windows
ROUNDED = 0.05  # of the logits' norm: activations have 8 bits, keys and values 16


def _case(family: str, precision: str) -> Any:
    fast = family in COMPILED[precision]
    marks = [] if fast else [pytest.mark.slow]
    return pytest.param(family, precision, id=f"{family}-{precision}", marks=marks)


@pytest.mark.parametrize(
    ("family", "precision"), [_case(f, p) for f in FAMILIES for p in PRECISIONS]
)
def test_artifact_computes_what_its_weights_say(
    family: str, precision: str, tmp_path: Path
) -> None:
    model = save_model(family, tmp_path / "model")
    options = dict(PRECISIONS[precision])
    if precision == "budget" and family in LEAST_BITS:
        options["average_bits"] = LEAST_BITS[family]
    artifact = morendo.compile(
        tmp_path / "model", out=tmp_path / "artifact", chunk=16, context=48, **options
    )
    ids = np.random.default_rng(1).integers(VOCABULARY, size=TOKENS)
    if precision != "f32":
        reference = Reference(tmp_path / "model", False, Progress())
        model = reference.with_weights_of(DequantizedWeights(artifact), level=0)
    want = torch_logits(model, ids)
    with morendo.load(artifact) as session:
        score = session.logits(ids)
        session.executor.set_position(0)
        prefill = session.executor.prefill(ids[:-1]).copy()
        decode = session.executor.decode(int(ids[-1]))
    if precision == "f32":
        tolerance = 1e-4 * max(1.0, np.abs(want).max())
        assert np.abs(score - want).max() < tolerance
    else:
        tolerance = 0.01 * np.abs(want).max()  # a code of an activation may fall the other way
        assert np.linalg.norm(score - want) < ROUNDED * np.linalg.norm(want)
    assert np.abs(prefill - score[-2]).max() < tolerance
    assert np.abs(decode - score[-1]).max() < tolerance
