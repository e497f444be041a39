"""Tiny random models as exporters write them, and what onnxruntime computes from them."""

from __future__ import annotations

import inspect
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, PreTrainedModel

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


class _WithCache(torch.nn.Module):
    """The model as optimum traces it: keys and values of earlier tokens go in and come out."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Any, mask: Any, positions: Any, *past: Any) -> tuple[Any, ...]:
        pairs = tuple(zip(past[::2], past[1::2], strict=True))
        cache = DynamicCache(pairs, config=self.model.config)
        given = {"attention_mask": mask, "past_key_values": cache, "use_cache": True}
        if "position_ids" in inspect.signature(self.model.forward).parameters:
            given["position_ids"] = positions
        out = self.model(input_ids=ids, **given)
        present = [x for layer in cache.layers for x in (layer.keys, layer.values)]
        return out.logits, *present


def export_optimum(model: PreTrainedModel, folder: Path) -> Path:
    """The model in the form of optimum's text-generation-with-past: traced, with its names.

    optimum itself asks for another version of transformers.
    """
    path, config = folder / "model.onnx", model.config
    grouped = config.model_type not in ("gpt2", "opt")
    heads = config.num_key_value_heads if grouped else config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    names = [f"{i}.{kind}" for i in range(config.num_hidden_layers) for kind in ("key", "value")]
    past, ids = torch.zeros((1, heads, 3, size)), torch.ones((1, 4), dtype=torch.int64)
    inputs = {
        "input_ids": (ids, {0: "batch_size", 1: "sequence_length"}),
        "attention_mask": (torch.ones_like(ids).repeat(1, 2)[:, :7], {0: "batch_size", 1: "total"}),
        "position_ids": (torch.arange(3, 7)[None], {0: "batch_size", 1: "sequence_length"}),
    }
    axes = {0: "batch_size", 2: "past_sequence_length"}
    inputs |= {f"past_key_values.{name}": (past, axes) for name in names}
    outputs = ["logits", *(f"present.{name}" for name in names)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _WithCache(model),
            tuple(value for value, _ in inputs.values()),
            str(path),
            dynamo=False,
            input_names=list(inputs),
            output_names=outputs,
            dynamic_axes={name: free for name, (_, free) in inputs.items()},
            opset_version=18,
            do_constant_folding=True,
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
