"""How ops become calls of this target's kernels, where it is another way than the shared one."""

from __future__ import annotations

from typing import Any

from tvm import relax

from morendo.codegen.lower_ops import LOWERINGS, lower_linear
from morendo.codegen.lowering import FunctionLowering
from morendo.codegen.memory import Storage
from morendo.ir.dialect import shape_of
from morendo.ir.formats import WeightFormat

from .kernels.half_linear import build_half_linear, half_activation


def fused_linear(lowering: FunctionLowering, call: relax.Call, attrs: dict[str, Any]) -> Storage:
    """A linear whose activations are floats: halves, where its weights are integers."""
    fmt = WeightFormat.parse(attrs["format"])
    if not fmt.quantized:
        return LOWERINGS["fused_linear"](lowering, call, attrs)
    tokens, count = lowering.rows(call.args[0])
    features = shape_of(call.args[0].ty)[-1]
    ordered = {"ordered": True} if attrs["order"] else {}
    function = lowering.build(
        half_activation,
        max_tokens=tokens,
        features=features,
        group_size=fmt.group_size,
        **ordered,
    )
    order = [lowering.program.weights.order(attrs["order"], features)] if ordered else []
    halves = lowering.new_like(function.params[-3:-1])
    args = [lowering.storage(call.args[0]), *order, *halves, count]
    lowering.call(function, args, "activation to halves")
    return lower_linear(lowering, call, attrs, halves, build_half_linear)
