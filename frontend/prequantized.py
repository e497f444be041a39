"""Checkpoints that another tool has quantized already: named and refused, not called incomplete."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from morendo.ir.errors import InputError

from .model_files import read_json

# What tools that do not write config.json's quantization_config write beside it.
_FILES = {
    "hf_quant_config.json": "ModelOpt",
    "quantize_config.json": "GPTQ",
    "quant_config.json": "AWQ",
}
# How the tensors of a quantized matrix end, the most telling first.
_TENSORS = (
    (r"\.g_idx$", "GPTQ"),
    (r"\.(qweight|qzeros)$", "GPTQ or AWQ"),
    (r"\.(q_weight|q_scale|trellis|suh|svh)$", "ExLlama"),
    (r"\.weight_packed$", "compressed-tensors"),
    (r"\.(absmax|quant_map|quant_state\..*|SCB)$", "bitsandbytes"),
    (r"\.W_q$", "HQQ"),
    (r"\.(weight_scale_inv)$", "FP8"),
    (r"\.(weight|input|output|k|v)_scale(_2)?$", "ModelOpt or compressed-tensors"),
    (r"\.weight\._(data|scale|shift)$", "quanto"),
    (r"\.(codebooks|codes|centroids)$", "AQLM or VPTQ"),
    (r"_(blocks|scales)$", "MXFP4"),
    (r"\.(scales|biases)$", "MLX"),
)


def refuse_quantized_config(facts: dict[str, Any], where: str) -> None:
    """Refuse a config.json that says that the weights are quantized.

    Raises:
        InputError: with the method and what the file says about bits.
    """
    for key in ("quantization", "quantization_config", "compression_config"):
        said = facts.get(key)
        if said is not None:
            method = _method(said) if key != "quantization" else "MLX"
            raise _refusal(method, _bits(said), f"{key} in config.json", where)


def refuse_quantized_tensors(folder: Path, unused: Iterable[str], weights: Iterable[str]) -> None:
    """Refuse tensors that tell of a quantized matrix.

    Args:
        folder: where files of the quantizing tool may lie.
        unused: names of tensors in the text model that a float model has no place for.
        weights: dtypes of those that it would take.

    Raises:
        InputError: with the tool, from its file or from how it names tensors.
    """
    names = list(unused)
    for pattern, tool in _TENSORS:
        first = next((name for name in names if re.search(pattern, name)), None)
        if first is not None:
            raise _by_file(folder, tool, f"tensor {first}")
    low = next((kind for kind in weights if re.match(r"float[48]|F[468]_|F4$", kind)), None)
    if low is not None:
        raise _by_file(folder, "FP8 or FP4", f"weights are stored as {low}")


def _by_file(folder: Path, tool: str, sign: str) -> InputError:
    for name, author in _FILES.items():
        if (folder / name).is_file():
            return _refusal(author, _bits(read_json(folder / name)), f"{name}, {sign}", str(folder))
    return _refusal(tool, "", sign, str(folder))


def _refusal(tool: str, bits: str, sign: str, where: str) -> InputError:
    return InputError(
        f"the checkpoint is quantized already by {tool}{bits} ({sign})",
        where=where,
        hint="give the original float checkpoint",
    )


def _method(said: object) -> str:
    """The tool that a quantization_config is of."""
    if not isinstance(said, dict):
        return "an unknown tool"
    producer = said.get("producer")
    if isinstance(producer, dict) and isinstance(producer.get("name"), str):
        return producer["name"][:40]
    if isinstance(said.get("quant_method"), str):
        return said["quant_method"][:40]
    bitsandbytes = said.get("load_in_4bit") or said.get("load_in_8bit")
    return "bitsandbytes" if bitsandbytes else "an unknown tool"


def _bits(said: object) -> str:
    """How many bits, such as " with 4 bits"; "" where the tool's file does not say it plainly."""
    facts = said if isinstance(said, dict) else {}
    inner = facts.get("quantization")
    for part in (facts, inner if isinstance(inner, dict) else {}):
        if isinstance(part.get("quant_algo"), str):
            return f" with {part['quant_algo'][:40]}"
        for key in ("bits", "w_bit"):
            if type(part.get(key)) is int:
                return f" with {part[key]} bits"
    return ""
