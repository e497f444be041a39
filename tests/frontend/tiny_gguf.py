"""Tiny models and tokenizers in the files that the frontend reads."""

from pathlib import Path

import gguf
import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerFast

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


def _permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows as llama.cpp stores them for its interleaved rope."""
    half = weight.shape[0] // heads // 2
    return weight.reshape(heads, 2, half, -1).swapaxes(1, 2).reshape(weight.shape)


def save_llama_gguf(
    model: PreTrainedModel, path: Path, extra: dict[str, np.ndarray] | None = None
) -> None:
    """A llama as GGUF: matrices in Q8_0 where their rows are long enough, the rest in float32."""
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens(config.vocab_size))
    writer.add_token_merges(["a b"])
    writer.add_token_types([3] * 3 + [1] * (config.vocab_size - 3))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(TEMPLATE)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, parameter in model.named_parameters():
        stem, _, suffix = name.rpartition(".")
        data = parameter.detach().numpy()
        if "q_proj" in name or "k_proj" in name:
            key = "q_proj" in name
            data = _permuted(
                data, config.num_attention_heads if key else config.num_key_value_heads
            )
        stored = f"{names.get_name(stem)}.{suffix}"
        if data.ndim == 2 and data.shape[1] % 32 == 0:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(stored, gguf.quantize(data, kind), raw_dtype=kind)
        else:
            writer.add_tensor(stored, data)
    for stored, data in (extra or {}).items():
        writer.add_tensor(stored, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
