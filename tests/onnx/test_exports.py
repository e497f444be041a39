"""Models of every family as exporters write them, against onnxruntime."""

import json

import pytest

from morendo.frontend import load_model
from tests.onnx.exports import (
    TOKENS,
    VOCABULARY,
    export_optimum,
    export_torch,
    make_model,
    with_exact_products,
)
from tests.onnx.genai import export_genai
from tests.onnx.imported import check_import

# rope, gated, attention of two layers
_COUNTS = {"bloom": (0, 0, 2), "gpt2": (0, 0, 2), "opt": (0, 0, 2), "phi": (4, 0, 2)}
BUILDER = {
    "llama": ("llama", "fp32"),
    "qwen2": ("qwen2", "fp32"),
    "qwen3": ("qwen3", "fp32"),
    "gemma": ("gemma", "fp32"),
    "phi": ("phi", "fp32"),
    "phi3": ("phi3", "fp32"),
    "separate": ("llama", "fp32", "fuse_qkv=false"),
    "codes": ("llama", "int4"),
    "zeros": ("llama", "int4", "int4_is_symmetric=false"),
    "shared": ("llama", "int4", "shared_embeddings=true"),
    "int8": ("llama", "int8"),
}
# The embedding's rows are the head's: one weight.
_ONE_TABLE = ("llama", "gemma", "separate", "codes", "zeros", "shared")
TORCH = {"gemma3": ("eager", 18), "gpt2": ("eager", 18), "qwen3": ("sdpa", 23), "phi": ("sdpa", 18)}
TORCH |= {"bloom": ("eager", 18)}


def _check_counts(family, counts):
    got = tuple(counts[name] for name in ("rope", "gated", "attention"))
    assert got == _COUNTS.get(family, (4, 2, 2))


@pytest.mark.parametrize("case", BUILDER)
def test_model_of_the_genai_builder(case, tmp_path):
    family, precision, *options = BUILDER[case]
    path = with_exact_products(export_genai(make_model(family), tmp_path, precision, *options))
    found, counts = check_import(path)
    _check_counts(family, counts)
    names = found.weights.names()
    assert "model.layers.1.self_attn.o_proj.weight" in names
    assert not [name for name in names if "/" in name or "MatMul" in name or "_Q" in name]
    assert ("model.embed_tokens.weight" not in names) == (case in _ONE_TABLE)


def test_half_precision_is_widened(tmp_path):
    """onnxruntime rounds what the imported graph does not."""
    path = export_genai(make_model("llama"), tmp_path, "fp16")
    _, counts = check_import(path, atol=0.03)
    _check_counts("llama", counts)


@pytest.mark.parametrize("family", TORCH)
def test_model_of_torch_onnx(family, tmp_path):
    attention, opset = TORCH[family]
    path = export_torch(make_model(family, attention), tmp_path, opset)
    found, counts = check_import(path)
    _check_counts(family, counts)
    last = {
        "bloom": "h.1.mlp.dense_4h_to_h.weight",
        "gpt2": "h.1.mlp.c_proj.weight",
        "phi": "layers.1.mlp.fc2.weight",
    }
    last = last.get(family, "layers.1.mlp.down_proj.weight")
    assert any(name.endswith(last) for name in found.weights.names())


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi", "mistral", "qwen3", "opt"])
def test_model_in_the_form_of_optimum(family, tmp_path):
    found, counts = check_import(export_optimum(make_model(family), tmp_path))
    _check_counts(family, counts)
    assert found.longest >= TOKENS


def test_folder_gives_tokenizer_context_and_special_tokens(tmp_path):
    path = export_genai(make_model("llama"), tmp_path)
    facts = json.loads((path.parent / "genai_config.json").read_text())
    facts["model"] |= {"context_length": 48, "eos_token_id": [2, 7]}
    (path.parent / "genai_config.json").write_text(json.dumps(facts))
    loaded = load_model(path.parent)
    assert (loaded.name, loaded.architecture, loaded.vocabulary) == (
        "model.onnx",
        "llama",
        VOCABULARY,
    )
    assert (loaded.context, loaded.bos, loaded.eos, loaded.stop) == (48, 1, 2, (2, 7))
    assert loaded.tokenizer is not None
    assert loaded.tokenizer.library.encode("w5 w9").ids == [5, 9]
    assert not loaded.notes
