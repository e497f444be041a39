"""Tiny models and tokenizers in the files that the frontend reads."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"


def tokens(count: int) -> list[str]:
    """A byte-level vocabulary: three special tokens, letters, and made-up words."""
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    words = [f"w{i}" for i in range(count)]
    return ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *letters, "ab", *words][:count]


def save_tokenizer(directory: Path, count: int, add_bos: bool = False) -> None:
    """A Hugging Face tokenizer of `count` tokens with a chat template."""
    from tokenizers import Tokenizer, models, processors

    vocabulary = {token: i for i, token in enumerate(tokens(count))}
    library = Tokenizer(models.BPE(vocab=vocabulary, merges=[("a", "b")]))
    if add_bos:
        library.post_processor = processors.TemplateProcessing(
            single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
        )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=library,
        bos_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
        chat_template=TEMPLATE,
    )
    fast.save_pretrained(directory)


# Architectures whose rows of q and k llama.cpp reorders, whose norms it stores plus one, whose
# fused q, k and v it takes apart by kind instead of by head.
_PERMUTED = ("llama", "arcee", "granite", "smollm3")
_PLUS_ONE = ("gemma", "gemma2", "gemma3", "nemotron")
_BY_KIND = ("bloom", "gptneox")
_LAYER_NORM = ("bloom", "gpt2", "gptneox", "nemotron", "phi2", "stablelm", "starcoder2")


def _permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows as llama.cpp stores them for its interleaved rope."""
    half = weight.shape[0] // heads // 2
    return weight.reshape(heads, 2, half, -1).swapaxes(1, 2).reshape(weight.shape)


def _converted(architecture: str, config: PreTrainedConfig, name: str, data: np.ndarray) -> Any:
    """A tensor as llama.cpp's converter writes it."""
    heads = config.num_attention_heads
    if architecture in _PERMUTED and (".q_proj." in name or ".k_proj." in name):
        return _permuted(data, heads if ".q_proj." in name else config.num_key_value_heads)
    if architecture in _PLUS_ONE and "norm" in name and name.endswith(".weight"):
        return data + 1
    if architecture in _BY_KIND and ".query_key_value." in name:
        parts = data.reshape(heads, 3, -1, *data.shape[1:]).swapaxes(0, 1)
        return np.ascontiguousarray(parts).reshape(data.shape)
    if architecture == "gpt2" and data.ndim == 2 and ".h." in name:
        return np.ascontiguousarray(data.T)
    return data


def model_keys(architecture: str, config: PreTrainedConfig) -> dict[str, Any]:
    """What llama.cpp's converter says of every model."""
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    own_size = architecture in ("bloom", "gpt2")  # of the feed-forward layers
    inner = 4 * config.hidden_size if own_size else config.intermediate_size
    context = getattr(config, "max_position_embeddings", 64)
    norm = "layer_norm_epsilon" if architecture in _LAYER_NORM else "layer_norm_rms_epsilon"
    names = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps")
    keys = {
        "block_count": config.num_hidden_layers,
        "context_length": context,
        "embedding_length": config.hidden_size,
        "feed_forward_length": inner,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": kv_heads,
        f"attention.{norm}": next(float(getattr(config, n)) for n in names if hasattr(config, n)),
        "attention.key_length": head,
        "attention.value_length": head,
    }
    return {f"{architecture}.{name}": value for name, value in keys.items()}


def tokenizer_keys(count: int) -> dict[str, Any]:
    """A byte-level vocabulary of `count` tokens."""
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens(count),
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.token_type": [3] * 3 + [1] * (count - 3),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.chat_template": TEMPLATE,
    }


def write_gguf(
    path: Path,
    architecture: str,
    keys: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    quantized: gguf.GGMLQuantizationType | None = None,
) -> None:
    """A file of these keys and tensors.

    Args:
        quantized: the kind of matrices whose rows are long enough; the rest is float32.
    """
    writer = gguf.GGUFWriter(path, architecture)
    adders = {
        str: writer.add_string,
        bool: writer.add_bool,
        int: writer.add_uint32,
        float: writer.add_float32,
        list: writer.add_array,
    }
    for key, value in keys.items():
        adders[type(value)](key, value)
    for name, data in tensors.items():
        block = gguf.GGML_QUANT_SIZES[quantized][0] if quantized is not None else 0
        if quantized is not None and data.ndim == 2 and data.shape[1] % block == 0:
            writer.add_tensor(name, gguf.quantize(data, quantized), raw_dtype=quantized)
        else:
            writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def model_tensors(model: PreTrainedModel, architecture: str) -> dict[str, np.ndarray]:
    """A model's tensors as llama.cpp's converter writes them."""
    known = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}
    table = gguf.get_tensor_name_map(known[architecture], model.config.num_hidden_layers)
    found = {}
    for name, parameter in model.named_parameters():
        stem, _, suffix = name.rpartition(".")
        data = parameter.detach().numpy()
        short = stem.removeprefix(f"{model.base_model_prefix}.")
        stored = f"{table.get_name(stem) or table.get_name(short)}.{suffix}"
        found[stored] = _converted(architecture, model.config, name, data)
    return found


def save_gguf(
    model: PreTrainedModel,
    path: Path,
    architecture: str = "llama",
    keys: Mapping[str, Any] | None = None,
    tensors: Mapping[str, np.ndarray | None] | None = None,
    quantized: gguf.GGMLQuantizationType | None = None,
) -> None:
    """A model as GGUF.

    Args:
        keys: added under the architecture's name ("rope.freq_base"), or under the whole name when
            it starts with "tokenizer." or "general."; None removes a key.
        tensors: added, or instead of the model's; None removes one.
        quantized: see `write_gguf`.
    """
    every = model_keys(architecture, model.config) | tokenizer_keys(model.config.vocab_size)
    for name, value in (keys or {}).items():
        whole = name.startswith(("tokenizer.", "general."))
        every[name if whole else f"{architecture}.{name}"] = value
    stored = model_tensors(model, architecture) | dict(tensors or {})
    kept = {key: value for key, value in every.items() if value is not None}
    written = {name: array for name, array in stored.items() if array is not None}
    write_gguf(path, architecture, kept, written, quantized)
