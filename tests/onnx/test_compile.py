"""Imported models compiled to machine code and run."""

from pathlib import Path

import numpy as np
from transformers import AutoModelForCausalLM

import morendo
from tests.e2e.conftest import TINY
from tests.onnx.exports import VOCABULARY, logits, make_model, with_exact_products
from tests.onnx.genai import export_genai
from tests.onnx.graphs import HEADS, WIDTH, Builder, rotary_tables


def _check_artifact(path: Path, vocabulary: int, tmp_path: Path) -> None:
    """All phases within 1e-4 of onnxruntime, on a text longer than chunks and windows."""
    artifact = morendo.compile(path, bits="f32", out=tmp_path / "artifact", chunk=16, context=48)
    ids = np.random.default_rng().integers(vocabulary, size=41)
    want = logits(path, ids[None])[0]
    with morendo.load(artifact) as session:
        score = session.logits(ids)
        session.executor.set_position(0)
        prefill = session.executor.prefill(ids[:-1]).copy()
        decode = session.executor.decode(int(ids[-1]))
    tolerance = 1e-4 * max(1.0, np.abs(want).max())
    assert np.abs(score - want).max() < tolerance
    assert np.abs(prefill - want[-2]).max() < tolerance
    assert np.abs(decode - want[-1]).max() < tolerance


def test_model_of_the_genai_builder(tmp_path):
    _check_artifact(export_genai(make_model("phi"), tmp_path), 100, tmp_path)


def test_graph_with_interleaved_rotations_and_a_window(tmp_path):
    b = Builder()
    size = WIDTH // HEADS
    cos, sin = (b.store(table) for table in rotary_tables(size))
    q, k, v = (b.linear(b.x, rows) for rows in (WIDTH, 2 * size, 2 * size))
    last = b.op("Cast", [b.op("Sub", [b.tokens(), b.store(np.array([1]))])], to=6)
    total = b.op("Cast", [b.op("Squeeze", [b.tokens()])], to=6)
    attrs = {"num_heads": HEADS, "kv_num_heads": 2, "local_window_size": 7, "softcap": 3.0}
    rotary = {"do_rotary": 1, "rotary_interleaved": 1}
    inputs = [q, k, v, "", "", last, total, cos, sin]
    y = b.ms("GroupQueryAttention", inputs, outputs=3, **attrs, **rotary)[0]
    _check_artifact(b.save(b.op("Add", [b.x, y]), tmp_path), 24, tmp_path)


def test_codes_of_an_exporter_can_be_calibrated(tmp_path):
    """Under a budget, on a text: nothing on the way asks for a checkpoint."""
    model = AutoModelForCausalLM.from_pretrained(TINY)
    path = with_exact_products(export_genai(model, tmp_path, "int8"))
    text = tmp_path / "text.txt"
    words = np.random.default_rng(0).integers(5, VOCABULARY, 600)
    text.write_text(" ".join(f"w{i}" for i in words))
    artifact = morendo.compile(
        path, out=tmp_path / "artifact", average_bits=4.2, calibrate=text, calibration_windows=1
    )
    ids = np.random.default_rng(0).integers(5, VOCABULARY, size=33)
    want = logits(path, ids[None])[0]
    with morendo.load(artifact) as session:
        got = session.logits(ids)
    assert np.linalg.norm(got - want) < 0.2 * np.linalg.norm(want)
