"""What `compile` refuses of its options before it reads a model."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from morendo.calibration_text import check_texts
from morendo.codegen.target import Target
from morendo.ir.errors import CompileError, InputError
from morendo.ir.schema import mismatch
from morendo.passes.base import Pass
from morendo.passes.calibrate_weights import CalibrateWeights
from morendo.passes.choose_activations import ChooseActivations
from morendo.passes.quantize_activations import QuantizeActivations

DEFAULT_BITS = 4
_TYPES = {
    "chunk": int,
    "average_bits?": float,
    "size_mb?": float,
    "group_size?": int,
    "embedding_bits?": (int, str),
    "cache_bits?": int,
    "activations?": (int, str),
    "prune_tokens?": float,
    "prune_importance?": str,
    "search_scales?": bool,
    "context?": int,
    "calibration_windows?": int,
    "tuning_steps?": int,
}


def check_given(given: dict[str, Any]) -> None:
    """Refuse arguments of `compile` that have another type, before a comparison fails, and those
    that passes given beside them would not heed.

    Raises:
        InputError: in one line.
    """
    wrong = mismatch({k: v for k, v in given.items() if v is not None}, _TYPES)
    if wrong:
        raise InputError(wrong)
    for name in ("model", "out", "dump_ir", "passes", "weights_of", "calibrate"):
        value = given[name]
        several = name == "calibrate" and isinstance(value, Sequence) and not isinstance(value, str)
        for item in value if several else [value]:
            if item is not None and not isinstance(item, str | PathLike):
                raise InputError(f"{name} must be a text or a path (got {item!r})")
    if given["weights_of"] is not None:
        _check_shared(given)
    if given["passes"] is not None:
        _check_alone(given)
    if given["prune_importance"] and not given["prune_tokens"]:
        raise InputError(
            f"no tokens are pruned by their importance (got {given['prune_importance']!r})",
            hint="give --prune-tokens SHARE beside it",
        )


_SPELLINGS = {
    "tuning_steps": "tune-scales{steps=N}",
    "average_bits": "promote-groups{average_bits=N}",
    "size_mb": "promote-groups{size_mb=N}",
    "group_size": "quantize-weights{group_size=N}",
    "embedding_bits": "quantize-weights{head_bits=N}",
    "cache_bits": "specialize-phases{cache_bits=N}",
    "activations": "choose-activations{bits=4}",
    "prune_tokens": "prune-tokens{ratio=N}",
    "prune_importance": "prune-tokens{importance=received}",
    "readings": "quantize-weights{readings=43}",
    "search_scales": "search-scales",
}
"""How options that only the default passes heed are spelled in passes."""


def _check_alone(given: dict[str, Any]) -> None:
    wanted = [name for name in _SPELLINGS if given[name] not in (None, False)]
    spelled = [_SPELLINGS[name] for name in wanted]
    if spelled:
        raise InputError(
            "give passes, or a budget, a group size, embedding bits, cache bits, activations, "
            "pruned tokens, readings, searched scales or tuning steps, not both",
            hint=f"write {', '.join(spelled)} in --passes",
        )


def _check_shared(given: dict[str, Any]) -> None:
    """The shared artifact says how weights are, and all that the graph says."""
    said = (*_SPELLINGS, "passes", "calibrate", "calibration_windows", "context", "dump_ir")
    wanted = [name for name in said if given[name] is not None]
    wanted += ["bits"] * (given["bits"] != DEFAULT_BITS)
    if wanted:
        flags = ", ".join(f"--{name.removesuffix('_mb').replace('_', '-')}" for name in wanted)
        raise InputError(
            f"an artifact's weights and graph are as they are (got {flags} beside --weights-of)",
            hint="leave it out; --target, --pipeline, --chunk and --out may be given",
        )


def check_activations(target: Target, recipe: Sequence[Pass]) -> None:
    """Refuse passes that leave activations floats, where a target wants codes for integer weights.

    Raises:
        CompileError: naming it.
    """
    rounded = any(isinstance(step, QuantizeActivations) for step in recipe)
    if not rounded and not target.capabilities.half_activations:
        raise CompileError(
            "there are no kernels that multiply halves with integer weights (got activations 16)",
            where=f"target {target.name}",
            hint="give --activations 8",
        )


def check_calibrated(
    recipe: Sequence[Pass], texts: Sequence[str | Path], windows: int | None
) -> None:
    """Refuse a text that no pass uses, or a pass that has no text.

    Args:
        recipe: the passes that will run.
        texts: what to calibrate on.
        windows: how many windows of it the user wants.

    Raises:
        InputError: as well where a text cannot be read.
    """
    wanted = [s.name for s in recipe if isinstance(s, CalibrateWeights | ChooseActivations)]
    if wanted and not texts:
        raise InputError(
            f"{wanted[0]} needs text", hint="give --calibrate FILE or --calibrate self"
        )
    if texts and not wanted:
        raise InputError(
            "there is calibration text (given, or by default under a budget), but no pass uses it",
            hint="put calibrate-weights after quantize-weights in --passes",
        )
    if windows is not None and windows < 1:
        raise InputError(f"calibration needs a window of text or more (got {windows})")
    if windows and not texts:
        raise InputError(
            f"there is no text to take {windows} calibration windows from",
            hint="give --calibrate FILE, --calibrate self or --average-bits",
        )
    check_texts(texts)
