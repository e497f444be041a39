"""A GGUF file's metadata as the configuration that Hugging Face has for the same model.

Each architecture reads the keys that llama.cpp reads for it. Whatever else stands under the
architecture's name is refused, unless it is known to change nothing (`metadata.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from morendo.ir.errors import InputError

from ..config_values import no_experts
from .metadata import CHECKPOINT_INSTEAD, Metadata
from .rope import rope_parameters
from .split import GgufFile

Fields = dict[str, Any]
_RMS, _LAYER_NORM = "attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"
_ENDS = ("eos", "eot", "eom")  # of a text, of a turn, of a message to a tool


def read_config(file: GgufFile) -> PreTrainedConfig:
    """The Hugging Face configuration of the model in a file.

    Raises:
        InputError: for an architecture that is not known here, keys that are missing or of the
            wrong type, and keys that change the function in a way that is not supported.
    """
    metadata = Metadata(file)
    experts = metadata.raw("expert_count", 0)
    if any(experts if isinstance(experts, list) else [experts]):
        raise no_experts(
            f"GGUF key {metadata.prefix}expert_count = {experts!r:.40}", str(file.path)
        )
    build = BUILDERS.get(file.architecture)
    if build is None:
        raise InputError(
            f"the GGUF architecture {file.architecture!r} is not supported",
            where=str(file.path),
            hint=f"supported: {', '.join(sorted(BUILDERS))}",
        )
    fields = build(metadata)
    metadata.finish()
    fields |= _special_ids(file)
    try:
        return AutoConfig.for_model(**fields)
    except Exception as error:  # transformers validates with many types
        said = " ".join(str(error).split())
        raise InputError(
            f"the GGUF file's configuration is not valid ({said})",
            where=str(file.path),
            hint=CHECKPOINT_INSTEAD,
        ) from error


def end_ids(file: GgufFile) -> list[int]:
    """Ids that end a text, a turn or a message, each once."""
    keys = Metadata(file, "tokenizer.ggml.")
    names = [f"{name}_token_id" for name in _ENDS]
    return list(dict.fromkeys(keys.integer(name) for name in names if name in keys))


def _special_ids(file: GgufFile) -> Fields:
    keys = Metadata(file, "tokenizer.ggml.")
    return {
        f"{name}_token_id": keys.integer(f"{name}_token_id", None) for name in ("bos", "eos")
    } | {"pad_token_id": None}


def _skeleton(metadata: Metadata, model_type: str) -> Fields:
    """What all decoders have."""
    file = metadata.file
    heads = metadata.count("attention.head_count")
    size = metadata.count("embedding_length")
    if size % heads and "attention.key_length" not in metadata:
        raise metadata.error(f"{size} channels do not divide into {heads} heads")
    kv_heads = metadata.count("attention.head_count_kv", heads)
    if heads % kv_heads:
        raise metadata.error(f"{heads} heads cannot share the keys and values of {kv_heads}")
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None:
        raise metadata.error("the GGUF file has no tensor token_embd.weight")
    layers = metadata.count("block_count")
    if layers > len(file.tensors):
        raise metadata.error(
            f"GGUF key {metadata.prefix}block_count is {layers}, "
            f"need 1 to {len(file.tensors)}, the tensors of the file"
        )
    return {
        "model_type": model_type,
        "num_hidden_layers": layers,
        "hidden_size": size,
        "intermediate_size": metadata.count("feed_forward_length"),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": metadata.count("context_length"),
        "vocab_size": embedding.shape[0],
        "tie_word_embeddings": "output.weight" not in file.tensors,
    }


def _head_size(metadata: Metadata, fields: Fields) -> int:
    """Channels of a head, the same for queries, keys and values."""
    default = fields["hidden_size"] // fields["num_attention_heads"]
    head = metadata.count("attention.key_length", default)
    metadata.require("attention.value_length", head)
    return head


def _rotary(metadata: Metadata, fields: Fields, partial: bool = False) -> Fields:
    """`head_dim` and `rope_parameters`; where `partial`, a part of each head may be rotated."""
    head = _head_size(metadata, fields)
    if partial:
        rotated = metadata.count("rope.dimension_count", head)
    else:
        metadata.require("rope.dimension_count", head)
        rotated = head
    rope = rope_parameters(metadata, rotated, fields["max_position_embeddings"])
    if partial:
        rope["partial_rotary_factor"] = rotated / head
        if rotated > head or rotated % 2 or int(head * (rotated / head)) != rotated:
            raise metadata.error(f"{rotated} of a head's {head} channels cannot be rotated")
    return {"head_dim": head, "rope_parameters": rope}


def _scale(metadata: Metadata, head: int) -> None:
    """Scores are divided by the root of the head's size, or the model is refused."""
    value = metadata.number("attention.scale", 0.0)
    if value and abs(value * head**0.5 - 1) > 1e-6:
        metadata.require("attention.scale", 0)


def _has(metadata: Metadata, name: str) -> bool:
    return f"blk.0.{name}" in metadata.file.tensors


def _window(metadata: Metadata) -> int | None:
    return metadata.integer("attention.sliding_window", 0) or None


def _layer_types(metadata: Metadata, layers: int, period: int) -> list[str]:
    """Which layers have the window: of each `period` of them all but the last, or as listed."""
    name = "attention.sliding_window_pattern"
    pattern = metadata.raw(name, period)
    if isinstance(pattern, list):
        if len(pattern) < layers or any(type(v) not in (bool, int) for v in pattern):
            raise metadata.error(f"GGUF key {metadata.prefix}{name} needs a flag for each layer")
        inside = [bool(v) for v in pattern[:layers]]
    else:
        period = metadata.integer(name, period)
        inside = [period == 0 or i % period < period - 1 for i in range(layers)]
    return ["sliding_attention" if v else "full_attention" for v in inside]


def _llama(metadata: Metadata, model_type: str = "llama") -> Fields:
    fields = _skeleton(metadata, model_type)
    fields |= _rotary(metadata, fields)
    fields |= {
        "rms_norm_eps": metadata.number(_RMS),
        "attention_bias": any(_has(metadata, f"attn_{x}.bias") for x in ("q", "k", "v", "output")),
        "mlp_bias": any(_has(metadata, f"ffn_{x}.bias") for x in ("gate", "up", "down")),
    }
    return fields


def _plain_llama(metadata: Metadata) -> Fields:
    """Llama and Mistral, which is a llama with a window."""
    fields = _llama(metadata)
    _scale(metadata, fields["head_dim"])
    window = _window(metadata)
    if window is not None:
        fields |= {"model_type": "mistral", "sliding_window": window}
    return fields


def _granite(metadata: Metadata) -> Fields:
    fields = _llama(metadata, "granite")
    head = fields["head_dim"]
    return fields | {
        "attention_multiplier": metadata.number("attention.scale", 0.0) or head**-0.5,
        "embedding_multiplier": metadata.number("embedding_scale", 0.0) or 1.0,
        "residual_multiplier": metadata.number("residual_scale", 0.0) or 1.0,
        "logits_scaling": metadata.number("logit_scale", 0.0) or 1.0,
    }


def _smollm3(metadata: Metadata) -> Fields:
    fields = _llama(metadata, "smollm3")
    _scale(metadata, fields["head_dim"])
    # llama.cpp leaves every fourth layer without positions, as all published models do.
    return fields | {"no_rope_layer_interval": 4, "use_sliding_window": False}


def _qwen(metadata: Metadata, model_type: str) -> Fields:
    fields = _skeleton(metadata, model_type)
    fields |= _rotary(metadata, fields)
    return fields | {"rms_norm_eps": metadata.number(_RMS), "use_sliding_window": False}


def _phi3(metadata: Metadata) -> Fields:
    fields = _skeleton(metadata, "phi3")
    fields |= _rotary(metadata, fields, partial=True)
    original = fields["rope_parameters"].get("original_max_position_embeddings")
    return fields | {
        "rms_norm_eps": metadata.number(_RMS),
        "sliding_window": _window(metadata),
        "original_max_position_embeddings": original or fields["max_position_embeddings"],
    }


def _olmo2(metadata: Metadata) -> Fields:
    """OLMo 2, and OLMo 3, which has windows and scales only the layers without."""
    fields = _skeleton(metadata, "olmo2")
    fields |= _rotary(metadata, fields)
    fields["rms_norm_eps"] = metadata.number(_RMS)
    window = _window(metadata)
    if window is None:
        return fields
    whole = fields["rope_parameters"]
    local = metadata.number("rope.freq_base_swa", whole["rope_theta"])
    return fields | {
        "model_type": "olmo3",
        "sliding_window": window,
        "layer_types": _layer_types(metadata, fields["num_hidden_layers"], 4),
        "rope_parameters": _by_reach(whole, local),
    }


def _exaone4(metadata: Metadata) -> Fields:
    """EXAONE 4; where there are windows, layers without have no positions."""
    fields = _skeleton(metadata, "exaone4")
    fields |= _rotary(metadata, fields)
    window, layers = _window(metadata), fields["num_hidden_layers"]
    return fields | {
        "rms_norm_eps": metadata.number(_RMS),
        "sliding_window": window,
        "layer_types": _layer_types(metadata, layers, 4) if window else ["full_attention"] * layers,
    }


def _seed_oss(metadata: Metadata) -> Fields:
    fields = _llama(metadata, "seed_oss")
    _scale(metadata, fields["head_dim"])
    return fields | {"attention_out_bias": _has(metadata, "attn_output.bias")}


def _by_reach(whole: Fields, local_theta: float) -> Fields:
    """Rope of layers that see the whole text, which is scaled, and of those with a window."""
    local = {"rope_type": "default", "rope_theta": local_theta}
    return {"full_attention": whole, "sliding_attention": local}


def _gemma(metadata: Metadata) -> Fields:
    fields = _skeleton(metadata, "gemma")
    fields |= _rotary(metadata, fields)
    return fields | {"rms_norm_eps": metadata.number(_RMS)}


def _gemma2(metadata: Metadata, model_type: str = "gemma2", large: int = 46) -> Fields:
    """Gemma 2 and what Gemma 3 shares with it.

    Args:
        large: layers of the 27B model, whose scores are scaled by the channels per head instead
            of the head's size; no key says so.
    """
    fields = _skeleton(metadata, model_type)
    fields |= _rotary(metadata, fields)
    layers, head = fields["num_hidden_layers"], fields["head_dim"]
    scaled = fields["hidden_size"] / fields["num_attention_heads"] if layers == large else head
    scale = metadata.number("attention.scale", 0.0)
    if scale:
        scaled = scale**-2
    if abs(scaled - round(scaled)) > 1e-4 * scaled:  # Hugging Face keeps an integer
        raise metadata.error(f"scores cannot be scaled by 1 / sqrt({scaled:.6g})")
    default_cap = 50.0 if model_type == "gemma2" else 0.0
    final_cap = 30.0 if model_type == "gemma2" else 0.0
    return fields | {
        "rms_norm_eps": metadata.number(_RMS),
        "query_pre_attn_scalar": round(scaled),
        "attn_logit_softcapping": metadata.number("attn_logit_softcapping", default_cap) or None,
        "final_logit_softcapping": metadata.number("final_logit_softcapping", final_cap) or None,
        "sliding_window": metadata.integer("attention.sliding_window", 4096),
        "layer_types": _layer_types(metadata, layers, 2),
    }


def _gemma3(metadata: Metadata) -> Fields:
    fields = _gemma2(metadata, "gemma3_text", large=62)
    window = _window(metadata)
    layers = fields["num_hidden_layers"]
    local = metadata.number("rope.freq_base_swa", 10000.0)
    fields |= {
        "sliding_window": window or fields["max_position_embeddings"],
        "layer_types": (
            _layer_types(metadata, layers, 6) if window else ["full_attention"] * layers
        ),
        "rope_parameters": _by_reach(fields["rope_parameters"], local),
    }
    return fields


def _gpt2(metadata: Metadata) -> Fields:
    fields = _skeleton(metadata, "gpt2")
    _absolute(metadata, fields)
    return fields | {
        "n_positions": fields.pop("max_position_embeddings"),
        "n_inner": fields.pop("intermediate_size"),
        "layer_norm_epsilon": metadata.number(_LAYER_NORM),
    }


def _bloom(metadata: Metadata) -> Fields:
    fields = _skeleton(metadata, "bloom")
    _absolute(metadata, fields)
    metadata.require("feed_forward_length", 4 * fields["hidden_size"])
    metadata.require("attention.max_alibi_bias", 8.0)
    return fields | {
        "seq_length": fields.pop("max_position_embeddings"),
        "n_head": fields.pop("num_attention_heads"),
        "n_layer": fields.pop("num_hidden_layers"),
        "layer_norm_epsilon": metadata.number(_LAYER_NORM),
    }


def _absolute(metadata: Metadata, fields: Fields) -> None:
    """Heads of models without rope: as many keys as queries, of the size that follows."""
    metadata.require("attention.head_count_kv", fields["num_attention_heads"])
    head = fields["hidden_size"] // fields["num_attention_heads"]
    metadata.require("attention.key_length", head)
    metadata.require("attention.value_length", head)


def _layer_norms(metadata: Metadata, model_type: str, epsilon: str = "layer_norm_eps") -> Fields:
    """Decoders with layer norms and rope on a part of each head."""
    fields = _skeleton(metadata, model_type)
    fields |= _rotary(metadata, fields, partial=True)
    return fields | {epsilon: metadata.number(_LAYER_NORM)}


def _stablelm(metadata: Metadata) -> Fields:
    fields = _layer_norms(metadata, "stablelm")
    metadata.raw("use_parallel_residual", None)  # files are wrong about it; llama.cpp looks too
    return fields | {
        "use_qkv_bias": _has(metadata, "attn_q.bias"),
        "use_parallel_residual": not _has(metadata, "ffn_norm.weight"),
    }


def _gptneox(metadata: Metadata) -> Fields:
    fields = _layer_norms(metadata, "gpt_neox")
    metadata.require("attention.head_count_kv", fields["num_attention_heads"])
    return fields | {"use_parallel_residual": metadata.flag("use_parallel_residual", True)}


def _starcoder2(metadata: Metadata) -> Fields:
    fields = _skeleton(metadata, "starcoder2")
    fields |= _rotary(metadata, fields)
    return fields | {
        "norm_epsilon": metadata.number(_LAYER_NORM),
        "sliding_window": _window(metadata),
        "use_bias": _has(metadata, "attn_q.bias"),
    }


BUILDERS: dict[str, Callable[[Metadata], Fields]] = {
    "arcee": lambda metadata: _llama(metadata, "arcee"),
    "bloom": _bloom,
    "exaone4": _exaone4,
    "gemma": _gemma,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "gpt2": _gpt2,
    "gptneox": _gptneox,
    "granite": _granite,
    "llama": _plain_llama,
    "nemotron": lambda metadata: _layer_norms(metadata, "nemotron", "norm_eps"),
    "olmo2": _olmo2,
    "phi2": lambda metadata: _layer_norms(metadata, "phi"),
    "phi3": _phi3,
    "qwen2": lambda metadata: _qwen(metadata, "qwen2"),
    "qwen3": lambda metadata: _qwen(metadata, "qwen3"),
    "seed_oss": _seed_oss,
    "smollm3": _smollm3,
    "stablelm": _stablelm,
    "starcoder2": _starcoder2,
}
