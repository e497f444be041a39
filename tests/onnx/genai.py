"""Tiny random models by the model builder of onnxruntime-genai."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tests.onnx.exports import VOCABULARY


def export_genai(
    model: PreTrainedModel, folder: Path, precision: str = "fp32", *options: str
) -> Path:
    """The model by the builder, with a tokenizer of one word for each id."""
    builder = pytest.importorskip(
        "onnxruntime_genai.models.builder", reason="onnxruntime-genai has no wheel here"
    )
    source = folder / "hf"
    model.save_pretrained(source)
    words = {f"w{i}": i for i in range(VOCABULARY)}
    library = Tokenizer(WordLevel(words, unk_token="w3"))
    library.pre_tokenizer = Whitespace()
    special = {"bos_token": "w1", "eos_token": "w2", "pad_token": "w0"}
    PreTrainedTokenizerFast(tokenizer_object=library, **special).save_pretrained(source)
    out, cache = folder / "out", folder / "cache"
    common = None, str(source), str(out), precision, "cpu", str(cache)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        builder.create_model(*common, **builder.parse_extra_options(*common, list(options)))
    return out / "model.onnx"
