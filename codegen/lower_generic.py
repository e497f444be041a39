"""Ops outside the dialect: aliases, constants, and whatever TVM's own legalization can lower."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import tvm
import tvm_ffi
from tvm import relax, tirx

from morendo.ir.dialect import shape_of, tensor
from morendo.ir.errors import CompileError
from morendo.ir.text import bindings_of

from .cpu.kernels.elementwise import activate, schedule_generic
from .cpu.vectors.vector_math import ACTIVATIONS
from .lowering import FunctionLowering
from .memory import Storage

_ALIASES = ("reshape", "flatten", "squeeze", "expand_dims")


def lower_generic(lowering: FunctionLowering, value: Any) -> Any:
    """Append kernel calls for a bound value that is no dialect call; gives its storage.

    Raises:
        CompileError: for an op that cannot be lowered.
    """
    if isinstance(value, relax.Var):
        return lowering.values[value]
    if isinstance(value, tvm.ir.GenericConst):
        return lowering.program.weights.constant(value.value.numpy())
    if isinstance(value, relax.Tuple):
        return [lower_generic(lowering, part) for part in value.fields]
    if isinstance(value, relax.TupleGetItem):
        return lowering.values[value.tuple_value][value.index]
    if _is_alias(value):
        return lowering.storage(value.args[0])
    if _activation_name(value):
        return _activation(lowering, value)
    return _legalized(lowering, value)


def _activation_name(call: relax.Call) -> str:
    """The activation that a call is, when it has a kernel: of float32 (1, n, F); else nothing."""
    name = call.op.name.removeprefix("relax.nn.") if isinstance(call.op, tvm.ir.Op) else ""
    plain = name in ACTIVATIONS and call.ty.dtype == "float32" and len(shape_of(call.ty)) == 3
    return name if plain else ""


def _activation(lowering: FunctionLowering, call: relax.Call) -> Storage:
    name, features = _activation_name(call), shape_of(call.ty)[-1]
    tokens, count = lowering.rows(call.args[0])
    out = lowering.new("float32", tokens, features)
    function = lowering.program.build(
        activate, max_tokens=tokens, features=features, activation_name=name
    )
    lowering.call(function, [lowering.storage(call.args[0]), out, count], name)
    return out


def _is_alias(call: relax.Call) -> bool:
    """Whether the result has the operand's elements in the operand's order."""
    name = call.op.name if isinstance(call.op, tvm.ir.Op) else ""
    if name.removeprefix("relax.") in _ALIASES:
        return True
    if name == "relax.permute_dims":
        return _moves_only_ones(call)
    return name == "relax.astype" and call.args[0].ty.dtype == call.ty.dtype


def _moves_only_ones(call: relax.Call) -> bool:
    dims = list(call.args[0].ty.shape.values)
    axes = [int(axis) for axis in call.attrs.axes or reversed(range(len(dims)))]
    kept = [a for a in axes if not (isinstance(dims[a], tirx.IntImm) and int(dims[a]) == 1)]
    return kept == sorted(kept)


def _legalized(lowering: FunctionLowering, call: relax.Call) -> Any:
    """Wrap the call in a function of its own, legalize that, and lower what comes out.

    Later stages of a prefill count their tokens by an expression; the function has a variable in
    its place, so that all stages have one kernel.
    """
    stage = max(_stages(lowering, call.args), default=0)
    given: list[tuple[relax.Var, Any]] = []
    args = [_parameter(lowering, arg, stage, given) for arg in call.args]
    builder = relax.BlockBuilder()
    with builder.function("main", [param for param, _ in given]):
        out = builder.emit(relax.Call(call.op, args, call.attrs, call.ty_args))
        builder.emit_func_output(out)
    module = relax.transform.LegalizeOps()(builder.finalize())
    function = module["main"]
    inner: dict[Any, Any] = {}
    for param, (_, operand) in zip(function.params, given, strict=True):
        known = lowering.values.get(operand) if isinstance(operand, relax.Var) else None
        inner[param] = known if known is not None else lower_generic(lowering, operand)
    for binding in bindings_of(function):
        inner[binding.var] = _lower_call_tir(lowering, module, binding.value, inner, call, stage)
    return inner[function.body.body]


def _stages(lowering: FunctionLowering, operands: Iterable[Any]) -> Iterator[int]:
    """The stages of a prefill that operands belong to."""
    for operand in operands:
        if isinstance(operand, relax.Tuple):
            yield from _stages(lowering, operand.fields)
        elif isinstance(operand.ty, relax.TensorType):
            yield from (lowering.stage(dim) for dim in shape_of(operand.ty))


def _parameter(
    lowering: FunctionLowering, operand: Any, stage: int, given: list[tuple[relax.Var, Any]]
) -> Any:
    """What stands for an operand in the function of its own: a parameter for a tensor.

    Args:
        given: parameters with the tensors that they stand for; new ones are added.
    """
    if isinstance(operand.ty, relax.TensorType):
        ty = _with_all_tokens(lowering, operand.ty) if stage else operand.ty
        given.append((relax.Var(f"p{len(given)}", ty), operand))
        return given[-1][0]
    if not stage:
        return operand
    if isinstance(operand, relax.Tuple):
        fields = [_parameter(lowering, field, stage, given) for field in operand.fields]
        return relax.Tuple(fields)
    return _with_all_tokens(lowering, operand)


def _with_all_tokens(lowering: FunctionLowering, value: Any) -> Any:
    """A tensor type or a shape that has as many tokens as stage 0."""

    def dim(size: Any) -> Any:
        return lowering.stages[0] if lowering.stage(size) else size

    if isinstance(value, relax.TensorType):
        return tensor([dim(size) for size in shape_of(value)], str(value.dtype))
    if isinstance(value, relax.ShapeExpr):
        return relax.ShapeExpr([dim(size) for size in value.values])
    return value


def _lower_call_tir(
    lowering: FunctionLowering,
    module: tvm.IRModule,
    value: Any,
    inner: dict[Any, Any],
    call: relax.Call,
    stage: int,
) -> Any:
    if isinstance(value, relax.Var):
        return inner[value]
    if isinstance(value, tvm.ir.GenericConst):
        return lowering.program.weights.constant(value.value.numpy())
    name = call.op.name.removeprefix("relax.")
    if not isinstance(value, relax.Call) or value.op != tvm.ir.Op.get("relax.call_tir"):
        raise CompileError(
            f"op {name} cannot be lowered",
            where="lowering",
            hint="see which op stayed unrecognized with --dump-ir",
        )
    outputs = lowering.new_for(value.ty_args[0])
    flat = outputs if isinstance(outputs, list) else [outputs]
    operands = [inner.get(arg) or lower_generic(lowering, arg) for arg in value.args[1].fields]
    function = _kernel(lowering, module[value.args[0]], name)
    lowering.call(function, [*operands, *flat], name, stage=stage)
    return outputs


def _kernel(lowering: FunctionLowering, function: tirx.PrimFunc, name: str) -> tirx.PrimFunc:
    """The scheduled function under a name that tells apart everything its code depends on."""
    target, chunk = lowering.program.target, lowering.program.options.chunk
    schedule = target.builders.get(schedule_generic, schedule_generic)
    scheduled = schedule(function, target.isa, chunk)
    symbol = f"{name.replace('.', '_')}_{tvm_ffi.structural_hash(scheduled) & (2**64 - 1):016x}"
    lowering.program.unscheduled.setdefault(symbol, function)
    return scheduled.with_attr("global_symbol", symbol)
