"""fuse-linears: gate and up in one matrix, the residual in the epilogue."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import tvm
import tvm_ffi
from tvm import relax

from morendo.ir.dialect import ACTIVATIONS, STACKED, attrs_of, call, op_name
from morendo.ir.formats import WeightFormat

from .base import Context, Pass
from .rewrite import Rebuilder, map_functions


@dataclass(frozen=True)
class FuseLinears(Pass):
    """Turn every linear into a fused one that takes the work around it along.

        h = M.gated(M.linear(x, "wg"), M.linear(x, "wu"), activation="silu")
        ->  h = M.fused_linear(x, weights=["wg", "wu"], gate="silu")
        y = R.add(r, M.linear(h, "wd"))
        ->  y = M.fused_linear(h, r, weights=["wd"])

    Rows of gate and up alternate by tiles, so that a kernel has both in registers. Gate and
    up stay apart when their rows are no multiple of the tile, when one has a bias, when formats or
    channel orders differ, or when a result is read twice; a residual stays an add when shapes
    differ.
    """

    name: ClassVar[str] = "fuse-linears"
    needs: ClassVar[tuple[str, ...]] = ("well-formed", "normalized", "formats-known")
    gives: ClassVar[tuple[str, ...]] = ("well-formed", "normalized", "formats-known", "fused")

    def apply(self, module: tvm.IRModule, context: Context) -> tvm.IRModule:
        def visit(rebuilder: Rebuilder, var: relax.Var, value: Any) -> Any:
            old, fused = rebuilder.values[var], None
            if op_name(value) == "gated":
                fused = _fuse_gate(rebuilder, old, context)
            elif isinstance(value, relax.Call) and value.op == tvm.ir.Op.get("relax.add"):
                fused = _fuse_residual(rebuilder, old, context)
            elif op_name(value) == "linear":
                fused = _fused(value.args[0], [attrs_of(value)])
            return value if fused is None else fused

        return map_functions(module, visit)


def _fused(x: Any, linears: list[dict[str, Any]], gate: str = "", residual: Any = None) -> Any:
    biases = [a["bias"] for a in linears]
    return call(
        "fused_linear",
        x,
        *([residual] if residual is not None else []),
        weights=[a["weight"] for a in linears],
        biases=biases if any(biases) else [],
        out_features=[a["out_features"] for a in linears],
        gate=gate,
        **{key: linears[0][key] for key in STACKED},
    )


def _fuse_gate(rebuilder: Rebuilder, gated: relax.Call, context: Context) -> Any:
    branches = [rebuilder.values.get(arg) for arg in gated.args]
    if any(op_name(branch) != "linear" for branch in branches):
        context.report.missed("gated MLP", "gate or up is no linear")
        return None
    gate, up = (attrs_of(branch) for branch in branches)
    why, tile = "", WeightFormat.parse(gate["format"]).row_tile
    if not branches[0].args[0].same_as(branches[1].args[0]):
        why = "gate and up read different inputs"
    elif not all(rebuilder.single_use(arg) for arg in gated.args):
        why = "gate or up is read twice"
    elif gate["out_features"] % tile or gate["bias"] or up["bias"]:
        why = f"rows are no multiple of {tile} or there is a bias"
    elif (gate["format"], gate["transposed"]) != (up["format"], up["transposed"]):
        why = "gate and up have different formats"
    elif gate["order"] != up["order"]:
        why = "gate and up have different channel orders"
    elif any(gate[key] != up[key] for key in ACTIVATIONS):
        why = "gate and up have different activations"
    elif gate["codes"] != up["codes"]:
        why = "codes of one of gate and up alone are made"
    if why:
        context.report.missed(gate["weight"], why)
        return None
    context.report.count("gated MLPs fused")
    x = rebuilder.replaced(branches[0].args[0])
    return _fused(x, [gate, up], gate=attrs_of(gated)["activation"])


def _fuse_residual(rebuilder: Rebuilder, add: relax.Call, context: Context) -> Any:
    for mine, other in (add.args, reversed(add.args)):
        linear = rebuilder.values.get(mine)
        same = tvm_ffi.structural_equal(mine.ty, other.ty)
        if op_name(linear) != "linear" or not rebuilder.single_use(mine) or not same:
            continue
        residual = rebuilder.replaced(other)
        context.report.count("residuals fused")
        return _fused(rebuilder.replaced(linear.args[0]), [attrs_of(linear)], residual=residual)
    return None
