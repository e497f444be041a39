"""How many tokens a model takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

DEFAULT_CONTEXT = 4096
"""Positions that an artifact has when nothing else is asked for, if its model has as many."""
UNKNOWN_CONTEXT = 1 << 17
"""Tokens for an .onnx file that nothing beside it tells more of."""
_UNLIMITED = 2048  # tokens for models whose positions have no end (alibi), as they were trained


def context_of(config: PreTrainedConfig) -> int:
    """Tokens that the positions of a model reach."""
    for name in ("max_position_embeddings", "n_positions", "seq_length"):
        value = getattr(config, name, None)
        if value:
            return int(value)
    return _UNLIMITED
