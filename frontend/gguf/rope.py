"""Rotary positions: what a file says about frequencies, as Hugging Face's `rope_parameters`.

The meaning of the keys is llama.cpp's: position / factor for linear scaling; yarn's magnitude
grows by 1 + 0.1 ln(factor), as it does in Hugging Face; and the tensors of factors divide the
frequencies.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .metadata import Metadata
from .split import GgufFile

FACTORS = "rope_freqs.weight"
_LONG, _SHORT = "rope_factors_long.weight", "rope_factors_short.weight"
LENGTH_FACTORS = (_LONG, _SHORT)
_READ_FACTORS = ("arcee", "exaone4", "granite", "llama", "phi3")


def reads_factors(file: GgufFile) -> bool:
    """Whether llama.cpp divides this architecture's frequencies by tensors of the file."""
    return file.architecture in _READ_FACTORS


def rope_parameters(metadata: Metadata, rotated: int, context: int) -> dict[str, Any]:
    """How the file's rope is called by Hugging Face.

    The factors in `rope_freqs.weight` are not part of it; see `GgufSource.rotary_buffers`.

    Args:
        metadata: of the model.
        rotated: channels of a head that are rotated.
        context: tokens that the file says the model reads.

    Raises:
        InputError: for scaling that Hugging Face has no name for.
    """
    theta = metadata.number("rope.freq_base", 10000.0)
    if theta <= 1:
        raise metadata.error(f"GGUF key {metadata.prefix}rope.freq_base is {theta}, need over 1")
    kind = metadata.text("rope.scaling.type", "linear")
    factor = metadata.number("rope.scale_linear", 0.0)
    factor = metadata.number("rope.scaling.factor", factor) or 1.0
    original = metadata.integer("rope.scaling.original_context_length", 0) or context
    magnitude = metadata.number("rope.scaling.attn_factor", 1.0) or 1.0
    _refuse_mixtures(metadata, kind)
    found: dict[str, Any] = {"rope_theta": theta, "rope_type": "default"}
    if kind not in ("none", "linear", "yarn", "longrope"):
        raise metadata.error(f"GGUF key {metadata.prefix}rope.scaling.type is {kind!r}")
    tensors = metadata.file.tensors
    if reads_factors(metadata.file) and any(name in tensors for name in LENGTH_FACTORS):
        metadata.require("rope.scaling.factor", 1, 0)
        found |= _by_length(metadata, rotated)
        found |= {"original_max_position_embeddings": original, "attention_factor": magnitude}
        found["factor"] = max(1.0, context / original)
    elif kind == "longrope":
        raise metadata.error(f"the GGUF file has no tensor {_LONG}, which longrope needs")
    elif kind == "yarn":
        found |= {"rope_type": "yarn", "factor": factor}
        found["original_max_position_embeddings"] = original
        if factor > 1:
            found["attention_factor"] = magnitude * (1 + 0.1 * math.log(factor))
        else:
            found["attention_factor"] = magnitude
        for name in ("beta_fast", "beta_slow"):
            if f"rope.scaling.yarn_{name}" in metadata:
                found[name] = metadata.number(f"rope.scaling.yarn_{name}")
    else:
        metadata.require("rope.scaling.attn_factor", 1, 0)
        if kind == "linear" and factor != 1:
            found |= {"rope_type": "linear", "factor": factor}
    return found


def _refuse_mixtures(metadata: Metadata, kind: str) -> None:
    """Settings of yarn that no published model has, and that Hugging Face cannot express."""
    metadata.require("rope.scaling.yarn_ext_factor", float(kind == "yarn"), -1.0)
    metadata.require("rope.scaling.yarn_attn_factor", 1.0, -1.0)
    metadata.require("rope.scaling.yarn_log_multiplier", 0.0)
    if kind != "yarn":  # they change nothing then
        for name in ("beta_fast", "beta_slow"):
            metadata.raw(f"rope.scaling.yarn_{name}", None)


def _by_length(metadata: Metadata, rotated: int) -> dict[str, Any]:
    """The two sets of factors: for texts up to the original length, and for longer ones."""
    found: dict[str, Any] = {"rope_type": "longrope"}
    for name, field in ((_LONG, "long_factor"), (_SHORT, "short_factor")):
        if name not in metadata.file.tensors:
            raise metadata.error(f"the GGUF file has no tensor {name}")
        found[field] = read_factors(metadata, name, rotated).tolist()
    return found


def read_factors(metadata: Metadata, name: str, rotated: int) -> np.ndarray:
    """(rotated / 2,) divisors of the frequencies.

    Raises:
        InputError: for another number of them, or one that nothing can be divided by.
    """
    factors = metadata.file.tensors[name].read().ravel()
    if factors.size != rotated // 2 or not (np.isfinite(factors) & (factors > 0)).all():
        raise metadata.error(
            f"tensor {name} needs {rotated // 2} positive numbers, got {factors.size}"
        )
    return factors
