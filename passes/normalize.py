"""normalize: imported Relax to the dialect, everything recognized by its structure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import tvm
from tvm import relax

from morendo.ir.dialect import call, op_name
from morendo.ir.errors import CompileError
from morendo.ir.generic_ops import GENERIC
from morendo.ir.text import bindings_of
from morendo.ir.token_axes import why_not_apart

from .base import Context, Pass, Report
from .recognize.activations import recognize_gated, recognize_gelu_tanh
from .recognize.attention import recognize_attention
from .recognize.embedding import recognize_embedding
from .recognize.graph import Graph, Rule, dims, op_of
from .recognize.keep_batch import ELEMENTWISE, keep_batch
from .recognize.linear import recognize_linear
from .recognize.norms import recognize_norm, recognize_plain_norm
from .recognize.rope import recognize_rope
from .recognize.simplify import simplify
from .recognize.split_linear import split_linear

RECOGNIZE: tuple[Rule, ...] = (
    simplify,
    recognize_embedding,
    recognize_linear,
    recognize_norm,
    recognize_rope,
    recognize_attention,
    recognize_gelu_tanh,
    recognize_gated,
    keep_batch,
)
SPLIT: tuple[Rule, ...] = (simplify, recognize_plain_norm, split_linear)
# Generic ops that are as good as they get; others are reported.
_PLAIN = ELEMENTWISE | {"relax.reshape", "relax.permute_dims", "relax.astype"}


@dataclass(frozen=True)
class Normalize(Pass):
    """Turn imported Relax into the dialect; weights become names.

        q = R.reshape(R.matmul(x, R.permute_dims(wq)), [1, n, 9, 64])
        ... cos, sin, rotate_half, transpositions ...
        -> q = M.rope(R.reshape(M.linear(x, weight="wq"), [1, n, 9, 64]), position_ids, ...)

    Recognizes embedding, linear, rms_norm, layer_norm, rope, attention's scale, gated activations
    and parts of fused projections (`passes/recognize/`, one file each). A module that is already
    normalized stays as it is; what is not recognized stays valid Relax, reads its weights through
    `M.weight` and is reported as missed.
    """

    name: ClassVar[str] = "normalize"
    needs: ClassVar[tuple[str, ...]] = ("well-formed", "one-graph")
    gives: ClassVar[tuple[str, ...]] = ("well-formed", "normalized")

    def apply(self, module: tvm.IRModule, context: Context) -> tvm.IRModule:
        main = module["main"]
        weights = _weights(main)
        main = _rewrite(main, weights, RECOGNIZE, context.report)
        # Only now: a rotation of some of the dimensions cuts q and k, too.
        main = _rewrite(main, weights, SPLIT, context.report)
        main = _bind_weights(main, _weights(main), context.report)
        _check_rest(main, context.report)
        return tvm.IRModule({"main": main})


def _weights(function: relax.Function) -> dict[relax.Var, str]:
    """The parameters that are weights, with their names."""
    names = [str(n) for n in (function.attrs or {}).get("weight_names", [])]
    inputs = len(function.params) - len(names)
    if inputs != 2:
        raise CompileError(
            f"normalize: main has {inputs} inputs (need input_ids and position_ids)",
            hint="list the other parameters in the attribute weight_names",
        )
    return dict(zip(function.params[2:], names, strict=True))


def _rewrite(
    function: relax.Function, weights: dict[relax.Var, str], rules: Sequence[Rule], report: Report
) -> relax.Function:
    """Copy a function through the rules; what nothing reads any more is gone."""
    builder = relax.BlockBuilder()
    new: dict[relax.Var, Any] = {}
    with builder.function("main", list(function.params)):
        with builder.dataflow():
            graph = Graph(builder, weights, rules)
            for binding in bindings_of(function):
                new[binding.var] = graph.emit(_replaced(binding.value, new))
            out = builder.emit_output(new[function.body.body])
        builder.emit_func_output(out)
    for what, number in graph.counts.items():
        report.count(what, number)
    built = relax.transform.DeadCodeElimination(["main"])(builder.finalize())["main"]
    return built.with_attrs(dict(function.attrs)) if function.attrs else built


def _replaced(value: Any, new: dict[relax.Var, Any]) -> Any:
    if isinstance(value, relax.Var):
        return new.get(value, value)
    if isinstance(value, relax.Call):
        args = [_replaced(arg, new) for arg in value.args]
        return relax.Call(value.op, args, value.attrs, value.ty_args)
    if isinstance(value, relax.Tuple):
        return relax.Tuple([_replaced(field, new) for field in value.fields])
    if isinstance(value, relax.TupleGetItem):
        return relax.TupleGetItem(_replaced(value.tuple_value, new), value.index)
    return value


def _bind_weights(
    function: relax.Function, weights: dict[relax.Var, str], report: Report
) -> relax.Function:
    """Drop the weight parameters; where a generic op still reads one, M.weight takes its place."""
    builder = relax.BlockBuilder()
    new: dict[relax.Var, Any] = {}
    inputs = list(function.params[: len(function.params) - len(weights)])
    read = {var for b in bindings_of(function) for var in relax.analysis.free_vars(b.value)}
    with builder.function("main", inputs):
        with builder.dataflow():
            for var, name in weights.items():
                if var in read:
                    report.count("weights of generic ops")
                    bound = call("weight", name=name, shape=dims(var), dtype=str(var.ty.dtype))
                    new[var] = builder.emit(bound)
            for binding in bindings_of(function):
                value = _replaced(binding.value, new)
                bound = isinstance(value, relax.Var)
                new[binding.var] = value if bound else builder.emit(value)
            out = builder.emit_output(new[function.body.body])
        builder.emit_func_output(out)
    return builder.finalize()["main"]


_APART = "morendo compiles models whose tokens meet in causal attention only"


def _check_rest(function: relax.Function, report: Report) -> None:
    """Say which generic ops stayed that the dialect might have a word for; refuse the unknown."""
    near = "the start"
    for binding in bindings_of(function):
        value = binding.value
        if op_name(value) and "weight" in value.attrs:
            near = str(value.attrs["weight"])
        elif isinstance(value, relax.Call) and not op_name(value):
            _check_generic(value, f"after {near}")
            if op_of(value) not in _PLAIN:
                report.missed(f"after {near}", f"{op_of(value)} stays generic")


def _check_generic(value: relax.Call, where: str) -> None:
    """Refuse an op that has no meaning here, and one that makes tokens meet."""
    name = op_of(value)
    if name and name.removeprefix("relax.") not in GENERIC:
        known = "give a model that is written without it; ir/generic_ops.py lists what is known"
        raise CompileError(
            f"normalize: op {name} is not among those that can be compiled",
            where=where,
            hint=_APART if name.startswith("relax.nn.conv") else known,
        )
    why = why_not_apart(value)
    if why:
        raise CompileError(
            f"normalize: {why}",
            where=where,
            hint=_APART,
        )
