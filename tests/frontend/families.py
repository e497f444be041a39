"""Tiny random models of every supported family, as Hugging Face directories."""

import logging
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

# pytest's log capture would have torch format a trace of every export.
logging.getLogger("torch.__trace").propagate = False

VOCABULARY = 96
_COMMON = {
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
FAMILIES = {
    "bloom": ("bloom", {"n_layer": 2, "n_head": 4}),
    "gemma3": (
        "gemma3_text",
        {
            **_GROUPED,
            "head_dim": 8,
            "sliding_window": 4,
            "query_pre_attn_scalar": 16,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    "gpt2": ("gpt2", {}),
    "gpt_neox": ("gpt_neox", {"rotary_pct": 0.5}),
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
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 16,
            },
        },
    ),
    "mistral": ("mistral", {**_GROUPED, "sliding_window": 5}),
    "olmo2": ("olmo2", _GROUPED),
    "opt": ("opt", {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "phi": ("phi", {"partial_rotary_factor": 0.5}),
    "phi3": ("phi3", _GROUPED),
    "qwen2": ("qwen2", _GROUPED),
    "qwen3": ("qwen3", {**_GROUPED, "head_dim": 8}),
    "smollm3": ("smollm3", {**_GROUPED, "no_rope_layers": [1, 0]}),
    "stablelm": ("stablelm", {**_GROUPED, "partial_rotary_factor": 0.5}),
}


def make_model(family: str, seed: int = 0) -> PreTrainedModel:
    """A random model in float32; no weight keeps its initial zero or one."""
    kind, options = FAMILIES[family]
    config = AutoConfig.for_model(kind, **{**_COMMON, **options})
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def save_model(family: str, directory: Path, seed: int = 0) -> PreTrainedModel:
    """The model, also written to a directory as safetensors."""
    model = make_model(family, seed)
    model.save_pretrained(directory)
    return model
