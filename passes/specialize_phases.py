"""specialize-phases: one exported graph becomes prefill, score and decode over a KV cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import tvm
from tvm import relax

from morendo.ir.dialect import attrs_of, call, op_name
from morendo.ir.errors import CompileError, InputError
from morendo.ir.invariants import relax_functions
from morendo.ir.layout import CACHE_DTYPES

from .base import Context, Pass
from .last_token import LastToken
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
    computed twice. In prefill all tokens give keys and values to the last layer, but only the last
    one attends there, and only this one goes through what comes behind.

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
        dtype = str(tokens.ty.dtype)
        one, fresh = tvm.tirx.IntImm(dtype, 1), tvm.tirx.Var(tokens.name, dtype)
        tail = LastToken(main)
        functions = {
            "prefill": tail.run(self._visit, "prefill"),
            "score": Rebuilder(main, {tokens: fresh}).run(self._visit, "score"),
            "decode": Rebuilder(main, {tokens: one}).run(self._visit, "decode"),
        }
        for name, op in ((n, o) for n, f in functions.items() for o in _ops(f)):
            if op.startswith("cached"):
                context.report.count(f"{op} in {name}")
        context.report.count("ops of the last token in prefill", len(tail.single))
        return tvm.IRModule(functions)

    def _visit(self, rebuilder: Rebuilder, var: relax.Var, value: Any) -> Any:
        """Swap attention for its cached form."""
        name = op_name(value)
        if name not in CACHED:
            return value
        last = isinstance(rebuilder, LastToken) and var in rebuilder.single
        attrs = {**attrs_of(value), "cache_bits": self.cache_bits, "last": last}
        return call(CACHED[name], *value.args, **attrs)


def _ops(function: relax.Function) -> list[str]:
    return [op_name(value) for value in Rebuilder(function).values.values()]
