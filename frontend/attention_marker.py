"""One opaque attention op in the exported graph, in place of Hugging Face's own attention.

Transformers lets a model's attention be exchanged by name (`AttentionInterface`). Ours is a
`torch.library` op without an implementation: export keeps it as one node, with the scale, the
window and the soft cap as attributes, and no mask is ever built. What an attention is given besides
has to be known to change nothing, and the model's own attention function is run on a few random
numbers to see that it computes what the op means.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AttentionInterface, masking_utils
from transformers.integrations import moe

from morendo.ir.errors import InputError

from . import attention_masks
from .attention_masks import CausalMask

NAME = "morendo"
IMPLEMENTATIONS = (NAME, "sdpa", "eager")
"""Names of attentions that can be marked: the first that a model has is used. Those that do not
take the interface have tables of classes instead, without ours."""
# Arguments of the attention interface that change nothing in a forward pass without a cache: what
# is returned besides the logits, and what the mask or the rotation has said already.
_HARMLESS = {
    "cache_position",
    "logits_to_keep",
    "num_items_in_batch",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "past_key_values",
    "position_embeddings",
    "position_ids",
    "return_dict",
    "use_cache",
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
    tokens: torch.Tensor | None = None,
) -> torch.Tensor:
    """Causal attention of (1, heads, n, head_dim) to (1, n, heads, head_dim); never executed.

    `tokens` (1, n) says which are no padding; only one that is true everywhere is imported.
    """
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
    tokens: torch.Tensor | None = None,
) -> torch.Tensor:
    batch, heads, tokens, _ = query.shape
    return query.new_empty((batch, tokens, heads, value.shape[-1]))


@dataclass(frozen=True)
class _Marked:
    """One attention that was replaced, for checks after tracing.

    Attributes:
        module: of the model.
        sizes: (heads, kv_heads, head_dim).
        mask: what it was given.
        scale, softcap: of the op.
        own: the model's function: (module, q, k, v, mask, **given) -> (1, n, heads, head_dim).
        given: arguments as the model passes them to it.
    """

    module: torch.nn.Module
    sizes: tuple[int, int, int]
    mask: CausalMask
    scale: float
    softcap: float
    own: Callable[..., torch.Tensor]
    given: dict[str, Any]


@dataclass
class _Tracing:
    """Attentions met so far: an op's `layer` is how many came before it."""

    count: int = 0
    marked: list[_Marked] = field(default_factory=list)


_tracing = _Tracing()


@contextmanager
def marking() -> Iterator[None]:
    """Within, a model may be traced; at the end what was marked is checked.

    Raises:
        InputError: when an attention computes or sees something else than the marker means.
    """
    global _tracing
    _tracing = _Tracing()
    packed = masking_utils.find_packed_sequence_indices
    experts = moe.ExpertsInterface.get_interface
    # There is one sequence; transformers looks for several in the positions.
    masking_utils.find_packed_sequence_indices = lambda position_ids: None
    moe.ExpertsInterface.get_interface = _refuse_experts  # type: ignore[method-assign]
    try:
        with attention_masks.masks_are_tokens(IMPLEMENTATIONS):
            yield
    finally:
        masking_utils.find_packed_sequence_indices = packed
        moe.ExpertsInterface.get_interface = experts  # type: ignore[method-assign]
    for one in _tracing.marked:
        one.mask.check(type(one.module).__name__)
    for one in {_kind(one): one for one in _tracing.marked}.values():
        _check_own_function(one)


def _refuse_experts(*args: Any) -> Any:
    raise InputError(
        "mixture-of-experts layers cannot be compiled", hint="compile a dense model of the family"
    )


def _kind(one: _Marked) -> tuple[Any, ...]:
    """Attentions of the same kind need one check of their function."""
    given = tuple(sorted((k, str(v)) for k, v in one.given.items()))
    return type(one.module), one.sizes, one.scale, one.softcap, one.mask.window, given


def _marked_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **rest: Any,
) -> tuple[torch.Tensor, None]:
    unknown = [k for k, v in rest.items() if v is not None and k not in _HARMLESS]
    if "is_causal" in unknown and rest["is_causal"]:
        unknown.remove("is_causal")
    _refuse(module, (query, key, value), attention_mask, unknown, dropout)
    heads, kv_heads, head_dim = query.shape[1], key.shape[1], query.shape[-1]
    scale = head_dim**-0.5 if scaling is None else float(scaling)
    given = {"sliding_window": sliding_window, "softcap": softcap}
    given = {k: v for k, v in given.items() if v is not None} | {"scaling": scaling, "dropout": 0.0}
    sizes = (heads, kv_heads, head_dim)
    one = _Marked(module, sizes, attention_mask, scale, softcap or 0.0, _eager, given)
    return _mark(one, query, key, value), None


def _eager(module: torch.nn.Module, *args: Any, **kwargs: Any) -> torch.Tensor:
    """What the interface would have called in our place."""
    return sys.modules[type(module).__module__].eager_attention_forward(module, *args, **kwargs)[0]


def _mark(
    one: _Marked, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> torch.Tensor:
    _tracing.marked.append(one)
    attrs = _next_layer(), one.scale, one.mask.window, one.softcap
    return attention(query, key, value, *attrs, tokens=one.mask.tokens)


def _next_layer() -> int:
    _tracing.count += 1
    return _tracing.count - 1


def _refuse(
    module: torch.nn.Module,
    qkv: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    mask: Any,
    unknown: list[str],
    dropout: float,
) -> None:
    query, key, value = qkv
    why = ""
    if unknown:
        why = f"attention with {', '.join(sorted(unknown))} is not supported"
    elif not isinstance(mask, CausalMask):
        why = "attention without a causal mask of transformers is not supported"
    elif dropout:
        why = f"attention drops out weights although nothing is trained (got {dropout})"
    elif not query.shape[-1] == key.shape[-1] == value.shape[-1]:
        sizes = ", ".join(str(x.shape[-1]) for x in qkv)
        why = f"heads of queries, keys and values have different sizes (got {sizes})"
    elif query.shape[1] % key.shape[1] or key.shape[1] != value.shape[1]:
        counts = ", ".join(str(x.shape[1]) for x in qkv)
        why = f"query heads do not share keys and values evenly (got {counts} heads)"
    if why:
        raise InputError(
            why,
            where=type(module).__name__,
            hint="only causal attention with a window, a soft cap or alibi can be compiled",
        )


def _check_own_function(one: _Marked) -> None:
    """Compare the model's own attention with what the marker means, on random numbers."""
    heads, kv_heads, head_dim = one.sizes
    random = torch.Generator().manual_seed(0)
    shapes = (heads, 6, head_dim), (kv_heads, 6, head_dim), (kv_heads, 6, head_dim)
    q, k, v = (torch.randn(1, *shape, generator=random) for shape in shapes)
    behind = torch.arange(6)[:, None] - torch.arange(6)
    hidden = (behind < 0) | (behind >= (one.mask.window or 6))
    mask = torch.zeros(1, 1, 6, 6).masked_fill(hidden, torch.finfo(torch.float32).min)
    try:
        got = one.own(one.module, q, k, v, mask, **one.given)
    except Exception:  # it reads a weight, which is on the meta device, or is no function at all
        got = None
    if got is None or not torch.allclose(got, _meaning(one, q, k, v, mask), atol=1e-5):
        raise InputError(
            "the model's own attention is more than scores, a soft cap, a mask and their softmax "
            "(attention sinks, biases, ...)",
            where=type(one.module).__name__,
            hint="only causal attention with a window, a soft cap or alibi can be compiled",
        )


def _meaning(
    one: _Marked, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """The marker's result (1, n, heads, head_dim) for q, k, v (1, heads, n, head_dim)."""
    repeats = q.shape[1] // k.shape[1]
    k, v = (t.repeat_interleave(repeats, 1) for t in (k, v))
    scores = q @ k.transpose(2, 3) * one.scale
    if one.softcap:
        scores = one.softcap * torch.tanh(scores / one.softcap)
    return (torch.softmax(scores + mask, -1) @ v).transpose(1, 2)


def _marked_sdpa(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """torch's own attention (1, heads, n, head_dim) of models that call it directly."""
    module = torch.nn.Module()
    _refuse(module, (query, key, value), attn_mask, [], dropout_p)
    sizes = (query.shape[1], key.shape[1], query.shape[-1])
    factor = query.shape[-1] ** -0.5 if scale is None else float(scale)
    one = _Marked(module, sizes, attn_mask, factor, 0.0, _own_sdpa, {"scale": scale})
    return _mark(one, query, key, value).transpose(1, 2)


def _own_sdpa(module: Any, q: torch.Tensor, *rest: torch.Tensor, **given: Any) -> torch.Tensor:
    k, v, mask = rest
    function = torch.nn.functional.scaled_dot_product_attention
    return function(q, k, v, mask, enable_gqa=True, **given).transpose(1, 2)


AttentionInterface.register(NAME, _marked_attention)
attention_masks.replace_torch(torch.nn.functional.scaled_dot_product_attention, _marked_sdpa)


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
        query, key, value, _next_layer(), self.inv_norm_factor, 0, 0.0, self.alibi_slopes
    )
    return self.dense(out.flatten(2)) + residual, None


def _core(
    self: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any = None,
) -> tuple[torch.Tensor, None]:
    """The `_attn` of GPT-J and CodeGen, which has the heads first in its result, too."""
    _refuse(self, (query, key, value), attention_mask, [], 0.0)
    sizes = (query.shape[1], key.shape[1], query.shape[-1])
    scale = 1.0 / float(self.scale_attn)
    one = _Marked(self, sizes, attention_mask, scale, 0.0, _own_core, {})
    return _mark(one, query, key, value).transpose(1, 2), None


def _own_core(module: Any, *args: torch.Tensor) -> torch.Tensor:
    return type(module)._attn(module, *args)[0].transpose(1, 2)


def mark_others(model: torch.nn.Module) -> None:
    """Route attentions that do not take the interface through the marker: BLOOM, GPT-J, CodeGen.

    BLOOM's alibi slopes, which the model code recomputes in every call, become a buffer of each
    layer's attention. Does nothing to other models.
    """
    from transformers.models.bloom import modeling_bloom
    from transformers.models.codegen.modeling_codegen import CodeGenAttention
    from transformers.models.gptj.modeling_gptj import GPTJAttention

    for module in model.modules():
        if isinstance(module, modeling_bloom.BloomAttention):
            slopes = modeling_bloom._get_alibi_slopes(module.num_heads, torch.device("cpu"))
            module.register_buffer("alibi_slopes", slopes, persistent=False)
            module.forward = types.MethodType(_bloom_forward, module)
        elif isinstance(module, GPTJAttention | CodeGenAttention):
            module._attn = types.MethodType(_core, module)
            # A plain attribute, so that it does not follow the model to the meta device.
            module.scale_attn = float(module.head_dim) ** 0.5
