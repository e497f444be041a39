"""search-scales: scales and zeros of linears by search, without any text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import tvm
from tvm import relax

from morendo.ir.dialect import NORMS, attrs_of, op_name
from morendo.ir.errors import CompileError
from morendo.ir.formats import WeightFormat
from morendo.ir.invariants import SEARCHED
from morendo.ir.text import bindings_of
from morendo.ir.weight_overlay import WeightOverlay

from .base import Context, Pass
from .rewrite import mark_codes


@dataclass(frozen=True)
class SearchScales(Pass):
    """Choose scales and zeros of linears by search, by what is known of their inputs without text.

        y = M.linear(x, weight="w", ..., format="q4g32")
        ->  y = M.linear(x, weight="w", ..., format="q4g32", codes="searched"); the codes are kept
            with the weights, where packing finds them

    For each group of each row the pair of scale and zero is searched that leaves the least sum of
    squared errors, weighted by the channels' mean squares: those of what a norm gives are the
    squares of its gain, plus those of its bias, since what it normalized has a mean square of 1.
    Channels of other inputs count alike.

    Does not fire on float and 8-bit formats, where rounding to nearest loses next to nothing, on
    those with several readings or outliers, which need a text, and on tables of tokens and heads
    tied to them.
    """

    name: ClassVar[str] = "search-scales"
    task: ClassVar[str] = "search scales"
    needs: ClassVar[tuple[str, ...]] = (
        "well-formed",
        "normalized",
        "formats-known",
        "linears-apart",
        "formats-open",
    )
    gives: ClassVar[tuple[str, ...]] = (
        "well-formed",
        "normalized",
        "formats-known",
        "results-kept",
    )

    def apply(self, module: tvm.IRModule, context: Context) -> tvm.IRModule:
        weights = context.weights
        if weights is None:
            raise CompileError(
                f"{self.name}: there are no weights to search scales for",
                hint="give `morendo compile` a model, or leave the pass out",
            )
        tables = {
            attrs_of(b.value)["weight"]
            for b in bindings_of(module["main"])
            if op_name(b.value) == "embedding"
        }
        linears = {
            attrs["weight"]: (attrs, norm)
            for attrs, norm in _linears(module["main"])
            if attrs["weight"] not in tables and _fires(attrs["format"])
        }
        with context.track(self.task, len(linears)) as advance:
            for name, (attrs, norm) in linears.items():
                squares = mean_squares(norm, attrs["in_features"], weights)
                context.report.figures[name] = _search(attrs, squares, weights)
                context.report.count("matrices searched")
                context.report.count("of these by the gain of a norm", bool(norm))
                advance()
        return mark_codes(module, weights.code_store, SEARCHED)


def _fires(spec: str) -> bool:
    fmt = WeightFormat.parse(spec)
    return fmt.nested and fmt.reading_count == 1 and not fmt.slots


def _linears(function: relax.Function) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """The attributes of every linear, and of the norm that gives its input, {} for other inputs."""
    norms: dict[relax.Var, dict[str, Any]] = {}
    found = []
    for binding in bindings_of(function):
        name = op_name(binding.value)
        if name in NORMS:
            norms[binding.var] = attrs_of(binding.value)
        elif name == "linear":
            found.append((attrs_of(binding.value), norms.get(binding.value.args[0], {})))
    return found


def mean_squares(norm: dict[str, Any], channels: int, weights: WeightOverlay) -> np.ndarray:
    """What is known of the mean squares of an input's channels: float32 [channels].

    Args:
        norm: attributes of the norm that gives the input; {} where another op does.
        channels: of the input.
        weights: of the model.
    """
    if not norm:
        return np.ones(channels, np.float32)
    gains = weights.get(norm["weight"]) if norm["weight"] else np.zeros(channels, np.float32)
    squares = (gains + norm["offset"]) ** 2
    if norm.get("bias"):
        squares = squares + weights.get(norm["bias"]) ** 2
    return squares.astype(np.float32)


def _search(attrs: dict[str, Any], squares: np.ndarray, weights: WeightOverlay) -> dict[str, float]:
    """Make and keep the codes of one linear's matrix; what they lose."""
    # torch takes seconds to import: not before it is needed
    import torch

    from .quantizer.search import lost, search_codes
    from .streaming.stream import float_matrix, stored_order

    fmt, order = WeightFormat.parse(attrs["format"]), stored_order(weights, attrs)
    matrix = np.ascontiguousarray(float_matrix(weights, attrs)[:, order])
    codes = search_codes(torch.from_numpy(matrix), torch.from_numpy(squares[order]), fmt)
    figures = lost(matrix, squares[order], fmt, codes)
    weights.code_store.put(attrs["weight"], fmt, codes, figures)
    return figures
