"""A llama-shaped checkpoint of random weights, for measuring speed and memory at real sizes.

    python benchmarks/random_llama.py DIR                 1.1 B weights, float16, 2.2 GB
    python benchmarks/random_llama.py DIR --layers 2      a smaller one
    python benchmarks/random_llama.py DIR --gemma         268 M weights, 63 % of them in one table

Layers are written one at a time. The tokenizer is the test model's; its ids are a small part of
the vocabulary.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

GEMMA = {
    "hidden": 640,
    "layers": 18,
    "ffn": 2048,
    "heads": 16,
    "kv_heads": 4,
    "vocabulary": 262144,
    "tied": True,
}
TOKENIZER = Path(__file__).parent.parent / "tests" / "models" / "tiny_llama"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--layers", type=int, default=22)
    parser.add_argument("--ffn", type=int, default=5632)
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--kv-heads", type=int, default=4)
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--tied", action="store_true", help="the embedding table is the head")
    parser.add_argument("--gemma", action="store_true", help="sizes of the smallest Gemma 3")
    if parser.parse_known_args()[0].gemma:
        parser.set_defaults(**GEMMA)
    options = parser.parse_args()
    options.out.mkdir(parents=True)
    _write_config(options)
    _write_weights(options, np.random.default_rng(0))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TOKENIZER / name, options.out / name)


def _write_config(options: argparse.Namespace) -> None:
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": options.hidden,
        "intermediate_size": options.ffn,
        "num_hidden_layers": options.layers,
        "num_attention_heads": options.heads,
        "num_key_value_heads": options.kv_heads,
        "vocab_size": options.vocabulary,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "tie_word_embeddings": options.tied,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "dtype": "float16",
    }
    (options.out / "config.json").write_text(json.dumps(config, indent=1) + "\n")


def _write_weights(options: argparse.Namespace, rng: np.random.Generator) -> None:
    hidden, kv = options.hidden, options.hidden // options.heads * options.kv_heads
    index: dict[str, str] = {}

    def save(name: str, shapes: dict[str, tuple[int, ...]]) -> None:
        tensors = {key: _random(rng, shape) for key, shape in shapes.items()}
        save_file(tensors, options.out / name, metadata={"format": "pt"})
        index.update(dict.fromkeys(tensors, name))

    table = (options.vocabulary, hidden)
    head = {} if options.tied else {"lm_head.weight": table}
    save("embeddings.safetensors", {"model.embed_tokens.weight": table, **head,
                                    "model.norm.weight": (hidden,)})  # fmt: skip
    for layer in range(options.layers):
        shapes = {
            "self_attn.q_proj": (hidden, hidden),
            "self_attn.k_proj": (kv, hidden),
            "self_attn.v_proj": (kv, hidden),
            "self_attn.o_proj": (hidden, hidden),
            "mlp.gate_proj": (options.ffn, hidden),
            "mlp.up_proj": (options.ffn, hidden),
            "mlp.down_proj": (hidden, options.ffn),
            "input_layernorm": (hidden,),
            "post_attention_layernorm": (hidden,),
        }
        prefix = f"model.layers.{layer}."
        save(f"layer{layer}.safetensors", {f"{prefix}{k}.weight": v for k, v in shapes.items()})
    text = json.dumps({"metadata": {}, "weight_map": index})
    (options.out / "model.safetensors.index.json").write_text(text)


def _random(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Rows of unit gain; norms are ones."""
    if len(shape) == 1:
        return np.ones(shape, np.float16)
    values = rng.standard_normal(shape, np.float32)
    return (values / np.sqrt(np.float32(shape[1]))).astype(np.float16)


if __name__ == "__main__":
    main()
