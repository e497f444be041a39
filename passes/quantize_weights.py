"""quantize-weights: choose the stored format of every matrix."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import tvm
from tvm import relax

from morendo.ir.dialect import attrs_of, call, op_name
from morendo.ir.errors import InputError
from morendo.ir.formats import WHOLE, WeightFormat, check_readings, format_for_bits
from morendo.ir.invariants import calls, relax_functions
from morendo.ir.text import bindings_of

from .base import Context, Pass
from .rewrite import map_functions


@dataclass(frozen=True)
class QuantizeWeights(Pass):
    """Give linears and embeddings a weight format; the codes are made when weights are packed.

        y = M.linear(x, weight="w", ...)
        ->  y = M.linear(x, weight="w", ..., format="q4g32")

    Round to nearest with a min-max range for each row and group, in the target's tiles. The
    embedding table and the output head (the linear that the result comes from) get `head_bits`: a
    token's row is read alone, and errors of the head are not averaged by later layers. Tables of
    positions, which are small, get 8 bits where `head_bits` are less. With bits f32 or f16 the head
    follows the rest. `compact` gives nested codes 4-bit scales and zeros instead of 8-bit ones.
    `readings`, such as 43 or 432, gives 4-bit codes scales for reading 4, 3 or 2 of their bits,
    and calibrate-weights makes the codes for all of them; tables and heads have one reading. The
    one reading 4 says that codes are read whole: they lie in nibbles where the target wants it.
    Does not fire on weights of generic ops, which stay float32.

    Source: nested 2/3/4-bit codes with second-order scales as in arXiv 2311.16442.
    """

    name: ClassVar[str] = "quantize-weights"
    needs: ClassVar[tuple[str, ...]] = (
        "well-formed",
        "normalized",
        "linears-apart",
        "formats-open",
        "formats-whole",
    )
    gives: ClassVar[tuple[str, ...]] = ("well-formed", "normalized", "formats-known")

    bits: str = "4"
    group_size: int = 32
    compact: bool = False
    head_bits: str = "8"
    readings: str = ""

    def __post_init__(self) -> None:
        """Refuse options that mean no format, before any model is loaded."""
        group = self.group_size
        formats = {"bits": (self.bits, 32), "head_bits": (self.head_bits, 32)}
        for option, (bits, size) in {**formats, "group_size": (self.bits, group)}.items():
            try:
                format_for_bits(bits, size)
            except InputError as error:
                raise InputError(f"{self.name}: option {option}: {error.message}") from None
        if self.compact and not format_for_bits(self.bits, group).nested:
            raise InputError(
                f"{self.name}: only nested codes have compact scales (got {self.spec})"
            )
        if self.readings and (self.bits != "4" or not self.readings.isdecimal()):
            raise InputError(
                f"{self.name}: only 4-bit codes have several readings, such as 43 (got {self.spec})"
            )
        if self.readings_of_codes:
            check_readings(self.readings_of_codes)

    @property
    def readings_of_codes(self) -> tuple[int, ...]:
        """`readings` as numbers of bits where there are several, each with scales of its own."""
        found = tuple(map(int, self.readings))
        return () if found == WHOLE else found

    def apply(self, module: tvm.IRModule, context: Context) -> tvm.IRModule:
        size, layout = self.group_size, context.layout
        body = format_for_bits(self.bits, size, layout)
        body = replace(body, compact=self.compact, readings=self.readings_of_codes)
        head = format_for_bits(self.head_bits, size, layout) if body.quantized else body
        head = replace(head, compact=self.compact and head.nested)
        if self.readings and not self.readings_of_codes and layout.nibbles:
            body, head = (replace(fmt, nibbles=fmt.kind == "q4") for fmt in (body, head))
        positions = format_for_bits(8, size, layout) if head.nested else head
        heads, position_tables = head_weights(module), _position_tables(module)

        def visit(_: Any, var: relax.Var, value: Any) -> Any:
            name = op_name(value)
            if name == "weight":
                attrs = attrs_of(value)
                context.report.missed(attrs["name"], "read by a generic op, stays float32")
            if name not in ("linear", "embedding"):
                return value
            attrs = attrs_of(value)
            chosen = head if attrs["weight"] in heads else body
            chosen = positions if attrs["weight"] in position_tables else chosen
            self._count(context, chosen, attrs)
            return call(name, *value.args, **{**attrs, "format": chosen.name})

        return map_functions(module, visit)

    def _count(self, context: Context, chosen: WeightFormat, attrs: dict[str, Any]) -> None:
        context.report.count(f"matrices {chosen.name}")
        features = attrs.get("in_features", attrs.get("features", 0))
        if chosen.quantized and features % self.group_size:
            context.report.missed(
                attrs["weight"],
                f"K={features} is no multiple of {self.group_size}: last group padded with zeros",
            )


def _position_tables(module: tvm.IRModule) -> set[str]:
    """Names of embedding tables that something else than token ids chooses rows of."""
    found = set()
    for function in relax_functions(module).values():
        by_token = {function.params[0]}
        for binding in bindings_of(function):
            if not by_token.isdisjoint(relax.analysis.free_vars(binding.value)):
                by_token.add(binding.var)
            elif op_name(binding.value) == "embedding":
                found.add(attrs_of(binding.value)["weight"])
    return found


def head_weights(module: tvm.IRModule) -> set[str]:
    """Names of embedding tables and of the last linear's matrix."""
    tables = {attrs_of(c)["weight"] for name, c in calls(module) if name == "embedding"}
    last = ""
    for name, linear in calls(module):
        if name == "linear" and "main" in relax_functions(module):
            last = attrs_of(linear)["weight"]
    return tables | {last}
