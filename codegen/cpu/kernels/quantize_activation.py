"""Activations to int8, per token and per group of input channels.

The numbers are exactly those of `ir/reference_activation.py`, bit by bit: maximum, two divisions,
one product and one rounding per element, nothing that a compiler may contract.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from morendo.codegen.cpu.vectors.isa import VectorISA
from morendo.codegen.cpu.vectors.vector import Registers, splat, splat_float, store, vector_type
from morendo.codegen.cpu.vectors.vector_blocks import (
    Element,
    Kernel,
    common_lanes,
    fold,
    kernel,
    kernel_name,
    load_float,
    load_ordered,
    reduce_lanes,
    token_loop,
    variable,
)
from morendo.ir.formats import ceil_div
from morendo.ir.reference_activation import CODE_LIMIT, SMALLEST_MAXIMUM

from .activation_layout import ActivationLayout


@dataclass(frozen=True)
class GroupOutputs:
    """The three buffers of quantized activations: codes i8, scales f32, sums i32, as they lie."""

    layout: ActivationLayout
    codes: Any
    scales: Any
    sums: Any

    @classmethod
    def declare(
        cls, k: Kernel, isa: VectorISA, max_tokens: int, features: int, group_size: int
    ) -> GroupOutputs:
        """Declare them as the next parameters of the kernel."""
        layout, groups = ActivationLayout.of(isa, max_tokens), ceil_div(features, group_size)
        return cls(
            layout,
            k.buffer("codes", layout.codes_shape(groups * group_size), "int8"),
            k.buffer("scales", layout.groups_shape(groups)),
            k.buffer("sums", layout.groups_shape(groups), "int32"),
        )


def quantize_activation(
    isa: Any, *, max_tokens: int, features: int, group_size: int, ordered: bool = False
) -> tirx.PrimFunc:
    """Quantize the rows of x to int8 codes with a scale and a sum per group.

    Parameters of the kernel: x f32[M, K], [order u16[K]], codes i8[M, Kp], scales f32[M, G],
    sums i32[M, G], tokens; `ActivationLayout` says how the three lie. The padding between K and Kp
    gets codes 0. With `ordered`, channel k of the result is channel order[k] of x.
    """
    op = "quantize_activation" + "_ordered" * ordered
    name = kernel_name(op, m=max_tokens, k=features, g=group_size)
    with kernel(name) as k:
        x = k.buffer("x", (max_tokens, features))
        order = k.buffer("order", (features,), "uint16") if ordered else None
        outputs = GroupOutputs.declare(k, isa, max_tokens, features, group_size)
        tokens = k.scalar("tokens")
        with token_loop(tokens, max_tokens, features * 8) as m:
            quantize_row(
                lambda c, lanes: load_ordered(x, [m, c], order, lanes),
                outputs, m, features, group_size, isa.lanes,
            )  # fmt: skip
    return k.function


def quantize_row(
    element: Element,
    outputs: GroupOutputs,
    m: Any,
    features: int,
    group_size: int,
    lanes: int,
) -> None:
    """Quantize one token's row, given element by element, to codes, scales and sums."""
    lanes = common_lanes(group_size, lanes)
    whole = features // group_size
    if whole:
        with T.serial(0, whole) as group:
            start = group * group_size
            vectors = [
                variable(element(start + i, lanes), lanes) for i in range(0, group_size, lanes)
            ]
            _quantize_group(vectors, outputs, m, group, group_size, lanes)
    if features % group_size:
        padded = T.alloc_buffer((group_size,), "float32")
        for i in range(0, group_size, lanes):
            store(padded, [i], splat_float(0.0, lanes), lanes)
        with T.serial(0, features - whole * group_size) as c:
            store(padded, [c], element(whole * group_size + c, 1), 1)
        vectors = [load_float(padded, [i], lanes) for i in range(0, group_size, lanes)]
        _quantize_group(vectors, outputs, m, whole, group_size, lanes)


def _quantize_group(
    vectors: list[Any], outputs: GroupOutputs, m: Any, group: Any, group_size: int, lanes: int
) -> None:
    """Quantize one group, held as vectors that cover it."""
    largest = reduce_lanes(fold([T.abs(v) for v in vectors], T.max), lanes, T.max)
    inverse = codes_per_unit(largest)
    rounded = [rounded_codes(v, inverse, lanes) for v in vectors]
    layout = outputs.layout
    for i, value in enumerate(rounded):
        at = layout.code_at(m, group * group_size + i * lanes)
        store(outputs.codes, at, T.cast(value, vector_type("int8", lanes)), lanes)
    at = layout.group_at(m, group)
    store(outputs.scales, at, largest / T.float32(CODE_LIMIT), 1)
    store(outputs.sums, at, reduce_lanes(fold(rounded, _add), lanes, _add, "int32"), 1)


def codes_per_unit(largest: Any) -> Any:
    """What values are multiplied with to become codes, by the largest magnitude of their group."""
    usable = largest >= T.float32(SMALLEST_MAXIMUM)
    return variable(tirx.Select(usable, T.float32(CODE_LIMIT) / largest, T.float32(0.0)), 1)


def rounded_codes(values: Any, inverse: Any, lanes: int) -> Any:
    """The codes of a vector of values, as int32 in a variable."""
    codes = T.nearbyint(values * splat(inverse, lanes))
    return variable(T.cast(codes, vector_type("int32", lanes)), lanes, "int32")


def quantize_vector(
    element: Callable[[Any], Any], length: int, lanes: int, keep: Callable[[Any, Any], None]
) -> tuple[Any, Any]:
    """Round `length` elements to codes with one scale, in loops: (scale, sum of the codes).

    Args:
        element: gives the float32 x lanes from an index on.
        length: a multiple of `lanes`.
        keep: is given an index and the int32 codes from it on.
    """
    largest, total = Registers(1, "float32", lanes), Registers(1, "int32", lanes)
    largest[0], total[0] = splat_float(0.0, lanes), splat(T.int32(0), lanes)
    with T.serial(0, length // lanes) as i:
        largest[0] = T.max(largest[0], T.abs(element(i * lanes)))
    most = variable(reduce_lanes(largest[0], lanes, T.max), 1)
    inverse = codes_per_unit(most)
    with T.serial(0, length // lanes) as i:
        rounded = rounded_codes(element(i * lanes), inverse, lanes)
        total[0] = total[0] + rounded
        keep(i * lanes, rounded)
    scale = variable(most / T.float32(CODE_LIMIT), 1)
    return scale, variable(reduce_lanes(total[0], lanes, _add, "int32"), 1, "int32")


def _add(a: Any, b: Any) -> Any:
    return a + b
