"""Rounding embedding tables, which are read by rows and perhaps by the head as well.

Layers are rounded for the rows that they will get, so a table comes first. Where it is the head,
its errors weigh as much as the float model's last values make them in the logits; its rows are the
model's first values as well, so a part of the weight is the same for all channels.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from tvm import relax

from morendo.ir.code_store import CodeStore
from morendo.ir.dialect import attrs_of, op_name
from morendo.ir.formats import WeightFormat
from morendo.ir.reference import ROWS, Quantized, check_finite
from morendo.ir.text import bindings_of
from morendo.ir.weights import Weights

from ..streaming.activation_store import ActivationStore
from ..streaming.fast_ops import add_lower, symmetric
from ..streaming.stages import Attrs, Stage
from ..streaming.stream import Arrived, Stream, token_weights
from .error_feedback import Feedback, Rounder
from .figures import Energies

WINDOWS = 16
"""Of text, by which the moments of the head's input are found."""
ROWS_PART = 1.0
"""Added to the moments' diagonal, as a part of its mean: what the rows' other use weighs."""


def nested_tables(function: relax.Function) -> list[Attrs]:
    """The attributes of each embedding whose table has nested codes, every table once."""
    found: dict[str, Attrs] = {}
    for binding in bindings_of(function):
        if op_name(binding.value) == "embedding":
            attrs = attrs_of(binding.value)
            if WeightFormat.parse(attrs["format"]).nested:
                found[attrs["weight"]] = attrs
    return list(found.values())


def head_moments(
    function: relax.Function,
    weights: Weights,
    activations: ActivationStore,
    windows: np.ndarray,
    table: str,
) -> torch.Tensor | None:
    """X'X of what arrives in the float model at the linears that read a table, float32 [K, K].

    Args:
        windows: token ids int64 [W, n].

    Returns:
        None where no linear reads it.
    """

    def visit(stage: Stage, inputs: Iterator[Arrived]) -> torch.Tensor | None:
        if table not in {attrs["weight"] for attrs in stage.linears}:
            return None
        features = stage.linears[0]["in_features"]
        moments = torch.zeros(features, features)
        for each in inputs:
            weighted = each.x * token_weights(len(each.x))[:, None]
            add_lower(moments, weighted.T, each.x)
        return symmetric(moments)

    stream = Stream(function, weights, None, activations, lambda attrs: True, tables=True)
    if not any(attrs["weight"] == table for s in stream.stages for attrs in s.linears):
        return None
    chosen = np.linspace(0, len(windows) - 1, min(WINDOWS, len(windows))).astype(int)
    found = [moments for moments in stream.run(windows[chosen], visit) if moments is not None]
    return torch.stack(found).sum(0)


def round_table(
    attrs: Attrs,
    moments: torch.Tensor | None,
    weights: Weights,
    codes: CodeStore,
    options: Feedback,
) -> dict[str, float]:
    """Make the codes of a table [V, C], a few thousand rows at a time; what they lost.

    Args:
        attrs: of the embedding.
        moments: of the head's input, float32 [C, C]; None for a table that is no head.
    """
    name, fmt, features = attrs["weight"], WeightFormat.parse(attrs["format"]), attrs["features"]
    if moments is None:
        moments = torch.eye(features)
    diagonal = moments.diagonal()
    diagonal += ROWS_PART * diagonal.mean()
    rounder = Rounder(moments, fmt, options, name)
    parts, energies = [], Energies(fmt, moments)
    for start in range(0, attrs["rows"], ROWS):
        rows = weights.rows(name, slice(start, start + ROWS))
        check_finite(rows, name)
        matrix = torch.from_numpy(np.ascontiguousarray(rows))
        parts.append(rounder.round(matrix))
        energies.add(matrix.numpy(), parts[-1])
    figures = energies.figures()
    codes.put(name, fmt, Quantized.stacked(parts), figures)
    return figures
