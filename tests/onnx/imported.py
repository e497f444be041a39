"""Imported graphs, compared with onnxruntime."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np

from morendo.frontend.onnx.importer import ImportedOnnx, import_onnx
from morendo.ir.evaluate import evaluate
from morendo.ir.invariants import calls
from morendo.passes.base import Context
from morendo.passes.normalize import Normalize
from tests.onnx.exports import TOKENS, logits


def check_import(
    path: Path, longest: int = 64, atol: float = 1e-4
) -> tuple[ImportedOnnx, Counter[str]]:
    """Import, normalize and evaluate; gives the import and its dialect ops counted.

    Nothing may be left that the normalizer has no word for.
    """
    found = import_onnx(path, longest)
    context = Context(weights=found.weights)
    module = Normalize().apply(found.module, context)
    ids = np.random.default_rng(0).integers(0, min(found.vocabulary, 24), (1, TOKENS))
    got = evaluate(module["main"], [ids, np.arange(TOKENS)[None]], found.weights)
    want = logits(path, ids)
    assert abs(want).max() > 0.1
    np.testing.assert_allclose(got, want, atol=atol, rtol=1e-4)
    assert not context.report.misses
    return found, Counter(name for name, _ in calls(module))
