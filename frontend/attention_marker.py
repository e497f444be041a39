"""One opaque attention op in the exported graph, in place of Hugging Face's own attention.

Transformers lets a model's attention be exchanged by name (`AttentionInterface`). Ours is a
`torch.library` op without an implementation: export keeps it as one node per layer, with the
scale, the window and the soft cap as attributes, and no mask is ever built.
"""

from __future__ import annotations

import types
from typing import Any

import torch
from transformers import AttentionInterface, masking_utils

from morendo.ir.errors import InputError

NAME = "morendo"
# Arguments of the attention interface that change nothing in a causal forward pass without cache.
_HARMLESS = {
    "position_ids",
    "use_cache",
    "output_attentions",
    "is_causal",
    "cache_position",
    "past_key_values",
    "position_embeddings",
}


@torch.library.custom_op("morendo::attention", mutates_args=())
def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layer: int,
    scale: float,
    window: int,
    softcap: float,
    alibi: torch.Tensor | None = None,
) -> torch.Tensor:
    """Causal attention of (1, heads, n, head_dim) to (1, n, heads, head_dim); never executed."""
    raise NotImplementedError("the marker op only exists in exported graphs")


@attention.register_fake
def _(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layer: int,
    scale: float,
    window: int,
    softcap: float,
    alibi: torch.Tensor | None = None,
) -> torch.Tensor:
    batch, heads, tokens, _ = query.shape
    return query.new_empty((batch, tokens, heads, value.shape[-1]))


def _marked_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **rest: Any,
) -> tuple[torch.Tensor, None]:
    layer = getattr(module, "layer_idx", None)
    unknown = sorted(k for k, v in rest.items() if v is not None and k not in _HARMLESS)
    if attention_mask is not None or unknown or layer is None:
        what = ", ".join(unknown) if unknown else "an explicit mask or no layer index"
        raise InputError(
            f"attention with {what} is not supported",
            where=type(module).__name__,
            hint="only causal attention with a window, a soft cap or alibi can be compiled",
        )
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    out = attention(query, key, value, layer, scale, sliding_window or 0, softcap or 0.0)
    return out, None


AttentionInterface.register(NAME, _marked_attention)
masking_utils.ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, lambda *args, **kwargs: None)


def _bloom_forward(
    self: Any,
    hidden_states: torch.Tensor,
    residual: torch.Tensor,
    *args: Any,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """BloomAttention.forward with the marker for its core; everything else is its own."""
    query, key, value = self._reshape(self.query_key_value(hidden_states))
    out = attention(
        query, key, value, self.layer_idx, self.inv_norm_factor, 0, 0.0, self.alibi_slopes
    )
    return self.dense(out.flatten(2)) + residual, None


def mark_bloom(model: torch.nn.Module) -> None:
    """Route BLOOM, which does not take the attention interface, through the marker.

    Its alibi slopes, which the model code recomputes in every call, become a buffer of each
    layer's attention. Does nothing to other models.
    """
    from transformers.models.bloom import modeling_bloom

    for module in model.modules():
        if isinstance(module, modeling_bloom.BloomAttention):
            slopes = modeling_bloom._get_alibi_slopes(module.num_heads, torch.device("cpu"))
            module.register_buffer("alibi_slopes", slopes, persistent=False)
            module.forward = types.MethodType(_bloom_forward, module)
