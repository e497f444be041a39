"""Cutting a function where calibration has to stop: before linears that share one input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import tvm
from tvm import relax

from morendo.ir.dialect import attrs_of, op_name
from morendo.ir.text import bindings_of

Attrs = dict[str, Any]


@dataclass
class Stage:
    """Bindings that run for every window before a group of linears is rounded.

    Attributes:
        bindings: in order.
        source: the input of the linears.
        linears: their attributes, in order.
        live: variables that later stages read, `source` among them unless it is the last.
        residual: what the output of a single linear is added to, None where that is not known
            before the stage.
    """

    bindings: list[relax.VarBinding]
    source: relax.Var
    linears: list[Attrs]
    live: list[relax.Var] = field(default_factory=list)
    residual: relax.Var | None = None


def split_stages(
    function: relax.Function, wanted: Callable[[Attrs], bool], with_tables: bool = False
) -> list[Stage]:
    """The stages of a function; what follows the last wanted linear is left out.

    Args:
        function: normalized, so that matrices are read by linears and embeddings.
        wanted: whether a linear with these attributes is to be rounded.
        with_tables: whether those are wanted whose matrix is an embedding table as well.
    """
    linears: dict[relax.Var, list[Attrs]] = {}
    tables = {
        attrs_of(b.value)["weight"]
        for b in bindings_of(function)
        if op_name(b.value) == "embedding"
    }
    for binding in bindings_of(function):
        if op_name(binding.value) == "linear" and wanted(attrs_of(binding.value)):
            if attrs_of(binding.value)["weight"] in tables and not with_tables:
                continue
            linears.setdefault(binding.value.args[0], []).append(attrs_of(binding.value))
    stages: list[Stage] = []
    done: set[relax.Var] = set()
    pending: list[relax.VarBinding] = []
    for binding in bindings_of(function):
        value = binding.value
        if op_name(value) == "linear" and value.args[0] in linears and value.args[0] not in done:
            source = value.args[0]
            done.add(source)
            stages.append(Stage(pending, source, linears[source]))
            pending = []
        pending.append(binding)
    _find_residuals(function, stages)
    _find_live(function, stages)
    return stages


def _find_residuals(function: relax.Function, stages: list[Stage]) -> None:
    """Fill in `residual` where a linear's output is an operand of an add."""
    bound_at = {var: -1 for var in function.params}
    bound_at |= {b.var: i for i, stage in enumerate(stages) for b in stage.bindings}
    outputs = {
        b.var: b.value.args[0] for b in bindings_of(function) if op_name(b.value) == "linear"
    }
    of_source = {stage.source: (i, stage) for i, stage in enumerate(stages)}
    for binding in bindings_of(function):
        value = binding.value
        if not (isinstance(value, relax.Call) and value.op == tvm.ir.Op.get("relax.add")):
            continue
        for mine, other in (value.args, reversed(value.args)):
            index, stage = of_source.get(outputs.get(mine), (0, None))
            if stage and len(stage.linears) == 1 and bound_at.get(other, len(stages)) <= index:
                stage.residual = other


def _find_live(function: relax.Function, stages: list[Stage]) -> None:
    """Fill in `live`, from the last stage to the first."""
    bound = {binding.var for binding in bindings_of(function)}
    needed: dict[relax.Var, None] = {}
    for stage in reversed(stages):
        stage.live = list(needed)
        if stage.residual is not None and stage.residual in bound:
            needed[stage.residual] = None
        for binding in stage.bindings:
            needed.pop(binding.var, None)
        defined = {binding.var for binding in stage.bindings}
        for binding in stage.bindings:
            for var in relax.analysis.free_vars(binding.value):
                if var in bound and var not in defined:
                    needed[var] = None
