"""Tiny random models of every tested family, as Hugging Face directories."""

import logging
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

# pytest's log capture would have torch format a trace of every export.
logging.getLogger("torch.__trace").propagate = False

VOCABULARY = 96
COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_GROUPED = {"num_key_value_heads": 2}
_LAYERS = ["sliding_attention", "full_attention"]
_OPT = {"ffn_dim": 48, "word_embed_proj_dim": 32}
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "apertus": ("apertus", _GROUPED),
    "arcee": ("arcee", _GROUPED),
    "biogpt": ("biogpt", {}),
    "bitnet": ("bitnet", _GROUPED),
    "bloom": ("bloom", {"n_layer": 2, "n_head": 4}),
    "codegen": ("codegen", {"rotary_dim": 4}),
    "cohere": ("cohere", {**_GROUPED, "use_qk_norm": True, "logit_scale": 1.0}),
    "cohere2": (
        "cohere2",
        {**_GROUPED, "logit_scale": 1.0, "sliding_window": 4, "layer_types": _LAYERS},
    ),
    "ernie4_5": ("ernie4_5", {**_GROUPED, "head_dim": 8}),
    "exaone4": ("exaone4", {**_GROUPED, "sliding_window": 4, "layer_types": _LAYERS}),
    "gemma": ("gemma", {**_GROUPED, "head_dim": 16}),
    "gemma2": ("gemma2", {**_GROUPED, "head_dim": 16, "sliding_window": 4}),
    "gemma3": (
        "gemma3_text",
        {
            **_GROUPED,
            "head_dim": 8,
            "sliding_window": 4,
            "query_pre_attn_scalar": 16,
            "layer_types": _LAYERS,
        },
    ),
    "gemma4": (
        "gemma4_text",
        {
            **_GROUPED,
            "head_dim": 8,
            "global_head_dim": 16,
            "hidden_size_per_layer_input": 32,
            "vocab_size_per_layer_input": VOCABULARY,
            "sliding_window": 4,
            "layer_types": _LAYERS,
        },
    ),
    "glm": ("glm", {**_GROUPED, "head_dim": 8}),
    "glm4": ("glm4", {**_GROUPED, "head_dim": 8}),
    "gpt2": ("gpt2", {}),
    "gpt2_layer_scales": ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
    "gptj": ("gptj", {"rotary_dim": 4}),
    "granite": ("granite", {**_GROUPED, "residual_multiplier": 0.3, "logits_scaling": 3.0}),
    "gpt_neox": ("gpt_neox", {"rotary_pct": 0.5}),
    "helium": ("helium", {**_GROUPED, "head_dim": 8}),
    "hunyuan": ("hunyuan_v1_dense", {**_GROUPED, "head_dim": 8}),
    "internlm3": ("internlm3", {**_GROUPED, "head_dim": 8}),
    "jais2": ("jais2", _GROUPED),
    "llama": ("llama", {**_GROUPED, "tie_word_embeddings": True}),
    "llama3_rope": (
        "llama",
        {
            **_GROUPED,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16,
            },
        },
    ),
    "yarn_rope": (
        "llama",
        {
            **_GROUPED,
            "rope_parameters": _YARN,
        },
    ),
    "ministral": (
        "ministral",
        {**_GROUPED, "head_dim": 8, "sliding_window": 4, "layer_types": _LAYERS},
    ),
    "mistral": ("mistral", {**_GROUPED, "sliding_window": 5}),
    "nanochat": ("nanochat", _GROUPED),
    "nemotron": ("nemotron", _GROUPED),
    "olmo": ("olmo", {**_GROUPED, "clip_qkv": 0.5}),
    "olmo2": ("olmo2", _GROUPED),
    "olmo3": ("olmo3", {**_GROUPED, "sliding_window": 4, "layer_types": _LAYERS}),
    "opt": ("opt", _OPT),
    "opt_plain_norms": ("opt", {**_OPT, "layer_norm_elementwise_affine": False}),
    "persimmon": ("persimmon", {"partial_rotary_factor": 0.5}),
    "phi": ("phi", {"partial_rotary_factor": 0.5}),
    "phi3": ("phi3", _GROUPED),
    "qwen2": ("qwen2", _GROUPED),
    "qwen3": ("qwen3", {**_GROUPED, "head_dim": 8}),
    "seed_oss": ("seed_oss", {**_GROUPED, "head_dim": 8}),
    "smollm3": ("smollm3", {**_GROUPED, "no_rope_layers": [1, 0]}),
    "stablelm": ("stablelm", {**_GROUPED, "partial_rotary_factor": 0.5}),
    "stablelm_head_norms": ("stablelm", {**_GROUPED, "qk_layernorm": True}),
    "starcoder2": ("starcoder2", {**_GROUPED, "sliding_window": 4}),
    "vaultgemma": ("vaultgemma", {**_GROUPED, "head_dim": 16, "sliding_window": 4}),
}

# Options of `compile` for each precision at which every family is compiled to machine code.
PRECISIONS: dict[str, dict[str, Any]] = {
    "f32": {"bits": "f32"},
    "8": {"bits": 8},
    "4": {"bits": 4},
    "budget": {
        "average_bits": 3.0,
        "calibrate": "self",
        "calibration_windows": 2,
        "tuning_steps": 1,
    },
}
# The least that these tiny models can be compiled with is more than that: 2 bits take a group of 32
# channels and a tile of 16 rows where a part of a matrix has fewer.
LEAST_BITS = {"nanochat": 3.25}
# Compiled whenever the tests run; the others where the slow tests run too. At f32 one for each
# thing that is lowered in a way of its own: positions (learned, alibi, rope of all kinds), norms,
# windows, soft caps, gates, ops that stay generic.
COMPILED = {
    "f32": (
        *("apertus", "bloom", "gemma2", "gemma3", "gemma4", "glm", "gpt2", "gpt_neox", "llama"),
        *("mistral", "nanochat", "nemotron", "opt_plain_norms", "phi", "phi3", "qwen3", "smollm3"),
        *("stablelm_head_norms", "yarn_rope"),
    ),
    "8": ("bloom", "gpt2", "opt"),
    "4": ("gemma3", "gpt_neox", "phi3", "qwen3"),
    "budget": ("gpt2", "phi"),
}


def make_model(family: str, seed: int = 0) -> PreTrainedModel:
    """A random model in float32; no weight keeps its initial zero or one."""
    return _random_model(*FAMILIES[family], seed)


def _random_model(kind: str, options: dict[str, Any], seed: int) -> PreTrainedModel:
    config = AutoConfig.for_model(kind, **{**COMMON, **options})
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def save_model(family: str, directory: Path, seed: int = 0) -> PreTrainedModel:
    """The model, also written to a directory as safetensors."""
    return save_config(*FAMILIES[family], directory, seed)


def save_config(
    kind: str, options: dict[str, Any], directory: Path, seed: int = 0
) -> PreTrainedModel:
    """The same for a configuration that is no family of its own."""
    model = _random_model(kind, options, seed)
    model.save_pretrained(directory)
    return model
