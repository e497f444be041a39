"""Models for measuring quality: the demo model with its channels in another order.

Its only public weights are a Q4_1 file: groups of 32 channels that 4-bit codes hold exactly. A
quantizer with groups of 32 would find that grid again and look perfect. So every input channel
moves to another place by a permutation that changes nothing in what the model computes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

SEED = 20231144


def permute_llama(model: Any) -> None:
    """Reorder a torch llama's channels in place; its logits stay the same up to rounding.

    One permutation for the residual stream, one a layer for the MLP's hidden channels, one a
    layer for the channels of a value head (undone by the rows of the output projection).
    """
    import torch

    rng = np.random.default_rng(SEED)
    config = model.config
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads

    def order(count: int) -> torch.Tensor:
        return torch.from_numpy(rng.permutation(count))

    stream = order(config.hidden_size)
    embedding = model.get_input_embeddings().weight
    head = model.get_output_embeddings().weight
    for weight in [embedding] if head is embedding else [embedding, head]:
        weight.data = weight.data[:, stream].contiguous()
    model.model.norm.weight.data = model.model.norm.weight.data[stream]
    for layer in model.model.layers:
        for norm in (layer.input_layernorm, layer.post_attention_layernorm):
            norm.weight.data = norm.weight.data[stream]
        attention, mlp = layer.self_attn, layer.mlp
        hidden, value = order(config.intermediate_size), order(size)
        values = _in_every_head(value, config.num_key_value_heads)
        outputs = _in_every_head(value, config.num_attention_heads)
        for linear, rows, columns in (
            (attention.q_proj, None, stream),
            (attention.k_proj, None, stream),
            (attention.v_proj, values, stream),
            (attention.o_proj, stream, outputs),
            (mlp.gate_proj, hidden, stream),
            (mlp.up_proj, hidden, stream),
            (mlp.down_proj, stream, hidden),
        ):
            assert linear.bias is None
            weight = linear.weight.data[:, columns]
            linear.weight.data = (weight if rows is None else weight[rows]).contiguous()


def _in_every_head(order: Any, heads: int) -> Any:
    """The permutation of one head's channels, for all heads side by side."""
    import torch

    starts = torch.arange(heads)[:, None] * len(order)
    return (starts + order[None]).reshape(-1)


def permuted_smollm2(gguf: Path, folder: Path) -> Path:
    """Write the permuted model as a Hugging Face directory (float32), once; returns it.

    Args:
        gguf: SmolLM2-135M-Instruct.
        folder: where the directory is kept.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    out = folder / "smollm2-permuted"
    if (out / "model.safetensors").is_file():
        return out
    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32
    ).eval()
    permute_llama(model)
    # what was read from a quantized file would refuse to be saved
    for mark in ("hf_quantizer", "quantization_method", "is_quantized"):
        if hasattr(model, mark):
            delattr(model, mark)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(out)
    return out
