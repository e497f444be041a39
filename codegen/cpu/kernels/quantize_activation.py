"""Activations to codes of 8 or 4 bits in bytes, per token and per group of input channels.

The numbers are exactly those of `ir/reference_activation.py`, bit by bit: maximum, two divisions,
one product and one rounding per element, nothing that a compiler may contract.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from morendo.codegen.cpu.vectors.isa import VectorISA
from morendo.codegen.cpu.vectors.vector import (
    Registers,
    splat,
    splat_float,
    store,
    vector_type,
)
from morendo.codegen.cpu.vectors.vector_blocks import (
    Element,
    KernelBuilder,
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
from morendo.ir.activation_formats import DEFAULT_ACTIVATIONS, ActivationFormat
from morendo.ir.formats import ceil_div
from morendo.ir.reference_activation import CODE_LIMIT, SMALLEST_MAXIMUM, STEPS
from morendo.ir.reference_attention import MIDDLE

from .activation_layout import ActivationLayout


@dataclass(frozen=True)
class GroupOutputs:
    """The three buffers of quantized activations: codes i8, scales f32, sums i32, as they lie.

    Attributes:
        format: of the codes.
        factors: f32[K] of a factored format, else None.
    """

    layout: ActivationLayout
    format: ActivationFormat
    factors: Any
    codes: Any
    scales: Any
    sums: Any

    @classmethod
    def declare(
        cls,
        k: KernelBuilder,
        isa: VectorISA,
        max_tokens: int,
        features: int,
        group_size: int,
        fmt: ActivationFormat,
    ) -> GroupOutputs:
        """Declare them as the next parameters of the kernel, factors of channels before them."""
        layout, groups = ActivationLayout.of(isa, max_tokens), ceil_div(features, group_size)
        return cls(
            layout,
            fmt,
            k.buffer("factors", (features,)) if fmt.factored else None,
            k.buffer("codes", layout.codes_shape(groups * group_size), "int8"),
            k.buffer("scales", layout.groups_shape(groups)),
            k.buffer("sums", layout.groups_shape(groups), "int32"),
        )

    def factor(self, channel: Any, lanes: int) -> Any:
        """What codes of channels from one on are multiplied with, int32; None for nothing."""
        if self.factors is None:
            return None
        factors = load_float(self.factors, [channel], lanes)
        return variable(T.cast(factors, vector_type("int32", lanes)), lanes, "int32")


def quantize_activation(
    isa: Any,
    *,
    max_tokens: int,
    features: int,
    group_size: int,
    ordered: bool = False,
    activations: ActivationFormat = DEFAULT_ACTIVATIONS,
) -> tirx.PrimFunc:
    """Quantize the rows of x to int8 codes with a scale and a sum per group.

    Parameters of the kernel: x f32[M, K], [order u16[K]], [factors f32[K]], codes i8[M, Kp],
    scales f32[M, G], sums i32[M, G], tokens; `ActivationLayout` says how the last three lie. The
    padding between K and Kp gets codes 0. With `ordered`, channel k of the result is channel
    order[k] of x; a factored format has factors of the result's channels.
    """
    op = "quantize_activation" + "_ordered" * ordered + activations.kernel_suffix
    name = kernel_name(op, m=max_tokens, k=features, g=group_size)
    with kernel(name) as k:
        x = k.buffer("x", (max_tokens, features))
        order = k.buffer("order", (features,), "uint16") if ordered else None
        outputs = GroupOutputs.declare(k, isa, max_tokens, features, group_size, activations)
        tokens = k.scalar("tokens")
        with token_loop(tokens, max_tokens, features * 8) as m:
            quantize_row(
                lambda c, lanes: load_ordered(x, [m, c], order, lanes),
                outputs, m, features, group_size, isa,
            )  # fmt: skip
    return k.function


def quantize_row(
    element: Element,
    outputs: GroupOutputs,
    m: Any,
    features: int,
    group_size: int,
    isa: VectorISA,
) -> None:
    """Quantize one token's row, given element by element, to codes, scales and sums."""
    lanes = common_lanes(group_size, isa.lanes)
    whole = features // group_size
    steps = range(0, group_size, lanes)

    def scaled(c: Any, width: int) -> Any:
        value = element(c, width)
        return (
            value / load_float(outputs.factors, [c], width)
            if outputs.factors is not None
            else value
        )

    def quantize(first: Any, count: int) -> None:
        groups = []
        for start in [(first + i) * group_size for i in range(count)]:
            vectors = [variable(scaled(start + i, lanes), lanes) for i in steps]
            groups.append((vectors, [outputs.factor(start + i, lanes) for i in steps]))
        _quantize_groups(isa, groups, outputs, m, first, lanes)

    if whole:
        together = ceil_div(whole, ceil_div(whole, isa.side_by_side))  # about as many each time
        with T.serial(0, whole // together) as block:
            quantize(block * together, together)
        if whole % together:
            quantize(T.int32(whole - whole % together), whole % together)
    if features % group_size:
        first = whole * group_size
        vectors = _padded(lambda c: scaled(first + c, 1), 0.0, features - first, group_size, lanes)
        factors: list[Any] = [None for _ in steps]
        if outputs.factors is not None:
            padded = _padded(
                lambda c: load_float(outputs.factors, [first + c], 1),
                1.0, features - first, group_size, lanes,
            )  # fmt: skip
            factors = [T.cast(f, vector_type("int32", lanes)) for f in padded]
        _quantize_groups(isa, [(vectors, factors)], outputs, m, T.int32(whole), lanes)


def _padded(
    element: Callable[[Any], Any], rest: float, count: int, size: int, lanes: int
) -> list[Any]:
    """Vectors of `size` numbers: the first `count` are elements, the others `rest`."""
    padded = T.alloc_buffer((size,), "float32")
    for i in range(0, size, lanes):
        store(padded, [i], splat_float(rest, lanes), lanes)
    with T.serial(0, count) as c:
        store(padded, [c], element(c), 1)
    return [load_float(padded, [i], lanes) for i in range(0, size, lanes)]


def _quantize_groups(
    isa: VectorISA,
    groups: list[tuple[list[Any], list[Any]]],
    outputs: GroupOutputs,
    m: Any,
    first: Any,
    lanes: int,
) -> None:
    """Quantize neighbouring groups from one on: (vectors that cover it, int32 factors of codes or
    None) of each.
    """
    vectors = [vectors for vectors, _ in groups]
    if outputs.format.bits == 4:
        rounded = [_sixteen_steps(isa, group, lanes) for group in vectors]
    else:
        rounded = round_by_largest(isa, vectors, lanes)
    codes = [
        [
            code if factor is None else variable(code * factor, lanes, "int32")
            for code, factor in zip(of_group, factors, strict=True)
        ]
        for (of_group, _), (_, factors) in zip(rounded, groups, strict=True)
    ]
    layout, start = outputs.layout, first * (len(vectors[0]) * lanes)
    _store_bytes(
        isa, outputs.codes, lambda i: layout.code_at(m, start + i), itertools.chain(*codes), lanes
    )
    sums = isa.fold_lanes([fold(of_group, _add) for of_group in codes], lanes, _add, "int32")
    for i, ((_, scale), total) in enumerate(zip(rounded, sums, strict=True)):
        at = layout.group_at(m, first + i)
        store(outputs.scales, at, scale, 1)
        store(outputs.sums, at, total, 1)


def _store_bytes(
    isa: VectorISA, buffer: Any, place: Callable[[int], list[Any]], words: Iterable[Any], lanes: int
) -> None:
    """Write vectors of int32 codes as bytes, element i at `place(i)`.

    Where rows are rounded side by side, the bytes of four vectors, which lie together, are made at
    once: they are a whole vector.
    """
    vectors = list(words)
    most = 4 if isa.side_by_side > 1 and lanes == isa.lanes else 1
    for i in range(0, len(vectors), most):
        part = vectors[i : i + most]
        width = lanes * len(part)
        joined = part[0] if len(part) == 1 else tirx.Shuffle(part, list(range(width)))
        dtype = vector_type(str(buffer.ty.dtype), width)
        store(buffer, place(i * lanes), T.cast(joined, dtype), width)


def round_by_largest(
    isa: VectorISA, groups: list[list[Any]], lanes: int
) -> list[tuple[list[Any], Any]]:
    """(codes int32, scale) of each group by its largest magnitude."""
    magnitudes = [fold([T.abs(v) for v in vectors], T.max) for vectors in groups]
    largest = isa.fold_lanes(magnitudes, lanes, T.max)
    inverses = isa.of_each(codes_per_unit, largest)
    scales = isa.of_each(code_step, largest)
    return [
        ([rounded_codes(v, inverse, lanes) for v in vectors], scale)
        for vectors, inverse, scale in zip(groups, inverses, scales, strict=True)
    ]


def _sixteen_steps(isa: VectorISA, vectors: list[Any], lanes: int) -> tuple[list[Any], Any]:
    """(codes int32, scale) of a group by its smallest and its largest value."""
    zero = T.float32(0.0)
    low = variable(T.min(*isa.fold_lanes([fold(vectors, T.min)], lanes, T.min), zero), 1)
    high = T.max(*isa.fold_lanes([fold(vectors, T.max)], lanes, T.max), zero)
    spread = variable(high - low, 1)
    inverse = variable(codes_per_unit(spread, 1, STEPS), 1)
    first = rounded_codes(low, inverse, 1)
    lowest = variable(splat(first, lanes), lanes, "int32")
    highest = variable(splat(first + T.int32(STEPS), lanes), lanes, "int32")
    codes = [
        variable(T.min(T.max(rounded_codes(v, inverse, lanes), lowest), highest), lanes, "int32")
        for v in vectors
    ]
    return codes, spread / T.float32(STEPS)


def codes_per_unit(largest: Any, lanes: int, limit: int = CODE_LIMIT) -> Any:
    """What values are multiplied with to become codes, by the largest magnitude of their group, or
    whatever `limit` codes are to cover.
    """
    usable = largest >= splat_float(SMALLEST_MAXIMUM, lanes)
    inverse = splat_float(limit, lanes) / largest
    return tirx.Select(usable, inverse, splat_float(0.0, lanes))


def code_step(largest: Any, lanes: int) -> Any:
    """What a code stands for, by the largest magnitude of its group."""
    return largest / splat_float(CODE_LIMIT, lanes)


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
    inverse = variable(codes_per_unit(most, 1), 1)
    with T.serial(0, length // lanes) as i:
        rounded = rounded_codes(element(i * lanes), inverse, lanes)
        total[0] = total[0] + rounded
        keep(i * lanes, rounded)
    scale = variable(code_step(most, 1), 1)
    return scale, variable(reduce_lanes(total[0], lanes, _add, "int32"), 1, "int32")


def center_vector(
    element: Callable[[Any], Any], length: int, lanes: int, keep: Callable[[Any, Any], None]
) -> tuple[Any, Any]:
    """Round `length` elements to 16 steps from the smallest to the largest: (scale, middle).

    As `centered_heads` of `ir/reference_attention.py`; `keep` is given the codes with `MIDDLE`
    added, 0..15. Other arguments as of `quantize_vector`.
    """
    lowest, highest = Registers(1, "float32", lanes), Registers(1, "float32", lanes)
    lowest[0] = highest[0] = element(T.int32(0))
    with T.serial(0, length // lanes) as i:
        value = variable(element(i * lanes), lanes)
        lowest[0], highest[0] = T.min(lowest[0], value), T.max(highest[0], value)
    low = variable(reduce_lanes(lowest[0], lanes, T.min), 1)
    spread = variable(reduce_lanes(highest[0], lanes, T.max) - low, 1)
    inverse = variable(codes_per_unit(spread, 1, STEPS), 1)
    with T.serial(0, length // lanes) as i:
        above = variable(element(i * lanes) - splat(low, lanes), lanes)
        rounded = rounded_codes(above, inverse, lanes)
        keep(i * lanes, T.min(rounded, splat(T.int32(STEPS), lanes)))
    scale = variable(spread / T.float32(STEPS), 1)
    return scale, variable(low + T.float32(MIDDLE) * scale, 1)


def _add(a: Any, b: Any) -> Any:
    return a + b
