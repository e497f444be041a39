"""prune-tokens: later layers of a prefill see fewer tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import tvm
from tvm import relax

from morendo.ir.dialect import attrs_of, call, op_name, shape_of
from morendo.ir.errors import CompileError, InputError
from morendo.ir.invariants import relax_functions
from morendo.ir.pruning import IMPORTANCES, MOST_DROPPED, MOST_STAGES, UNIT
from morendo.ir.text import bindings_of

from .base import Context, Pass
from .rewrite import Rebuilder, operands

ATTENTIONS = ("cached_attention", "cached_stacked_attention")


@dataclass(frozen=True)
class PruneTokens(Pass):
    """Drop the tokens of a prompt that matter least, in a few of prefill's layers.

        o = M.cached_attention(q, k, v, layer=7); y = M.fused_linear(o, x, ...); later layers of y
        ->  (o, w) = M.cached_attention(q, k, v, layer=7, importance="first")
            y = M.fused_linear(o, x, ...); (y, p) = M.prune_tokens(y, position_ids, w, dropped=345)
            and later layers of this y, at positions p, with caches of stage 1

    A token is important if it pays much attention to the first token, summed over the heads of the
    layer: the paper's measure (its code keeps the largest sums of `attn_probs[head, :, :1]`). With
    `importance` "received" it is if tokens behind it in its chunk pay much attention to it, on
    average. The first and the last token stay. `ratio` is the share of tokens that the last stage
    has lost; `prunings` equal parts of it are dropped in evenly spaced layers, behind their
    attention and what is added to it, never in the first layer nor the last. A prompt that is
    longer than a chunk is pruned within each chunk. score and decode keep all tokens that they are
    given, over the shorter caches that a prefill leaves.

    Does not fire with ratio 0. A model whose later layers have attention windows or biases by
    distance is refused, since slots of a pruned cache are no distances; so is one that no single
    tensor between two attentions holds all of.

    Source: Agile-Quant, arXiv 2312.05693, activation-aware token pruning.
    """

    name: ClassVar[str] = "prune-tokens"
    needs: ClassVar[tuple[str, ...]] = (
        "well-formed",
        "specialized",
        "activations-float",
        "tokens-whole",
    )
    gives: ClassVar[tuple[str, ...]] = ("well-formed", "specialized")

    ratio: float = 0.0
    prunings: int = 3
    importance: str = "first"

    def __post_init__(self) -> None:
        if self.importance not in IMPORTANCES:
            raise InputError(
                f"{self.name}: there is no such importance of tokens (got {self.importance!r}, "
                f"need one of {', '.join(IMPORTANCES)})"
            )
        if not 0 <= self.ratio <= MOST_DROPPED / UNIT:
            raise InputError(
                f"{self.name}: the ratio is out of range (got {self.ratio:g}, need 0 to "
                f"{MOST_DROPPED / UNIT:g})"
            )
        if not 1 <= self.prunings <= MOST_STAGES:
            raise InputError(
                f"{self.name}: prunings is out of range (got {self.prunings}, need 1 to "
                f"{MOST_STAGES})"
            )

    def apply(self, module: tvm.IRModule, context: Context) -> tvm.IRModule:
        if not self.ratio:
            return module
        functions = relax_functions(module)
        layers = self._layers(functions["prefill"])
        dropped = round(UNIT * (1 - (1 - self.ratio) ** (1 / len(layers))))
        stages = _Stages(tuple(layers))
        made = {
            name: Rebuilder(function).run(stages.visit, name)
            for name, function in functions.items()
            if name != "prefill"
        }
        prefill = _Pruned(functions["prefill"], stages, dropped, self.importance)
        context.report.count("prunings", len(layers))
        named = ", ".join(map(str, layers))
        context.report.summary = (
            f"prompts: {100 * self.ratio:g} % of the tokens are dropped, behind layers {named}"
        )
        return tvm.IRModule({"prefill": prefill.run(prefill.visit, "prefill"), **made})

    def _layers(self, prefill: relax.Function) -> list[int]:
        """The layers whose attentions prune, ascending, evenly spaced among all."""
        found = [
            attrs_of(binding.value)["layer"]
            for binding in bindings_of(prefill)
            if op_name(binding.value) in ATTENTIONS
        ]
        if len(found) < 3:
            raise CompileError(
                f"{self.name}: the model is too shallow, first and last layer have all tokens "
                f"(got {len(found)} attentions, need 3 or more)",
                hint="leave --prune-tokens out",
            )
        count = len(found)
        places = {round(count * (i + 1) / (self.prunings + 1)) for i in range(self.prunings)}
        return [found[i] for i in sorted({min(max(place, 1), count - 2) for place in places})]


@dataclass(frozen=True)
class _Stages:
    """Which stage each layer's attention is in.

    Attributes:
        layers: behind whose attention tokens are dropped.
    """

    layers: tuple[int, ...]

    def attrs(self, attention: relax.Call) -> dict[str, Any]:
        """The attributes of an attention in its stage."""
        attrs = attrs_of(attention)
        stage = sum(layer < attrs["layer"] for layer in self.layers)
        for name, what in (("window", "an attention window"), ("alibi", "a bias by distance")):
            if stage and attrs[name]:
                raise CompileError(
                    f"prune-tokens: the layer has {what}, which counts the tokens between two "
                    "that pruning takes away",
                    where=f"layer {attrs['layer']}",
                    hint="leave --prune-tokens out",
                )
        return {**attrs, "stage": stage}

    def visit(self, rebuilder: Rebuilder, var: relax.Var, value: Any) -> Any:
        """Name the stage of an attention."""
        name = op_name(value)
        return call(name, *value.args, **self.attrs(value)) if name in ATTENTIONS else value


class _Pruned(Rebuilder):
    """Rebuilds prefill with fewer tokens behind each cut."""

    def __init__(
        self, function: relax.Function, stages: _Stages, dropped: int, measure: str
    ) -> None:
        super().__init__(function)
        self.stages, self.dropped, self.measure = stages, dropped, measure
        self.tokens = shape_of(function.params[0].ty)[1]
        self.extent: Any = self.tokens
        self.importance: Any = None
        self.cuts = set(_cuts(function, stages.layers).values())

    def visit(self, rebuilder: Rebuilder, var: relax.Var, value: Any) -> Any:
        """Let attentions tell what is important, and prune at cuts."""
        if op_name(value) in ATTENTIONS:
            value = self._attention(value)
        return self._prune(value) if var in self.cuts else value

    def _attention(self, value: relax.Call) -> Any:
        attrs = self.stages.attrs(value)
        important = attrs["layer"] in self.stages.layers
        measure = self.measure if important else ""
        attended = call(op_name(value), *value.args, **{**attrs, "importance": measure})
        if not important:
            return attended
        both = self.emit(attended)
        self.importance = self.emit(relax.TupleGetItem(both, 1))
        return self.emit(relax.TupleGetItem(both, 0))

    def _prune(self, value: Any) -> Any:
        positions = self.function.params[1]
        x = value if isinstance(value, relax.Var) else self.emit(value)
        pruned = self.emit(
            call("prune_tokens", x, self.new[positions], self.importance, dropped=self.dropped)
        )
        self.new[positions] = self.emit(relax.TupleGetItem(pruned, 1))
        kept = self.emit(relax.TupleGetItem(pruned, 0))
        self.extent = shape_of(kept.ty)[1]
        return kept

    def _dim(self, dim: Any) -> Any:
        """A dimension with the tokens of the stage in the place of all tokens."""
        if isinstance(dim, int) or self.extent is self.tokens:
            return dim
        if dim.same_as(self.tokens):
            return self.extent
        # A variable stands in between: the tokens are part of their own new number.
        between = tvm.tirx.Var("tokens", str(self.tokens.ty.dtype))
        for old, new in ((self.tokens, between), (between, self.extent)):
            analyzer = tvm.sym.Analyzer()
            analyzer.bind(old, new)
            dim = analyzer.simplify(dim)
        return dim


def _cuts(function: relax.Function, layers: tuple[int, ...]) -> Mapping[int, relax.Var]:
    """For each of some layers the first variable behind its attention that holds all of a token:
    no later binding reads anything else that was computed from tokens before.

    Raises:
        CompileError: where there is none before the next attention.
    """
    bindings = bindings_of(function)
    last_use: dict[relax.Var, int] = {function.body.body: len(bindings)}
    for index, binding in enumerate(bindings):
        last_use |= dict.fromkeys(operands(binding.value), index)
    live: set[relax.Var] = {function.params[0]}
    found: dict[int, relax.Var] = {}
    waiting: int | None = None
    for index, binding in enumerate(bindings):
        if op_name(binding.value) in ATTENTIONS:
            if waiting is not None:
                break
            layer = attrs_of(binding.value)["layer"]
            waiting = layer if layer in layers else None
        live = {var for var in {*live, binding.var} if last_use.get(var, -1) > index}
        held = [var for var in live if _has_tokens(var)]
        alone = len(held) == 1 and held[0].same_as(binding.var)
        if waiting is not None and alone and len(shape_of(binding.var.ty)) == 3:
            found[waiting], waiting = binding.var, None
    missing = [layer for layer in layers if layer not in found]
    if missing:
        raise CompileError(
            "prune-tokens: no single tensor between this layer's attention and the next one holds "
            "all that later layers read of a token",
            where=f"layer {missing[0]}",
            hint="leave --prune-tokens out",
        )
    return found


def _has_tokens(var: relax.Var) -> bool:
    """Whether a variable has a row, or more, for each token."""
    types = var.ty.fields if isinstance(var.ty, relax.TupleType) else [var.ty]
    return any(
        not isinstance(dim, int)
        for ty in types
        if isinstance(ty, relax.TensorType)
        for dim in shape_of(ty)
    )
