"""quantize-activations: int8 inputs for linears with integer weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import tvm
from tvm import relax

from morendo.ir.dialect import ACTIVATIONS, NORMS, attrs_of, call, op_name
from morendo.ir.formats import WeightFormat

from .base import Context, Pass
from .rewrite import Rebuilder, map_functions


@dataclass(frozen=True)
class QuantizeActivations(Pass):
    """Round the input of every quantized linear, for each token and group.

        y = M.fused_linear(x, weights=["w"], format="q4g32")
        ->  a = M.quantize_activation(x, group_size=32)
            y = M.quantized_linear(a[0], a[1], a[2], weights=["w"], format="q4g32")

    Linears that share an input share its codes when they have the same channel order and activation
    format (8 bits, or what choose-activations says), and a norm that nothing else reads is fused
    with the rounding. The codes are in the linear's order. Linears with float weights stay as they
    are.

    Source: dynamic activation quantization of Agile-Quant, arXiv 2312.05693, section 3.
    """

    name: ClassVar[str] = "quantize-activations"
    needs: ClassVar[tuple[str, ...]] = ("well-formed", "formats-known", "fused")
    gives: ClassVar[tuple[str, ...]] = ("well-formed", "activations-quantized")

    def apply(self, module: tvm.IRModule, context: Context) -> tvm.IRModule:
        codes: dict[tuple[Any, ...], relax.Var] = {}

        def visit(rebuilder: Rebuilder, var: relax.Var, value: Any) -> Any:
            if op_name(value) != "fused_linear":
                return value
            attrs = attrs_of(value)
            fmt = WeightFormat.parse(attrs["format"])
            if not fmt.quantized:
                context.report.missed(", ".join(attrs["weights"]), f"weights are {fmt.name}")
                return value
            old = rebuilder.values[var].args[0]
            rounding = {name: attrs[name] for name in ("order", *ACTIVATIONS)}
            key = (rebuilder, old, fmt.group_size, *rounding.values())
            if key not in codes:
                options = {"group_size": fmt.group_size, **rounding}
                codes[key] = _quantize(rebuilder, old, options, context)
            parts = [rebuilder.emit(relax.TupleGetItem(codes[key], i)) for i in range(3)]
            return call("quantized_linear", *parts, *value.args[1:], **attrs)

        return map_functions(module, visit)


def _quantize(
    rebuilder: Rebuilder, x: relax.Var, options: dict[str, Any], context: Context
) -> relax.Var:
    producer = rebuilder.values.get(x)
    readers = [op_name(rebuilder.values.get(use)) for use in rebuilder.uses[x]]
    context.report.count("activations quantized")
    norm = op_name(producer)
    if norm in NORMS and all(name == "fused_linear" for name in readers):
        context.report.count("norms fused")
        source, attrs = rebuilder.replaced(producer.args[0]), attrs_of(producer)
        return rebuilder.emit(call(f"{norm}_quantize", source, **options, **attrs))
    return rebuilder.emit(call("quantize_activation", rebuilder.replaced(x), **options))
