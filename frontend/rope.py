"""Rotary frequencies that would depend on a text's length, chosen once for the artifact's context.

Transformers recomputes them in every call for two kinds of rope: `longrope` has one set of factors
for texts up to the original length and another for longer ones, `dynamic` stretches the frequencies
of texts longer than the model's positions. An artifact's context is fixed, so the choice is, too.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS


def settle_rope(model: torch.nn.Module, context: int) -> list[str]:
    """Fix the frequencies of all rotary embeddings of a model, in place.

    Args:
        model: whose buffers have values.
        context: longest text; the model's positions where they are fewer.

    Returns:
        What the person should know: which factors were chosen.
    """
    notes: dict[str, None] = {}
    for part in model.modules():
        kinds = getattr(part, "rope_type", None)
        if isinstance(kinds, str):
            notes |= dict.fromkeys(_settle(part, kinds, None, context))
            part.rope_type = _fixed(kinds)
        elif isinstance(kinds, dict):
            for layer_type, kind in kinds.items():
                notes |= dict.fromkeys(_settle(part, kind, layer_type, context))
            part.rope_type = {layer_type: _fixed(kind) for layer_type, kind in kinds.items()}
    return list(notes)


def factors_of(config: PreTrainedConfig, context: int) -> str:
    """Which factors a context chooses: "long" or "short", "" for models that have one set."""
    facts = getattr(config, "rope_parameters", None) or {}
    kinds = [facts] if "rope_type" in facts else [f for f in facts.values() if isinstance(f, dict)]
    chosen = {_is_long(config, f, context) for f in kinds if f.get("rope_type") == "longrope"}
    return "".join("long" if is_long else "short" for is_long in sorted(chosen))


def _is_long(config: PreTrainedConfig, facts: dict[str, Any], context: int) -> bool:
    longest = min(context, config.max_position_embeddings)
    return longest > int(facts["original_max_position_embeddings"])


def _fixed(kind: str) -> str:
    """A kind whose frequencies transformers leaves alone."""
    return "default" if kind == "longrope" or "dynamic" in kind else kind


def _settle(part: Any, kind: str, layer_type: str | None, context: int) -> list[str]:
    config: PreTrainedConfig = part.config
    if "dynamic" in kind:
        length = config.max_position_embeddings
        return [f"dynamic rope is plain rope up to {length} tokens, where the context ends"]
    if kind != "longrope":
        return []
    facts = config.rope_parameters if layer_type is None else config.rope_parameters[layer_type]
    short = int(facts["original_max_position_embeddings"])
    context = min(context, config.max_position_embeddings)
    if not _is_long(config, facts, context):
        return [f"longrope: the factors of texts up to {short} tokens are used"]
    frequencies, _ = ROPE_INIT_FUNCTIONS[kind](
        config, torch.device("cpu"), seq_len=short + 1, layer_type=layer_type
    )
    name = "inv_freq" if layer_type is None else f"{layer_type}_inv_freq"
    getattr(part, name).copy_(frequencies)
    return [
        f"longrope: the long factors are used for texts of any length, since the context is "
        f"{context} tokens; with --context {short} the short ones are"
    ]
