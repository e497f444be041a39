"""`eval --reference` takes the model that was compiled, and says so where it cannot know it."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from morendo.ir.errors import InputError
from morendo.quality import evaluate

from .conftest import TINY

TEXT = (TINY.parents[2] / "docs" / "artifact_format.md").read_text(encoding="utf-8")
OPTIONS = {"window": 64, "windows": 1, "levels": [0], "cached": False}


@pytest.fixture
def artifact(compile_tiny: Callable[..., Path]) -> Path:
    return compile_tiny(bits=4)


def copy_of_tiny(folder: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """The small llama with another embedding, without its tokenizer."""
    weights = load_file(TINY / "model.safetensors")
    table = weights["model.embed_tokens.weight"] = change(weights["model.embed_tokens.weight"])
    save_file(weights, folder / "model.safetensors")
    facts = {**json.loads((TINY / "config.json").read_text()), "vocab_size": len(table)}
    (folder / "config.json").write_text(json.dumps(facts))


def test_another_model_is_refused(artifact, tmp_path):
    copy_of_tiny(tmp_path, lambda table: table.astype(np.float32))  # the same numbers
    assert not evaluate(artifact, TEXT, reference=tmp_path, **OPTIONS).notes
    copy_of_tiny(tmp_path, lambda table: np.where(np.eye(512, 128, dtype=bool), 0, table))
    with pytest.raises(InputError, match="model.embed_tokens.weight differs.*--any-reference"):
        evaluate(artifact, TEXT, reference=tmp_path, **OPTIONS)
    report = evaluate(artifact, TEXT, reference=tmp_path, any_reference=True, **OPTIONS)
    assert report.notes == [
        "the reference is not the model that was compiled: model.embed_tokens.weight differs"
    ]


def test_an_artifact_that_does_not_say_its_model(artifact):
    path = artifact / "manifest.json"
    content = path.read_text()
    manifest = json.loads(content)
    assert len(manifest["model"].pop("digests")) > 10
    try:
        path.write_text(json.dumps(manifest))
        report = evaluate(artifact, TEXT, reference=TINY, **OPTIONS)
    finally:
        path.write_text(content)
    assert "does not say which weights" in report.notes[0]


def test_another_vocabulary_is_refused(artifact, tmp_path):
    copy_of_tiny(tmp_path, lambda table: table[:500])
    with pytest.raises(InputError, match=r"another vocabulary .* \(got 500, need 512\)"):
        evaluate(artifact, TEXT, reference=tmp_path, **OPTIONS)
