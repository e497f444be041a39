"""specialize-phases: one exported graph becomes prefill, score and decode over a KV cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import tvm
from tvm import relax

from morendo.ir.dialect import NORMS, attrs_of, call, op_name
from morendo.ir.errors import CompileError, InputError
from morendo.ir.invariants import relax_functions
from morendo.ir.layout import CACHE_DTYPES

from .base import Context, Pass
from .rewrite import Rebuilder

CACHED = {"attention": "cached_attention", "stacked_attention": "cached_stacked_attention"}


@dataclass(frozen=True)
class SpecializePhases(Pass):
    """Make the three functions that the runtime calls out of `main`.

        main(input_ids (1,n), position_ids) -> logits (1,n,V)
        ->  prefill: a chunk of n tokens -> logits (1,1,V) of the last one
            score:   a chunk of n tokens -> logits (1,n,V) of all
            decode:  one token, n = 1   -> logits (1,1,V)

    Attention becomes attention over the layer's KV cache, which grows in place: nothing is
    computed twice. In prefill only the last token goes through the final norm and the head.

    With `cache_bits` 8 or 4 the cache holds codes, and attention is of integers; 0 leaves the
    choice between float32 and float16 to the target.

    Source: the split into phases of PMPD, arXiv 2410.13461, section 3; integer attention of
    Agile-Quant, arXiv 2312.05693.
    """

    name: ClassVar[str] = "specialize-phases"
    needs: ClassVar[tuple[str, ...]] = (
        "well-formed",
        "normalized",
        "fused",
        "activations-float",
    )
    gives: ClassVar[tuple[str, ...]] = ("well-formed", "specialized")

    cache_bits: int = 0

    def __post_init__(self) -> None:
        if self.cache_bits and self.cache_bits not in CACHE_DTYPES:
            choices = ", ".join(map(str, CACHE_DTYPES))
            raise InputError(
                f"{self.name}: cache_bits is no width of a cache (got {self.cache_bits}, "
                f"need one of {choices})"
            )

    def apply(self, module: tvm.IRModule, context: Context) -> tvm.IRModule:
        main = relax_functions(module)["main"]
        tokens = main.params[0].ty.shape.values[1]
        if not tvm.ir.is_prim_var(tokens):
            raise CompileError(
                f"specialize-phases: the number of tokens is fixed (got {tokens})",
                where="main",
                hint="export the model with a symbolic sequence length",
            )
        head = _head(main)
        dtype = str(tokens.ty.dtype)
        one, fresh = tvm.tirx.IntImm(dtype, 1), tvm.tirx.Var(tokens.name, dtype)
        functions = {
            "prefill": Rebuilder(main).run(self._visitor(head), "prefill"),
            "score": Rebuilder(main, {tokens: fresh}).run(self._visitor(None), "score"),
            "decode": Rebuilder(main, {tokens: one}).run(self._visitor(None), "decode"),
        }
        for name, op in ((n, o) for n, f in functions.items() for o in _ops(f)):
            if op.startswith("cached"):
                context.report.count(f"{op} in {name}")
        if head is None:
            context.report.missed("prefill", "no final linear found: logits of all tokens computed")
        return tvm.IRModule(functions)

    def _visitor(self, head: relax.Var | None) -> Any:
        """Swap attention for its cached form; after `head`, later ops read its last token."""
        last_norm: list[Any] = []

        def visit(rebuilder: Rebuilder, var: relax.Var, value: Any) -> Any:
            name = op_name(value)
            if name in CACHED:
                attrs = {**attrs_of(value), "cache_bits": self.cache_bits}
                return call(CACHED[name], *value.args, **attrs)
            if head is not None and _is_final(rebuilder, var, head):
                if not last_norm:
                    last_norm.append(rebuilder.emit(call("last_token", rebuilder.new[head])))
                return call(name, last_norm[0], *value.args[1:], **attrs_of(value))
            return value

        return visit


def _ops(function: relax.Function) -> list[str]:
    return [op_name(value) for value in Rebuilder(function).values.values()]


def _head(main: relax.Function) -> relax.Var | None:
    """The variable to cut to its last token: the input of the final linear or of its norm."""
    values = Rebuilder(main).values
    linears = [value for value in values.values() if op_name(value) == "fused_linear"]
    if not linears or len(linears[-1].args) != 1:
        return None
    x = linears[-1].args[0]
    producer = values.get(x)
    return producer.args[0] if op_name(producer) in NORMS else x


def _is_final(rebuilder: Rebuilder, var: relax.Var, head: relax.Var) -> bool:
    """Whether `var` is the final norm (or linear) that reads `head`."""
    value = rebuilder.values[var]
    if op_name(value) not in (*NORMS, "fused_linear") or not value.args[0].same_as(head):
        return False
    reads_norm = rebuilder.uses.get(var, [])
    if op_name(value) == "fused_linear":
        return var.same_as(_last_linear(rebuilder))
    return any(use.same_as(_last_linear(rebuilder)) for use in reads_norm)


def _last_linear(rebuilder: Rebuilder) -> relax.Var:
    return [v for v, value in rebuilder.values.items() if op_name(value) == "fused_linear"][-1]
