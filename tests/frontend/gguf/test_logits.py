"""Every architecture of GGUF, and what its files may say of rope: logits are transformers'."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from morendo.frontend.checkpoint import open_checkpoint, open_weights
from morendo.frontend.float_model import FloatModel
from morendo.frontend.gguf import open_gguf, read_config
from morendo.frontend.torch_export import build_empty
from tests.frontend.tiny_gguf import save_gguf

_SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": None,
}
_GROUPED = {"num_key_value_heads": 2}
_PLAIN = {"rope_type": "default", "rope_theta": 10000.0}
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
}
_YARN_KEYS = {
    "rope.scaling.type": "yarn",
    "rope.scaling.factor": 4.0,
    "rope.scaling.original_context_length": 16,
}
_LINEAR = {"rope_type": "linear", "rope_theta": 500.0, "factor": 8.0}
_LINEAR_KEYS = {"rope.freq_base": 500.0, "rope.scaling.factor": 8.0}  # linear is the default
_LONG = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.5, 1.25, 1.0, 2.0],
    "long_factor": [3.0, 2.0, 1.0, 4.0],
    "original_max_position_embeddings": 32,
    "attention_factor": 1.25,
}
_LONG_TENSORS = {
    "rope_factors_short.weight": np.array(_LONG["short_factor"], np.float32),
    "rope_factors_long.weight": np.array(_LONG["long_factor"], np.float32),
}
_LONG_KEYS = {"rope.scaling.attn_factor": 1.25, "rope.scaling.original_context_length": 32}
# (GGUF architecture, Hugging Face's, its options, keys of the file, tensors of the file)
CASES: dict[str, tuple[Any, ...]] = {
    "llama": ("llama", "llama", {**_GROUPED, "rope_parameters": _PLAIN}, {}),
    "llama_biases": (
        "llama",
        "llama",
        {**_GROUPED, "head_dim": 16, "attention_bias": True, "mlp_bias": True},
        {"rope.dimension_count": 16},
    ),
    "llama_linear": ("llama", "llama", {**_GROUPED, "rope_parameters": _LINEAR}, _LINEAR_KEYS),
    "llama_old_linear": (
        "llama",
        "llama",
        {**_GROUPED, "rope_parameters": _LINEAR},
        {"rope.freq_base": 500.0, "rope.scale_linear": 8.0},
    ),
    "llama_unscaled": (
        "llama",
        "llama",
        {**_GROUPED, "rope_parameters": _PLAIN},
        {"rope.scaling.type": "none", "rope.scaling.factor": 8.0},
    ),
    "llama_yarn": ("llama", "llama", {**_GROUPED, "rope_parameters": _YARN}, _YARN_KEYS),
    "llama_yarn_details": (
        "llama",
        "llama",
        {
            **_GROUPED,
            "rope_parameters": {
                **_YARN,
                "attention_factor": 1.5 * (1 + 0.1 * np.log(4.0)),
                "beta_fast": 4.0,
                "beta_slow": 0.5,
            },
        },
        {
            **_YARN_KEYS,
            "rope.scaling.attn_factor": 1.5,
            "rope.scaling.yarn_beta_fast": 4.0,
            "rope.scaling.yarn_beta_slow": 0.5,
        },
    ),
    "llama_longrope": (
        "llama",
        "llama",
        {**_GROUPED, "rope_parameters": _LONG},
        _LONG_KEYS,
        _LONG_TENSORS,
    ),
    "mistral": (
        "llama",
        "mistral",
        {**_GROUPED, "sliding_window": 5},
        {"attention.sliding_window": 5},
    ),
    "qwen2_yarn": ("qwen2", "qwen2", {**_GROUPED, "rope_parameters": _YARN}, _YARN_KEYS),
    "qwen3_linear": (
        "qwen3",
        "qwen3",
        {**_GROUPED, "head_dim": 16, "rope_parameters": _LINEAR},
        _LINEAR_KEYS,
    ),
    "phi3_window": (
        "phi3",
        "phi3",
        {**_GROUPED, "sliding_window": 5},
        {"attention.sliding_window": 5},
    ),
    "phi3_partial": (
        "phi3",
        "phi3",
        {**_GROUPED, "rope_parameters": {**_PLAIN, "partial_rotary_factor": 0.75}},
        {"rope.dimension_count": 6},
    ),
    "phi3_longrope": (
        "phi3",
        "phi3",
        {**_GROUPED, "original_max_position_embeddings": 32, "rope_parameters": _LONG},
        _LONG_KEYS,
        _LONG_TENSORS,
    ),
    "gemma": ("gemma", "gemma", {**_GROUPED, "head_dim": 16}, {}),
    "gemma2": (
        "gemma2",
        "gemma2",
        {
            **_GROUPED,
            "head_dim": 16,
            "query_pre_attn_scalar": 16,
            "sliding_window": 4,
            "attn_logit_softcapping": 20.0,
        },
        {"attention.sliding_window": 4, "attn_logit_softcapping": 20.0},
    ),
    "gemma3_global_layers_scale": (
        "gemma3",
        "gemma3_text",
        {
            **_GROUPED,
            "num_hidden_layers": 7,
            "head_dim": 8,
            "query_pre_attn_scalar": 16,
            "sliding_window": 4,
            "rope_parameters": {
                "full_attention": _LINEAR,
                "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
            },
        },
        {
            **_LINEAR_KEYS,
            "rope.freq_base_swa": 300.0,
            "attention.sliding_window": 4,
            "attention.scale": 0.25,
        },
    ),
    "gemma3_pattern": (
        "gemma3",
        "gemma3_text",
        {
            **_GROUPED,
            "head_dim": 8,
            "query_pre_attn_scalar": 8,
            "sliding_window": 4,
            "layer_types": ["full_attention", "sliding_attention"],
        },
        {
            "rope.freq_base": 1e6,
            "attention.sliding_window": 4,
            "attention.sliding_window_pattern": [False, True],
        },
    ),
    "granite": (
        "granite",
        "granite",
        {
            **_GROUPED,
            "attention_multiplier": 0.25,
            "embedding_multiplier": 2.0,
            "residual_multiplier": 0.5,
            "logits_scaling": 3.0,
        },
        {
            "attention.scale": 0.25,
            "embedding_scale": 2.0,
            "residual_scale": 0.5,
            "logit_scale": 3.0,
        },
    ),
    "arcee": ("arcee", "arcee", {**_GROUPED, "rope_parameters": _YARN}, _YARN_KEYS),
    "exaone4": (
        "exaone4",
        "exaone4",
        {**_GROUPED, "sliding_window": None, "layer_types": ["full_attention"] * 2},
        {},
    ),
    "exaone4_window": (
        "exaone4",
        "exaone4",
        {**_GROUPED, "num_hidden_layers": 4, "sliding_window": 5, "sliding_window_pattern": 4},
        {"attention.sliding_window": 5},
    ),
    "olmo2": ("olmo2", "olmo2", _GROUPED, {}),
    "olmo3": (
        "olmo2",
        "olmo3",
        {
            **_GROUPED,
            "num_hidden_layers": 4,
            "sliding_window": 5,
            "rope_parameters": {
                "full_attention": _YARN,
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            },
        },
        {**_YARN_KEYS, "attention.sliding_window": 5},
    ),
    "seed_oss": ("seed_oss", "seed_oss", {**_GROUPED, "head_dim": 16}, {}),
    "smollm3": (
        "smollm3",
        "smollm3",
        {**_GROUPED, "num_hidden_layers": 5, "rope_parameters": _PLAIN},
        {},
    ),
    "gpt2": ("gpt2", "gpt2", {}, {}),
    "gpt2_own_head": ("gpt2", "gpt2", {"tie_word_embeddings": False}, {}),
    "bloom": ("bloom", "bloom", {"n_layer": 2, "n_head": 4}, {}),
    "gptneox": (
        "gptneox",
        "gpt_neox",
        {"rotary_pct": 0.5, "use_parallel_residual": False},
        {"rope.dimension_count": 4, "use_parallel_residual": False},
    ),
    "phi2": ("phi2", "phi", {"partial_rotary_factor": 0.5}, {"rope.dimension_count": 4}),
    "stablelm": (
        "stablelm",
        "stablelm",
        {**_GROUPED, "partial_rotary_factor": 0.5, "use_qkv_bias": True},
        {"rope.dimension_count": 4, "use_parallel_residual": True},
    ),
    "stablelm_parallel": (
        "stablelm",
        "stablelm",
        {**_GROUPED, "partial_rotary_factor": 0.25, "use_parallel_residual": True},
        {"rope.dimension_count": 2},
    ),
    "starcoder2": (
        "starcoder2",
        "starcoder2",
        {**_GROUPED, "sliding_window": 5},
        {"attention.sliding_window": 5},
    ),
    "nemotron": (
        "nemotron",
        "nemotron",
        {**_GROUPED, "partial_rotary_factor": 0.5},
        {"rope.dimension_count": 4},
    ),
}


def _random(kind: str, options: dict[str, Any]) -> PreTrainedModel:
    config = AutoConfig.for_model(kind, **{**_SIZES, **options})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.float()


def _from_file(path: Path, context: int | None = None) -> PreTrainedModel:
    opened = open_checkpoint(path)
    weights = open_weights(opened, build_empty(opened.config, context))
    return FloatModel(path, opened.config, weights, context=context).build()


@pytest.mark.parametrize("case", CASES)
def test_logits_are_transformers(tmp_path, case):
    architecture, kind, options, keys, *tensors = CASES[case]
    model = _random(kind, options)
    save_gguf(model, tmp_path / "m.gguf", architecture, keys, *tensors)
    ids = torch.randint(0, 96, (1, 60), generator=torch.Generator().manual_seed(0))
    for length in (20, 60):  # on both sides of longrope's original length
        found = _from_file(tmp_path / "m.gguf", context=length)
        assert found.config.model_type == kind
        with torch.no_grad():
            want, got = model(ids[:, :length]).logits, found(ids[:, :length]).logits
        torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)


def test_the_gemmas_of_27_billion(tmp_path):
    """Their scores are scaled by channels per head, which no key says; by the layers it shows."""
    path = tmp_path / "m.gguf"
    for architecture, kind, layers in (("gemma2", "gemma2", 46), ("gemma3", "gemma3_text", 62)):
        model = _random(kind, {**_GROUPED, "head_dim": 16})
        norms = {f"blk.{i}.attn_norm.weight": np.ones(32, np.float32) for i in range(2, layers)}
        save_gguf(model, path, architecture, {"block_count": layers}, norms)
        assert read_config(open_gguf(path)).query_pre_attn_scalar == 8
        save_gguf(model, path, architecture)
        assert read_config(open_gguf(path)).query_pre_attn_scalar == 16
