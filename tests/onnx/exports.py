"""Tiny random models as exporters write them, and what onnxruntime computes from them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

VOCABULARY = 104
CONTEXT = 64
TOKENS = 11
_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_GEMMA = {"head_dim": 16, "sliding_window": 4, "query_pre_attn_scalar": 20}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"tie_word_embeddings": True}),
    "mistral": ("mistral", {"sliding_window": 5}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "gemma": ("gemma", {"head_dim": 16}),
    "gemma2": ("gemma2", {**_GEMMA, "attn_logit_softcapping": 2.0}),
    "gemma3": (
        "gemma3_text",
        {**_GEMMA, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "phi": (
        "phi",
        {"partial_rotary_factor": 0.5, "hidden_size": 128, "num_key_value_heads": 4},
    ),
    "phi3": ("phi3", {"original_max_position_embeddings": CONTEXT, "sliding_window": None}),
    "gpt2": ("gpt2", {}),
    "gpt_neox": ("gpt_neox", {"rotary_pct": 0.5}),
    "bloom": ("bloom", {"n_layer": 2, "n_head": 4}),
    "opt": ("opt", {"ffn_dim": 80, "word_embed_proj_dim": 64}),
}


def make_model(family: str, attention: str = "sdpa") -> PreTrainedModel:
    """A random model in float32; no weight keeps its initial zero or one."""
    kind, options = FAMILIES[family]
    config = AutoConfig.for_model(kind, **{**_COMMON, **options})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        config, dtype=torch.float32, attn_implementation=attention
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


class _Logits(torch.nn.Module):
    """The model from ids, and positions where it takes them, to logits, without a cache."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, **positions: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=input_ids, use_cache=False, **positions).logits


def export_torch(model: PreTrainedModel, folder: Path, opset: int = 18) -> Path:
    """The model by torch.onnx.export, its length free."""
    path = folder / "model.onnx"
    ids = torch.zeros((1, 7), dtype=torch.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _Logits(model),
            (ids,),
            path,
            dynamo=True,
            input_names=["input_ids"],
            output_names=["logits"],
            dynamic_shapes={"input_ids": {1: torch.export.Dim("n", min=2, max=CONTEXT)}},
            opset_version=opset,
            verbose=False,
        )
    return path


def logits(path: Path, ids: np.ndarray) -> np.ndarray:
    """What onnxruntime computes for ids (1, n), with an empty cache where there is one."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    # Its rewritings would round activations to 8 bits where weights are dequantized.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    types = {"int64": np.int64, "int32": np.int32, "float": np.float32, "float16": np.float16}
    known = {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "position_ids": np.arange(ids.shape[1])[None],
    }
    feeds = {}
    for value in session.get_inputs():
        dtype = types[value.type.removeprefix("tensor(").removesuffix(")")]
        if value.name in known:
            feeds[value.name] = known[value.name].astype(dtype)
        else:
            heads, size = value.shape[1], value.shape[3]
            size = size if isinstance(size, int) else _head_dim(path)
            feeds[value.name] = np.zeros((1, heads, 0, size), dtype)
    return session.run(["logits"], feeds)[0].astype(np.float32)


def with_exact_products(path: Path) -> Path:
    """The model with products of codes computed in float32, not with rounded activations."""
    model = onnx.load_model(path, load_external_data=False)
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == "MatMulNBits" and attribute.name == "accuracy_level":
                attribute.i = 1
    path.write_bytes(model.SerializeToString())
    return path


def _head_dim(path: Path) -> int:
    import json

    facts = json.loads((path.parent / "genai_config.json").read_text())
    return int(facts["model"]["decoder"]["head_size"])
