"""The real model: the same text as transformers in float32, the stated error at 4 bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import morendo
from tests.e2e.quality import kl_divergence, round_linears, torch_logits

PROMPTS = (
    "The capital of France is",
    "Once upon a time",
    "def fibonacci(n):",
    "Water boils at",
    "The meaning of life",
)


@pytest.fixture(scope="module")
def torch_model(smollm2_file: Path):
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    return AutoModelForCausalLM.from_pretrained(
        smollm2_file.parent, gguf_file=smollm2_file.name, dtype=torch.float32
    ).eval()


def test_float_artifact_generates_what_transformers_does(
    smollm2_file: Path, torch_model, tmp_path: Path
) -> None:
    """64 greedy tokens of 5 prompts: each is the one that torch finds likeliest behind the others,
    which is to say that torch alone would have written the same text.
    """
    with morendo.load(morendo.compile(smollm2_file, bits="f32", out=tmp_path / "f32")) as session:
        for prompt in PROMPTS:
            ids = session.encode(prompt)
            written = list(session.generate(ids, max_tokens=64, ignore_eos=True))
            want = torch_logits(torch_model, ids + written[:-1])[len(ids) - 1 :].argmax(1)
            assert len(written) == 64
            assert written == want.tolist()


def test_4_bit_artifact_matches_dequantized_weights(
    smollm2_file: Path, torch_model, tmp_path: Path
) -> None:
    """Beside the weights' rounding there is only the error of int8 activations: a KL divergence
    below 0.005 nats from the torch model that holds the dequantized weights."""
    round_linears(torch_model, lambda name: "q8g32" if "embed" in name else "q4g32")
    artifact = morendo.compile(smollm2_file, out=tmp_path / "q4", search_scales=False)
    with morendo.load(artifact) as session:
        divergences = []
        for prompt in PROMPTS:
            ids = session.encode(prompt)
            ids += list(session.generate(ids, max_tokens=48, ignore_eos=True))
            divergences.append(kl_divergence(torch_logits(torch_model, ids), session.logits(ids)))
    assert np.mean(divergences) < 0.005
