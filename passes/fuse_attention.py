"""fuse-attention: one stacked linear and one op for rope and attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import tvm
from tvm import relax

from morendo.ir.dialect import ACTIVATIONS, ROPE, STACKED, attrs_of, call, op_name, shape_of

from .base import Context, Pass
from .rewrite import Rebuilder, map_functions


@dataclass(frozen=True)
class FuseAttention(Pass):
    """Stack q, k and v into one matrix and let attention read them in place.

        q = M.rope(R.reshape(M.linear(x, "wq")), p); k = M.rope(...); v = R.reshape(...)
        o = M.attention(q, k, v, layer=0, scale=0.125)
        ->  qkv = M.fused_linear(x, weights=["wq", "wk", "wv"]);
            o = R.reshape(M.stacked_attention(qkv, p, heads=9, kv_heads=3, ...))

    One matrix is one kernel launch with three times the rows, and no head is copied. Does not fire
    when something stands between linear and rope (the q/k norms of qwen3), when q and k have
    different rope attributes, or when a linear's result is read twice.
    """

    name: ClassVar[str] = "fuse-attention"
    needs: ClassVar[tuple[str, ...]] = ("well-formed", "normalized", "formats-known")
    gives: ClassVar[tuple[str, ...]] = ("well-formed", "normalized", "formats-known")

    def apply(self, module: tvm.IRModule, context: Context) -> tvm.IRModule:
        def visit(rebuilder: Rebuilder, var: relax.Var, value: Any) -> Any:
            if op_name(value) != "attention":
                return value
            layer = attrs_of(value)["layer"]
            match = _Match(rebuilder, rebuilder.values[var])
            if match.why:
                context.report.missed(f"layer {layer}", match.why)
                return value
            context.report.count("attentions fused")
            return match.rewrite(rebuilder)

        return map_functions(module, visit)


class _Match:
    """The three branches behind an attention, or why they do not fit (`why`)."""

    def __init__(self, rebuilder: Rebuilder, attention: relax.Call) -> None:
        self.attention = attention
        self.why = ""
        self.values = rebuilder.values
        self.single_use = rebuilder.single_use
        branches = [self._branch(arg) for arg in attention.args]
        if not self.why:
            self._check(branches)
        self.linears = [linear for linear, _ in branches]
        self.ropes = [rope for _, rope in branches]

    def _step(self, var: Any) -> Any:
        if not self.single_use(var):
            self.why = self.why or "a result between linear and attention is read twice"
        return self.values.get(var)

    def _branch(self, var: Any) -> tuple[Any, Any]:
        """(linear, rope or None) behind one operand of the attention."""
        value, rope = self._step(var), None
        if op_name(value) == "rope":
            rope = value
            value = self._step(value.args[0])
        if isinstance(value, relax.Call) and value.op == tvm.ir.Op.get("relax.reshape"):
            value = self._step(value.args[0])
        if op_name(value) != "linear":
            self.why = self.why or "q, k or v is no plain linear"
        return value, rope

    def _check(self, branches: list[tuple[Any, Any]]) -> None:
        (q, q_rope), (k, k_rope), (v, v_rope) = branches
        attrs = [attrs_of(linear) for linear in (q, k, v)]
        if v_rope is not None or q_rope is None or k_rope is None:
            self.why = "rope is not on q and k alone"
        elif attrs_of(q_rope) != attrs_of(k_rope):
            self.why = "q and k have different rope"
        elif not (q.args[0].same_as(k.args[0]) and q.args[0].same_as(v.args[0])):
            self.why = "q, k and v read different inputs"
        elif len({(a["format"], a["transposed"], a["in_features"]) for a in attrs}) > 1:
            self.why = "q, k and v have different formats"
        elif len({a["order"] for a in attrs}) > 1:
            self.why = "q, k and v have different channel orders"
        elif len({tuple(a[key] for key in ACTIVATIONS) for a in attrs}) > 1:
            self.why = "q, k and v have different activations"
        elif len({a["codes"] for a in attrs}) > 1:
            self.why = "codes of some of q, k and v alone are made"

    def rewrite(self, rebuilder: Rebuilder) -> Any:
        attrs = [attrs_of(linear) for linear in self.linears]
        biases = [a["bias"] for a in attrs]
        qkv = rebuilder.emit(
            call(
                "fused_linear",
                rebuilder.replaced(self.linears[0].args[0]),
                weights=[a["weight"] for a in attrs],
                biases=biases if any(biases) else [],
                out_features=[a["out_features"] for a in attrs],
                **{key: attrs[0][key] for key in STACKED},
            )
        )
        shape = shape_of(self.attention.args[0].ty)
        rope = attrs_of(self.ropes[0])
        out = rebuilder.emit(
            call(
                "stacked_attention",
                qkv,
                rebuilder.replaced(self.ropes[0].args[1]),
                heads=shape[2],
                kv_heads=shape_of(self.attention.args[1].ty)[2],
                head_dim=shape[3],
                **{key: rope[key] for key in ROPE},
                **attrs_of(self.attention),
            )
        )
        return relax.op.reshape(out, rebuilder.replaced(relax.ShapeExpr(shape)))
